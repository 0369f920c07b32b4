"""Lists that the vendor has at several addresses: which of them answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from market_data_pipeline.domain.errors import VendorRefusedError, VendorRequestError

_log = logging.getLogger(__name__)
_R = TypeVar("_R")


class _Endpoint(Protocol):
    @property
    def path(self) -> str: ...


_E = TypeVar("_E", bound=_Endpoint)


def first_answer(endpoints: Iterable[_E], found: Callable[[_E], _R], what: str) -> tuple[_R, _E]:
    """Return what the first endpoint that is not refused answers, and that endpoint.

    Raises:
        VendorRequestError: every one is refused, or is not in the plan, in which bars may be.
        PipelineError: any other failure.
    """
    failure = VendorRequestError(f"{what}: no endpoint is known.")
    for endpoint in endpoints:
        try:
            return found(endpoint), endpoint
        except VendorRequestError as error:
            failure = error
        except VendorRefusedError as error:
            if not error.of_plan:
                raise
            failure = VendorRequestError(error)
        _log.warning("%s is refused: %s", endpoint.path, failure)
    raise failure


def led_by(endpoint: _E, endpoints: tuple[_E, ...]) -> tuple[_E, ...]:
    """Return the endpoints with `endpoint` in front."""
    return tuple(sorted(endpoints, key=lambda each: each != endpoint))
