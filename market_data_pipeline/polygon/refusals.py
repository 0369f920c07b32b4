"""What the vendor's refusals mean: which class of failure a status is, and the sentence for it.

| answer | failure |
|---|---|
| 408, 5xx | UnansweredError: retried |
| 429 | RateLimitedError: all senders pause, then it is retried |
| 400, 404, other 4xx, a redirect | VendorRequestError: this request is wrong, others are not |
| 401 | VendorRefusedError: the key is refused, the run stops |
| 403 for bars that the plan's history or delay excludes | VendorRequestError |
| 403 for a market with a subscription of its own | VendorRequestError: the other markets may be in the plan |
| any other 403 | VendorRefusedError: the plan is refused, the run stops |

A refusal inside HTTP 200 counts as the status it stands for. The vendor uses 403 both for "this range is not in your
plan" and for "nothing is". The requested interval tells them apart (wholly older than the configured plan's history),
or, where the configured plan is larger than the real one, the vendor's message, which then mentions the data's
timeframe or the end of the day.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from market_data_pipeline.domain.errors import (
    DataError,
    PipelineError,
    RateLimitedError,
    UnansweredError,
    VendorRefusedError,
    VendorRequestError,
)

if TYPE_CHECKING:
    from market_data_pipeline.polygon.transport import Answer

_LONGEST_TEXT: Final = 300
_OUTSIDE_PLAN: Final = re.compile(r"timeframe|time frame|date range|too old", re.IGNORECASE)
_TOO_EARLY: Final = re.compile(r"before (the )?end of (the )?day", re.IGNORECASE)
# The status that a refusal inside HTTP 200 stands for, by its words first.
_IN_WORDS: Final = (
    (re.compile(r"maximum requests|rate limit|too many requests", re.IGNORECASE), 429),
    (re.compile(r"api ?key", re.IGNORECASE), 401),
    (re.compile(r"internal|unavailable|timed? ?out|try again|overload|gateway", re.IGNORECASE), 503),
)
_IN_STATUS: Final = {"NOT_AUTHORIZED": 403, "NOT_FOUND": 404, "ERROR": 400}


class RefusedInBodyError(Exception):
    """An answer with HTTP 200 whose `status` is a refusal; `retry` turns it into the failure it stands for."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text

    @property
    def code(self) -> int:
        """The HTTP status that the vendor should have sent."""
        for words, code in _IN_WORDS:
            if words.search(self.text):
                return code
        return _IN_STATUS.get(self.status, 400)


class _Refusal(msgspec.Struct):
    error: str | None = None
    message: str | None = None


_REFUSAL: Final = msgspec.json.Decoder(_Refusal)


def text_of(answer: Answer) -> str:
    """Return the vendor's message in a refusal, "" when the body is empty or not the vendor's JSON."""
    try:
        refusal = _REFUSAL.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return refusal.error or refusal.message or ""


def failure(code: int, text: str, what: str, *, beyond_history: bool, subscription: str | None = None) -> PipelineError:
    """Return the failure that HTTP status `code` means.

    Args:
        code: the status, or the one that a refusal inside HTTP 200 stands for.
        text: the vendor's message, free of secrets; "" when there is none.
        what: the request in words.
        beyond_history: the whole requested interval is older than the plan's history.
        subscription: the instruments that it is about, where the vendor sells them apart from US stocks.
    """
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"
    said = f"HTTP {code}: {line}" if line else f"HTTP {code}"
    if code == 401:
        return VendorRefusedError(
            f"The vendor refuses the API key ({said}). Correct POLYGON_API_KEY, or remove it to use the sandbox."
        )
    if code == 403:
        if _TOO_EARLY.search(text):
            return VendorRequestError(
                f"{what}: not in the plan yet ({said}). A later run requests it again; if that does not help, "
                "check POLYGON_PLAN: the key's plan serves a day only after its end."
            )
        if beyond_history or _OUTSIDE_PLAN.search(text):
            return VendorRequestError(f"{what}: not in the plan ({said}). Request less history, or upgrade the plan.")
        if subscription is not None:
            return VendorRequestError(
                f"{what}: not in the plan ({said}). The vendor sells {subscription} apart from US stocks: subscribe to "
                "them, or stop following the symbol with `market-data universe remove`."
            )
        refused = VendorRefusedError(
            f"The plan of this API key does not allow {what} ({said}). Check POLYGON_PLAN and the subscription."
        )
        refused.of_plan = True
        return refused
    if code == 429:
        return RateLimitedError(f"{what}: too many requests for the plan ({said}).")
    if code == 408 or code >= 500:
        return UnansweredError(f"{what}: the vendor failed ({said}).")
    if 300 <= code < 400:
        return VendorRequestError(
            f"{what}: the server redirects elsewhere ({said}), where the key must not go. Correct POLYGON_BASE_URL."
        )
    if 200 <= code < 300:
        return DataError(f"{what}: a success status without an answer ({said}).")
    rejected = VendorRequestError(f"{what}: the vendor refuses the request ({said}).")
    rejected.not_found = code == 404
    return rejected
