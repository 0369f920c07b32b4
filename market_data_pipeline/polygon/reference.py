"""Decode the vendor's list of splits; any other reference data belongs here too."""

from __future__ import annotations

import logging
import math
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from market_data_pipeline.domain.adjustments import NO_TICKER
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.polygon.wire import Envelope, Page, decode, in_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

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


class _Ticker(msgspec.Struct):
    ticker: str


class _SplitPage(Envelope):
    results: list[msgspec.Raw] | None = None


_PAGE: Final = msgspec.json.Decoder(_SplitPage)
_ROW: Final = msgspec.json.Decoder(_Split)
_NAME: Final = msgspec.json.Decoder(_Ticker)

# The vendor lists some splits twice, the second time under a neighbouring date; over a weekend that is three days away.
# No company splits twice in the same ratio within a week.
_SAME_SPLIT: Final = timedelta(days=4)


def read_splits(
    body: bytes, since: date, followed: Collection[str] | None = None, unreadable: dict[str, str] | None = None
) -> Page[tuple[SplitRow, ...]]:
    """Return the splits of one page that were executed on `since` or later.

    A row that cannot be read is left out with a warning if its ticker is not `followed`: one ticker's bad row must not
    hold up the whole market's list.

    Args:
        body: the unpacked answer.
        since: the first requested date; earlier splits do not affect any stored bar.
        followed: the tickers whose splits matter; None for all.
        unreadable: receives, by ticker, what is wrong with a row of a ticker that matters, or, under `NO_TICKER`, with
            a row without a ticker; None to raise it instead.

    Raises:
        TransientError: the body is not JSON.
        DataError: a row that matters is malformed or has an impossible ratio, and `unreadable` is None.
        RefusedInBodyError: its status is not a success.
    """
    page = decode(_PAGE, body, "splits", "row")
    rows, left_out = [], []
    for i, raw in enumerate(page.results or ()):
        try:
            row = _read_row(raw, f"splits, row {i}")
        except DataError as error:
            ticker = _ticker_of(raw)
            if followed is not None and ticker != NO_TICKER and ticker not in followed:
                left_out.append(str(error))
                continue
            if unreadable is None:
                raise
            _log.warning("%s until it can be read: %s", f"{ticker} fails" if ticker else "A split is left out", error)
            unreadable.setdefault(ticker, str(error))
            continue
        if row.execution_date >= since:
            rows.append(row)
    if left_out:
        _log.warning("Left out %d splits of tickers that are not followed, such as: %s", len(left_out), left_out[0])
    return Page(tuple(rows), len(rows), page.next_url)


def _read_row(raw: msgspec.Raw, where: str) -> SplitRow:
    failure: DataError
    try:
        row = _ROW.decode(raw)
    except msgspec.ValidationError as error:
        failure = DataError(f"{where}{in_words(str(error), 'row')}.")
    else:
        if not row.ticker:
            raise DataError(f"{where}, field ticker: it is empty.")
        for name, shares in (("split_from", row.split_from), ("split_to", row.split_to)):
            if not (math.isfinite(shares) and shares > 0):
                raise DataError(f"{where} ({row.ticker}), field {name}: {shares} is not a number of shares.")
        return SplitRow(row.ticker, row.execution_date, row.split_from, row.split_to)
    raise failure


def _ticker_of(raw: msgspec.Raw) -> str:
    try:
        return _NAME.decode(raw).ticker or NO_TICKER
    except msgspec.ValidationError:
        return NO_TICKER


def without_duplicates(splits: Iterable[SplitRow]) -> tuple[SplitRow, ...]:
    """Return every split once, by day and ticker.

    The vendor lists some splits twice. Of two on one day with different ratios, the later in the list is kept, with a
    warning: one ticker must not hold up the whole market's splits. Of two with the same ratio a few days apart, the one
    with the later date is kept, with a warning: the earlier date is that of the decision, after the close.
    """
    kept: dict[tuple[str, date], SplitRow] = {}
    for split in splits:
        key = (split.symbol, split.execution_date)
        before = kept.get(key)
        if before is not None and not math.isclose(_ratio(before), _ratio(split)):
            _log.warning(
                "%s has two splits on %s: %s and %s", split.symbol, split.execution_date, before[2:], split[2:]
            )
        kept[key] = split
    once: list[SplitRow] = []
    for key in sorted(kept):
        split = kept[key]
        if once and _is_same(once[-1], split):
            _log.warning(
                "%s has the same split on %s and on %s; the later date counts",
                *(split.symbol, once[-1].execution_date, split.execution_date),
            )
            once.pop()
        once.append(split)
    return tuple(sorted(once, key=lambda split: (split.execution_date, split.symbol)))


def _is_same(one: SplitRow, later: SplitRow) -> bool:
    return (
        one.symbol == later.symbol
        and later.execution_date - one.execution_date <= _SAME_SPLIT
        and math.isclose(_ratio(one), _ratio(later))
    )


def _ratio(split: SplitRow) -> float:
    return split.split_from / split.split_to
