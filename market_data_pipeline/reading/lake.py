"""Rows of many series from the lake, in the form of those from the database.

The lake answers from what it holds, without the database. `auto` asks the database whether the lake has exactly what it
has itself of the series that are asked for, and takes the lake where that is nearer.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.adjustments import Actions, Adjustment, with_closes
from market_data_pipeline.domain.calendar import calendar_for, exchange_date, from_us
from market_data_pipeline.domain.errors import PipelineError, UsageError
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe
from market_data_pipeline.reading.connections import snapshot
from market_data_pipeline.reading.database import PIECE_ROWS, Piece, expected_rows, rows_of, stored_actions
from market_data_pipeline.reading.selection import BEGINNING, END
from market_data_pipeline.store.many_series import Stretch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import date

    from market_data_pipeline.lake.read import LakeReader
    from market_data_pipeline.lake.tables import LakeTable
    from market_data_pipeline.reading.selection import Selection
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.changes import StoredSeries

# The database returns fewer rows before the lake's files are opened.
NEAR_ROWS: Final = PIECE_ROWS
_INSTANT: Final = timedelta(microseconds=1)


class OpenLake(NamedTuple):
    """A lake that is read from, and what the bars of each symbol are adjusted for."""

    reader: LakeReader
    actions: Mapping[str, Actions]


def pieces(selection: Selection, settings: Settings, opened: OpenLake, rows: int | None) -> Iterator[Piece]:
    """Yield the selected rows in pieces of whole series, of about `rows` rows unless that is None; at least one."""
    instant = selection.as_of or settings.clock()
    series = selection.series()
    size = len(series) if rows is None else max(1, rows * len(series) // max(1, _rows_held(selection, opened.reader)))
    for begin in range(0, len(series), size):
        batch = [Stretch(one, *selection.interval(one.symbol)) for one in series[begin : begin + size]]
        found = rows_of(opened.reader, selection, batch, opened.actions, instant)
        yield Piece(found, begin + len(batch))


def open_lake(selection: Selection, settings: Settings) -> OpenLake:
    """Return the lake for a selection that is to be read from it and from nothing else.

    Raises:
        UsageError: it lacks one of the series, or does not reach up to the end that was asked for.
        ConfigurationError: its place cannot be used.
    """
    try:
        reader = _reader(settings)
    except ModuleNotFoundError:
        from market_data_pipeline.lake.location import INSTALL

        raise UsageError(f"source='lake' needs deltalake: {INSTALL}.") from None
    reader.stored_as = _stored_as(selection, reader)
    for one in _tables(selection):
        _refuse_missing(selection, reader, one)
    if selection.adjustment is Adjustment.ALL and selection.bars:
        _refuse_without_closes(selection, reader)
    today = exchange_date(selection.as_of or settings.clock())
    return OpenLake(reader, _held_actions(selection, reader, today))


def _stored_as(selection: Selection, reader: LakeReader) -> dict[str, str]:
    """Return by ticker, of those that no table read holds, the symbol of the security that had it.

    What was known of tickers at an instant is not in the lake.
    """
    held = [reader.state(one).series for one in _tables(selection)]
    others = [symbol for symbol in selection.symbols if not any(symbol in series for series in held)]
    if not others or selection.as_of is not None:
        return {}
    known = reader.tickers()
    return {symbol: known[symbol] for symbol in others if symbol in known}


def _held_actions(selection: Selection, reader: LakeReader, today: date) -> dict[str, Actions]:
    """Return what `stored_actions` does, from the lake alone."""
    if selection.adjustment is Adjustment.RAW or not selection.bars:
        return {}
    splits = reader.splits_of(selection.symbols, selection.as_of)
    paid = {}
    if selection.adjustment is Adjustment.ALL:
        paid = reader.dividends_of(selection.symbols, selection.as_of)
    stretches = [Stretch(Series(symbol, Timeframe.D1), BEGINNING, END) for symbol in paid]
    closes = reader.bar_columns(stretches, ["close"], selection.as_of) if stretches else None
    found = {symbol: Actions(splits[symbol]) for symbol in splits}
    for at, (symbol, amounts) in enumerate(paid.items()):
        _refuse_later(reader, symbol, [ex_date for ex_date, _ in amounts if ex_date <= today])
        assert closes is not None  # noqa: S101 - there are stretches
        known, rows = splits.get(symbol, ()), closes.at == at
        found[symbol] = Actions(known, with_closes(amounts, known, closes.ts[rows], closes.values["close"][rows]))
    return found


def nearer_lake(selection: Selection, settings: Settings) -> OpenLake | None:
    """Return the lake if it answers sooner than the database, with the same rows; None to read from the database.

    That is: it is a folder of this machine, the selection is large, and no series of it has changed since the sync.
    """
    from market_data_pipeline.store.changes import stored_series

    try:
        reader = _reader(settings)
        if reader.lake.local is None or not reader.lake.local.exists():
            return None
        with snapshot(
            settings, lambda connection: stored_series(connection, selection.stored_timeframes(), selection.symbols)
        ) as (connection, stored):
            if _rows_asked(selection, stored) < NEAR_ROWS:
                return None
            actions = stored_actions(selection, connection)
        if all(_is_same(selection, reader, one, stored) for one in _tables(selection)):
            return OpenLake(reader, actions)
    except (PipelineError, ModuleNotFoundError):
        pass
    return None


def _reader(settings: Settings) -> LakeReader:
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.read import LakeReader

    return LakeReader(Lake.of(settings))


def _tables(selection: Selection) -> list[LakeTable]:
    """Return the tables that a selection is read from."""
    from market_data_pipeline.lake.tables import Kind, LakeTable

    kinds = [Kind.FEATURES] if selection.kind == "features" else [Kind.BARS]
    if selection.kind == "records" and selection.features:
        kinds.append(Kind.FEATURES)
    if selection.as_of is not None:
        kinds.append(Kind.REVISIONS)
    return [LakeTable(kind, timeframe) for kind in kinds for timeframe in selection.stored_timeframes()]


def _rows_held(selection: Selection, reader: LakeReader) -> int:
    """Return about how many rows the selected series have."""
    held = 0
    for one in _tables(selection):
        state = reader.state(one)
        held += reader.rows(one) * len(selection.symbols) // max(1, len(state.series))
    return held


def _rows_asked(selection: Selection, stored: Mapping[Series, StoredSeries]) -> int:
    """Return about how many rows are read of what the database holds."""
    asked = 0
    for one in map(selection.read_as, selection.series()):
        if (state := stored.get(one)) is not None:
            asked += expected_rows(state, *selection.interval(one.symbol))
    return asked


def _refuse_without_closes(selection: Selection, reader: LakeReader) -> None:
    """Refuse a lake without the day bars of a symbol: dividends are a part of their closes."""
    from market_data_pipeline.lake.tables import Kind, LakeTable

    days = LakeTable(Kind.BARS, Timeframe.D1)
    if absent := [symbol for symbol in selection.symbols if reader.held(days, symbol) is None]:
        raise UsageError(
            f"The lake at {reader.lake.url} holds no {days.name} of {absent[0][:40]!r}, by whose closes dividends are "
            "applied; `market-data lake sync` adds them, and source='database' reads from there."
        )


def _refuse_later(reader: LakeReader, symbol: str, ex_dates: list[date]) -> None:
    """Refuse a lake that has not got the close before a dividend that is in force."""
    from market_data_pipeline.lake.tables import Kind, LakeTable

    held = reader.held(LakeTable(Kind.BARS, Timeframe.D1), symbol)
    assert held is not None  # noqa: S101 - `_refuse_without_closes`
    until = from_us(held.until_us)
    for ex_date in ex_dates:
        if calendar_for(AssetClass.US_EQUITY).previous_session(ex_date).day_start >= until:
            raise UsageError(
                f"The lake holds day bars of {symbol} up to {until:%Y-%m-%d %H:%MZ}, and {symbol} has a dividend of "
                f"{ex_date}, which is applied by the close before: run `market-data lake sync`, or read with "
                "source='auto'."
            )


def _refuse_missing(selection: Selection, reader: LakeReader, one: LakeTable) -> None:
    for symbol in selection.symbols:
        held = reader.held(one, symbol)
        if held is None:
            raise UsageError(
                f"The lake at {reader.lake.url} holds no {one.name} of {symbol[:40]!r}; `market-data lake sync` adds "
                "what the database has of settled days, and source='database' reads from there"
                + (", also by a name that a followed symbol had before." if selection.as_of is not None else ".")
            )
        until, end = from_us(held.until_us), selection.interval(symbol)[1]
        if selection.end is not None and end > until:
            raise UsageError(
                f"The lake holds {one.name} of {symbol} up to {until:%Y-%m-%d %H:%MZ}, and end is later: leave end out "
                "for what there is, run `market-data lake sync --until now`, or read with source='auto'."
            )


def _is_same(selection: Selection, reader: LakeReader, one: LakeTable, stored: dict[Series, StoredSeries]) -> bool:
    """Return whether a table holds of every selected series what the database does, as far as it is asked for."""
    held = reader.state(one).series
    for symbol in selection.symbols:
        ours, theirs = held.get(symbol), stored.get(Series(symbol, one.timeframe))
        if ours is None or theirs is None or ours.position != theirs.position:
            return False
        end = selection.interval(symbol)[1]
        if theirs.last_ts is not None and from_us(ours.until_us) < min(end, theirs.last_ts + _INSTANT):
            return False
    return True
