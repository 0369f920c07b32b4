"""Rows of many series from the database, in pieces of bounded size that come in the order of the answer.

One snapshot answers a whole call. A statement reads as many series as fit into a piece together, or a part of a long
one; how many rows that will be is estimated from the state of the series.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from market_data_pipeline.domain.adjustments import Actions, Adjustment, Split, dividend_factor, price_factor
from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.calendar import exchange_date
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Series
from market_data_pipeline.reading.connections import snapshot
from market_data_pipeline.reading.regular import columns_to_read, regular_rows, stretch_to_read
from market_data_pipeline.reading.tables import Rows
from market_data_pipeline.store import many_series
from market_data_pipeline.store.dividends import dividends_of
from market_data_pipeline.store.many_series import Columns, Stretch, beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.reading.selection import Selection
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.many_series import Held

# About a year of 5m bars. The server's memory for it is 25 MB with features; a statement costs as much as 200 rows.
PIECE_ROWS: Final = 1 << 16
# 100 MB of the reader's memory with features, beside those of the answer.
_MOST_PIECE_ROWS: Final = 1 << 19
# To look for packed rows takes as long as to read so many from where they are not.
_WORTH_PACKED: Final = 1000


class RowSource(Protocol):
    """Where rows are read from; arguments and answers are those of `store.many_series`."""

    def bar_columns(
        self, stretches: Sequence[Stretch], names: Sequence[str], as_of: datetime | None = None, /
    ) -> Columns:
        """Return the raw bars of the stretches."""
        ...

    def feature_columns(self, stretches: Sequence[Stretch], features: Sequence[Feature], /) -> Columns:
        """Return the stored features of the stretches."""
        ...

    def record_columns(
        self, stretches: Sequence[Stretch], names: Sequence[str], features: Sequence[Feature], /
    ) -> Columns:
        """Return the raw bars of the stretches with their features."""
        ...


class _Database(NamedTuple):
    connection: StoreConnection
    stored_as: dict[str, str]  # by ticker, the symbol of its security, where that is another one
    packed: bool  # whether there are enough rows to look for packed ones

    def bar_columns(
        self, stretches: Sequence[Stretch], names: Sequence[str], as_of: datetime | None = None, /
    ) -> Columns:
        return many_series.bar_columns(self.connection, self._stored(stretches), names, as_of, packed=self.packed)

    def feature_columns(self, stretches: Sequence[Stretch], features: Sequence[Feature], /) -> Columns:
        return many_series.feature_columns(self.connection, self._stored(stretches), features, packed=self.packed)

    def record_columns(
        self, stretches: Sequence[Stretch], names: Sequence[str], features: Sequence[Feature], /
    ) -> Columns:
        return many_series.record_columns(self.connection, self._stored(stretches), names, features, packed=self.packed)

    def _stored(self, stretches: Sequence[Stretch]) -> Sequence[Stretch]:
        if not self.stored_as:
            return stretches
        return [
            each._replace(
                series=each.series._replace(symbol=self.stored_as.get(each.series.symbol, each.series.symbol))
            )
            for each in stretches
        ]


class Piece(NamedTuple):
    """Some rows of the answer, in its order, and how many of the requested series are read with it."""

    rows: Rows
    series_read: int


def pieces(selection: Selection, settings: Settings, rows: int | None = None) -> Iterator[Piece]:
    """Yield the selected rows in pieces of about `rows`, or of what reads best; at least one piece, which may be empty.

    Raises:
        UsageError: a symbol that is not tracked.
        ConfigurationError, DatabaseUnavailableError: see `connections.snapshot`.
    """
    instant = selection.as_of or settings.clock()
    with snapshot(settings, lambda connection: _held(selection, connection)) as (connection, look):
        held, stored_as, splits = look
        actions = stored_actions(selection, connection, stored_as, splits)
        read = 0
        rows = rows or _best_rows(selection, connection, held)
        for batch in _batches(selection, _stretches(selection, held, rows), held, rows):
            worth = sum(_expected(selection, stretch, held) for stretch in batch) >= _WORTH_PACKED
            found = rows_of(_Database(connection, stored_as, worth), selection, batch, actions, instant)
            read += sum(stretch.end == selection.interval(stretch.series.symbol)[1] for stretch in batch)
            yield Piece(found, read)


def _best_rows(selection: Selection, connection: StoreConnection, held: dict[Series, Held]) -> int:
    """Return the size of pieces that costs the server as much memory as PIECE_ROWS of rows that are not packed."""
    series = selection.series()
    asked = sum(_expected(selection, Stretch(one, *selection.interval(one.symbol)), held) for one in series)
    if asked <= PIECE_ROWS or selection.as_of is not None:
        return PIECE_ROWS
    share = many_series.packed_rows(connection, list(held)) / sum(state.bar_count for state in held.values())
    return min(round(PIECE_ROWS / max(1 - share, 0.01)), _MOST_PIECE_ROWS)


def stored_actions(
    selection: Selection,
    connection: StoreConnection,
    stored_as: Mapping[str, str] = MappingProxyType({}),
    splits: Mapping[str, Sequence[Split]] | None = None,
) -> dict[str, Actions]:
    """Return what the bars of each symbol are adjusted for; symbols without anything are left out.

    `stored_as` is the symbol under which a ticker is stored, where that is another one; `splits` are theirs, if they
    are known already.
    """
    if not _is_adjusted(selection):
        return {}
    symbols = {symbol: stored_as.get(symbol, symbol) for symbol in selection.symbols}
    if splits is None:
        splits = many_series.splits_of(connection, list(symbols.values()), selection.as_of)
    dividends = {}
    if selection.adjustment is Adjustment.ALL:
        dividends = dividends_of(connection, list(symbols.values()), selection.as_of)
    return {
        symbol: Actions(splits.get(stored, ()), dividends.get(stored, ()))
        for symbol, stored in symbols.items()
        if stored in splits or stored in dividends
    }


def _is_adjusted(selection: Selection) -> bool:
    return selection.adjustment is not Adjustment.RAW and bool(selection.bars)


class _Look(NamedTuple):
    """What is known before rows are read: by series, by ticker that a security had once, and by stored symbol."""

    held: dict[Series, Held]
    stored_as: dict[str, str]
    splits: dict[str, list[Split]]


def _held(selection: Selection, connection: StoreConnection) -> _Look:
    """Return what is held of each series, under which symbol, and its splits where they are needed."""
    from market_data_pipeline.store.securities import followed_as
    from market_data_pipeline.store.universe import known_symbols

    timeframes, adjusted = selection.stored_timeframes(), _is_adjusted(selection)
    found, splits = many_series.held_and_splits(
        connection, selection.symbols, timeframes, splits=adjusted, known_at=selection.as_of
    )
    others = [symbol for symbol in selection.symbols if symbol not in found]
    stored_as = followed_as(connection, others, selection.as_of) if others else {}
    if stored_as:
        stored, more = many_series.held_and_splits(
            connection, list(stored_as.values()), timeframes, splits=adjusted, known_at=selection.as_of
        )
        splits |= more
        found |= {symbol: stored[other] for symbol, other in stored_as.items()}
    for symbol in selection.symbols:
        if symbol not in found:
            known = known_symbols(connection, [symbol])
            hint = f"did you mean {min(known)}?" if known else f"`market-data universe add {symbol}` adds it."
            raise UsageError(f"{symbol[:40]!r} is not tracked here; {hint}")
    held = {
        Series(symbol, timeframe): state
        for symbol, of_symbol in found.items()
        for timeframe, state in of_symbol.items()
    }
    return _Look(held, stored_as, splits)


def _stretches(selection: Selection, held: dict[Series, Held], rows: int) -> Iterator[Stretch]:
    """Yield each series in its order, one of more than `rows` as several stretches of equal time."""
    for series in selection.series():
        first, end = selection.interval(series.symbol)
        whole, stored = Stretch(series, first, end), selection.read_as(series)
        parts = -(-_estimate(stored, whole, held) // rows)
        if parts < 2:
            yield whole
            continue
        begins, ends = _overlap(first, end, held[stored])
        cuts = [first, *(begins + (ends - begins) * part / parts for part in range(1, parts)), end]
        yield from (Stretch(series, *pair) for pair in pairwise(cuts))


def _batches(
    selection: Selection, stretches: Iterable[Stretch], held: dict[Series, Held], rows: int
) -> Iterator[list[Stretch]]:
    """Yield consecutive stretches that are expected to have `rows` rows together, and at least one."""
    batch: list[Stretch] = []
    size = 0
    for stretch in stretches:
        expected = _expected(selection, stretch, held)
        if batch and size + expected > rows:
            yield batch
            batch, size = [], 0
        batch.append(stretch)
        size += expected
    yield batch


def _expected(selection: Selection, stretch: Stretch, held: dict[Series, Held]) -> int:
    """Return how many rows a stretch has in the series that it is read from."""
    return _estimate(selection.read_as(stretch.series), stretch, held)


def _estimate(series: Series, stretch: Stretch, held: dict[Series, Held]) -> int:
    state = held.get(series)
    return 0 if state is None else expected_rows(state, stretch.start, stretch.end)


class _State(Protocol):
    """The first and last bar start of a series, and the number of its bars."""

    @property
    def first_ts(self) -> datetime | None: ...
    @property
    def last_ts(self) -> datetime | None: ...
    @property
    def bar_count(self) -> int: ...


def expected_rows(state: _State, start: datetime, end: datetime) -> int:
    """Return how many rows a series has in [start, end) if they lie evenly in time."""
    if state.first_ts is None or state.last_ts is None:
        return 0
    begins, ends = _overlap(start, end, state)
    span = state.last_ts - state.first_ts
    return round(state.bar_count * ((ends - begins) / span)) if span and ends > begins else 1


def _overlap(start: datetime, end: datetime, state: _State) -> tuple[datetime, datetime]:
    return max(start, state.first_ts or start), min(end, state.last_ts or end)


def rows_of(
    source: RowSource,
    selection: Selection,
    batch: Sequence[Stretch],
    actions: Mapping[str, Actions],
    instant: datetime,
) -> Rows:
    """Return the selected rows of a batch as of `instant`: adjusted, and features beside their bars."""
    series, today = [stretch.series for stretch in batch], exchange_date(instant)
    if selection.session == "extended":
        return Rows(series, *_stored(source, selection, batch, actions, today))
    parts = []
    # By timeframe, because 5m bars of a series may be asked for, and 1h bars that are made of them.
    for timeframe in dict.fromkeys(one.timeframe for one in series):
        places = [place for place, one in enumerate(series) if one.timeframe is timeframe]
        asked = [batch[place] for place in places]
        read = [stretch_to_read(stretch) for stretch in asked]
        found = _stored(source, replace(selection, bars=columns_to_read(selection.bars)), read, actions, today)
        parts.append((places, regular_rows(found, asked, selection.columns, instant)))
    return Rows(series, *_in_places(parts, selection.columns))


def _in_places(parts: Sequence[tuple[Sequence[int], Columns]], names: Sequence[str]) -> Columns:
    """Return the rows of parts of a batch, of which each has the series in its places, in the batch's order."""
    import numpy as np

    if len(parts) == 1:
        return parts[0][1]
    at = np.concatenate([np.array(places, "int32")[part.at] for places, part in parts])
    order = np.argsort(at, kind="stable")

    def ordered(name: str) -> object:
        columns = [part.values[name] for _, part in parts]
        if isinstance(columns[0], list):
            joined = [value for column in columns for value in column]
            return [joined[place] for place in order]
        return np.concatenate(columns)[order]

    ts = np.concatenate([part.ts for _, part in parts])[order]
    return Columns(at[order], ts, {name: ordered(name) for name in names})


def _stored(
    source: RowSource,
    selection: Selection,
    batch: Sequence[Stretch],
    actions: Mapping[str, Actions],
    today: date,
) -> Columns:
    """Return the stored rows of a batch, adjusted, and features beside their bars."""
    if selection.kind == "features":
        return source.feature_columns(batch, selection.features)
    if not selection.features:
        found = source.bar_columns(batch, selection.bars, selection.as_of)
    elif selection.as_of is None:
        found = source.record_columns(batch, selection.bars, selection.features)
    else:
        found = beside(
            source.bar_columns(batch, selection.bars, selection.as_of),
            source.feature_columns(batch, selection.features),
        )
    # Volume divides and prices multiply by a factor of their own row, so that one column alone is adjusted as all are.
    _adjust(found, batch, actions, today)
    return found


def _adjust(bars: Columns, batch: Sequence[Stretch], actions: Mapping[str, Actions], today: date) -> None:
    """Adjust the values of the series that have splits or dividends, in place."""
    import numpy as np

    for position, stretch in enumerate(batch):
        if (known := actions.get(stretch.series.symbol)) is None:
            continue
        rows = slice(*np.searchsorted(bars.at, np.array([position, position + 1], bars.at.dtype)))
        shares = price_factor(bars.ts[rows], known.splits, today)
        factor = shares * dividend_factor(bars.ts[rows], known.dividends, today)
        if (factor == 1.0).all():
            continue
        for name in bars.values.keys() & {*PRICES, "vwap", "volume"}:
            if not bars.values[name].flags.writeable:  # a view of a file's columns
                bars.values[name] = bars.values[name].copy()
            if name == "volume":
                bars.values[name][rows] /= shares
            else:
                bars.values[name][rows] *= factor
