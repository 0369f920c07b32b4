"""Delivering an alert to people through Apprise: Slack, e-mail, webhooks, whatever MARKET_DATA_ALERT_URLS names.

What cannot be delivered is in the log, as every alert is. The addresses are secrets: they are spoken of by their
number. Keep out: what is worth an alert (orchestration.alerts, watch), and what has been said already (store.alerts).
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

# These write the address that they send to into the log: apprise always, urllib3 (its path, where Slack's and Discord's
# secrets are) at the level DEBUG.
_TALKATIVE: Final = ("apprise", "urllib3.connectionpool", "requests_oauthlib", "httpx", "httpcore", "paho")


class Tone(StrEnum):
    """How an alert is meant; the services show it by a colour or a sign."""

    TROUBLE = "failure"
    WARNING = "warning"
    RECOVERY = "success"


@dataclass(frozen=True, slots=True)
class Alert:
    """A message to people: a line that says what happened, and lines that say to what and why."""

    title: str
    lines: tuple[str, ...] = ()
    tone: Tone = Tone.TROUBLE
    link: str = ""

    @property
    def body(self) -> str:
        """The message below the title, with the link at its end."""
        return "\n".join([*self.lines, *([self.link] if self.link else [])]) or self.title


def deliver(urls: Sequence[str], alert: Alert) -> bool:
    """Log the alert and send it to every address; return whether somebody got it, or nobody is to get any.

    An address that does not work is named by its number and does not keep the others from theirs.
    """
    level = logging.INFO if alert.tone is Tone.RECOVERY else logging.ERROR
    log.log(level, "%s\n%s", alert.title, alert.body)
    if not urls:
        return True
    delivered = 0
    for number, url in enumerate(urls, 1):
        if problem := _send(url, alert):
            log.error("The alert did not reach address %d of MARKET_DATA_ALERT_URLS: %s.", number, problem)
        else:
            delivered += 1
    return delivered > 0


def _send(url: str, alert: Alert) -> str | None:
    """Return what is wrong, without the address; None when it was sent."""
    from apprise import Apprise, NotifyType

    with _silent():
        service = Apprise()
        if not service.add(url):
            return "it is not one that Apprise knows"
        try:
            sent = service.notify(title=alert.title, body=alert.body, notify_type=NotifyType(alert.tone.value))
        except Exception as error:  # noqa: BLE001 - a plug-in's failure must not fail whoever has something to say
            return f"the service's plug-in failed ({type(error).__name__})"
    return None if sent else "the service did not take it, or could not be reached"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the libraries from logging addresses, for the time of the block."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
