"""One outage as people are told of it: once when it is noticed, and once when it is over.

Every watch of `market-data up` decides for itself what is an outage and what to do about it; here is only who was told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from market_data_pipeline.orchestration.alerts.delivery import Alert, deliver

if TYPE_CHECKING:
    from collections.abc import Sequence

_AGAIN_AFTER: Final = 30.0  # seconds after which an alert that no address took is sent again


@dataclass
class Outage:
    """An outage from its beginning until its end was told; in seconds of the monotonic clock.

    Attributes:
        began: when.
        alerted: whether its beginning was told.
    """

    began: float = field(default_factory=time.monotonic)
    alerted: bool = False
    _send_at: float = 0.0

    def tell(self, addresses: Sequence[str], alert: Alert) -> None:
        """Send the alert of its beginning, once."""
        if not self.alerted:
            self.alerted = self.send(addresses, alert)

    def send(self, addresses: Sequence[str], alert: Alert) -> bool:
        """Send an alert; False when no address took it, or when that was the case a moment ago: call again."""
        now = time.monotonic()
        if now < self._send_at:
            return False
        delivered = deliver(addresses, alert)
        self._send_at = 0.0 if delivered else now + _AGAIN_AFTER
        return delivered
