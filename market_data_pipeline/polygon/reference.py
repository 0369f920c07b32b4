"""Decode the vendor's list of splits.

Add here: reference data that is not bars. Keep out: what splits do to prices (domain.splits).
"""

from __future__ import annotations

import logging
import math
from datetime import date
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from market_data_pipeline.domain.failures import DataError
from market_data_pipeline.polygon.pages import Envelope, decode

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = logging.getLogger(__name__)


class SplitRow(NamedTuple):
    """`split_from` old shares become `split_to` new ones at 00:00 New York of `execution_date`."""

    symbol: str
    execution_date: date
    split_from: float
    split_to: float


class _Split(msgspec.Struct):
    ticker: str
    execution_date: date
    split_from: float
    split_to: float


class _SplitPage(Envelope):
    results: list[_Split] | None = None


_PAGE: Final = msgspec.json.Decoder(_SplitPage)


def read_splits(body: bytes, since: date) -> tuple[tuple[SplitRow, ...], str | None]:
    """Return the splits of one page and the address of the next page.

    Raises:
        TransientError: the body is not JSON.
        DataError: a row is malformed, its ratio is none, or it was executed before `since`.
        RefusedInBodyError: its status is not a success.
    """
    page = decode(_PAGE, body, "splits", "row")
    for i, row in enumerate(page.results or ()):
        if not row.ticker:
            raise DataError(f"splits, row {i}, field ticker: it is empty.")
        for name, shares in (("split_from", row.split_from), ("split_to", row.split_to)):
            if not (math.isfinite(shares) and shares > 0):
                raise DataError(f"splits, row {i} ({row.ticker}), field {name}: {shares} is no number of shares.")
        if row.execution_date < since:
            raise DataError(
                f"splits, row {i} ({row.ticker}): {row.execution_date} is before {since}, the day asked for."
            )
    made = (SplitRow(row.ticker, row.execution_date, row.split_from, row.split_to) for row in page.results or ())
    return tuple(made), page.next_url


def without_duplicates(splits: Iterable[SplitRow]) -> tuple[SplitRow, ...]:
    """Return one split per ticker and day, by day and ticker.

    The vendor lists some splits twice. Of two with different ratios the later in the list stands, with a warning: the
    whole market's splits are not to wait for one ticker's.
    """
    kept: dict[tuple[date, str], SplitRow] = {}
    for split in splits:
        key = (split.execution_date, split.symbol)
        before = kept.get(key)
        if before is not None and not math.isclose(_ratio(before), _ratio(split)):
            _log.warning(
                "%s has two splits on %s: %s and %s", split.symbol, split.execution_date, before[2:], split[2:]
            )
        kept[key] = split
    return tuple(kept[key] for key in sorted(kept))


def _ratio(split: SplitRow) -> float:
    return split.split_from / split.split_to
