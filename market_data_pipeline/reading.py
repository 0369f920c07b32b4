"""Bars and features as pandas frames, straight from the database: for notebooks and scripts.

`read_bars` and `read_features` are exported by `market_data_pipeline`. They read the settings as every command does,
start the embedded server if it is the database and does not run, and read from one snapshot.

Frames are indexed by `ts`, the bars' START (aware, UTC, ascending), so that bars and features of a series join. For
several symbols they have a first column `symbol` and hold one symbol after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.calendar import calendar_for, exchange_date
from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError, UsageError
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import Series, asset_class_of, parse_timeframe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.copy import StoreConnection

    When: TypeAlias = str | date | datetime

_BEGINNING: Final = datetime(1, 1, 2, tzinfo=UTC)
_END: Final = datetime(9999, 12, 30, tzinfo=UTC)


def read_bars(
    symbol: str | Sequence[str],
    timeframe: str,
    start: When | None = None,
    end: When | None = None,
    *,
    adjusted: bool = True,
    as_of: datetime | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Return the bars of one or more symbols that start in [start, end).

    Args:
        symbol: a ticker, or several.
        timeframe: `5m`, `15m`, `1h`, `4h` or `1d`.
        start: the first bar start to include: an aware datetime, or a date (also as ISO 8601 text), which means
            midnight where the symbol trades. None: from the first bar on.
        end: bars that start at or after it are left out; as `start`. None: up to the last one.
        adjusted: prices and volume adjusted for splits, or as they were traded.
        as_of: return what was known at this instant: bars as they were stored then, adjusted for the splits that the
            vendor had listed by then and that were in force on that New York day. None: now.
        settings: the project's; None reads them from the environment and `.env`.

    Returns:
        Columns open, high, low, close, volume and vwap (float64) and trades (Int64), with `ts` as the index; no rows
        when there are none.

    Raises:
        UsageError: an unknown symbol or timeframe, a time without a time zone, or an empty range.
        ConfigurationError: the settings are wrong, or the database was never migrated.
        DatabaseUnavailableError: the database cannot be reached.

    Example:
        Apple split 7 for 1 on 2014-06-09:

        >>> from market_data_pipeline import read_bars
        >>> days = {"start": "2014-06-05", "end": "2014-06-10"}
        >>> read_bars("AAPL", "1d", **days)["close"].round(2).to_list()
        [92.48, 92.22, 93.7]
        >>> read_bars("AAPL", "1d", **days, adjusted=False)["close"].round(2).to_list()
        [647.35, 645.57, 93.7]
        >>> read_bars("AAPL", "1d", **days).index[0]
        Timestamp('2014-06-05 04:00:00+0000', tz='UTC')
    """
    from market_data_pipeline.domain.adjustments import adjust
    from market_data_pipeline.store import bars as stored
    from market_data_pipeline.store.reference import read_splits

    selection = _Selection(symbol, timeframe, start, end)
    known_at = None if as_of is None else _instant("as_of", as_of, None)

    def read(connection: StoreConnection, now: datetime, series: Series) -> pd.DataFrame:
        bars = stored.read_bars(connection, series, *selection.interval(series), as_of=known_at)
        if adjusted:
            bars = adjust(bars, read_splits(connection, series.symbol, known_at), exchange_date(known_at or now))
        return bars.astype({"trades": "Int64"})

    return _read(selection, settings, read)


def read_features(
    symbol: str | Sequence[str],
    timeframe: str,
    start: When | None = None,
    end: When | None = None,
    *,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Return the features of the bars of one or more symbols that start in [start, end).

    Arguments and errors are those of `read_bars`.

    Returns:
        The 17 features and the project's own ones, with `ts` as the index. Floats are float64 with NaN for NULL,
        booleans pandas `boolean` with NA, texts a `category` over their labels (own texts without labels: `str`).

    Example:
        >>> from market_data_pipeline import read_bars, read_features
        >>> bars = read_bars("AAPL", "1d", start="2014-06-05")
        >>> features = read_features("AAPL", "1d", start="2014-06-05")
        >>> bars.join(features)[["close", "log_return", "trend_direction"]].round(4)
                                     close  log_return trend_direction
        ts
        2014-06-05 04:00:00+00:00  92.4786      0.0039              up
        2014-06-06 04:00:00+00:00  92.2243     -0.0028              up
        2014-06-09 04:00:00+00:00  93.7000      0.0159              up
    """
    from market_data_pipeline.ingest.own_features import load_own_features
    from market_data_pipeline.settings import load_settings
    from market_data_pipeline.store import features as stored

    selection = _Selection(symbol, timeframe, start, end)
    settings = settings or load_settings()
    own = load_own_features(settings).declarations

    def read(connection: StoreConnection, _now: datetime, series: Series) -> pd.DataFrame:
        first, end = selection.interval(series)
        return _frame(stored.read_features(connection, series, first, own, end=end), own)

    return _read(selection, settings, read)


class _Selection:
    """Which bars are requested, checked as far as possible without the database."""

    def __init__(self, symbol: str | Sequence[str], timeframe: str, start: When | None, end: When | None) -> None:
        self.several = not isinstance(symbol, str)
        symbols = [symbol] if isinstance(symbol, str) else list(symbol) if isinstance(symbol, Iterable) else []
        if not symbols or not all(isinstance(one, str) for one in symbols):
            raise UsageError("Name at least one symbol: 'AAPL', or ['AAPL', 'MSFT'].")
        frame = parse_timeframe(timeframe)
        self.series = [Series(one, frame) for one in dict.fromkeys(symbols)]
        self.start, self.end = start, end
        for series in self.series:
            if start is not None and end is not None and self.interval(series)[0] >= self.interval(series)[1]:
                raise UsageError(f"start must be before end: {start} is not before {end}.")

    def interval(self, series: Series) -> tuple[datetime, datetime]:
        """Return [start, end) as instants; what a date means depends on where the symbol trades."""
        return (
            _BEGINNING if self.start is None else _instant("start", self.start, series),
            _END if self.end is None else _instant("end", self.end, series),
        )


def _instant(what: str, value: When, series: Series | None) -> datetime:
    """Return an aware UTC instant; a date means midnight where `series` trades and is refused without a series."""
    example = "2026-01-05" if series is not None else "2026-01-05T20:00:00Z"
    moment: date | datetime = value if not isinstance(value, str) else _parsed(what, value, example)
    if not isinstance(moment, datetime):
        if not isinstance(moment, date) or series is None:
            raise UsageError(f"{what} {value!r} is not an instant; write it with its time zone, for example {example}.")
        moment = datetime.combine(moment, time(), calendar_for(asset_class_of(series.symbol)).tz)
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise UsageError(f"{what} {value!r} has no time zone; add tzinfo, for example timezone.utc.")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{what} {value!r} is outside the years 1 to 9999.") from None


def _parsed(what: str, text: str, example: str) -> date | datetime:
    try:
        return date.fromisoformat(text) if len(text) <= len("2026-01-05") else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{what} {text!r} is not an ISO 8601 date or instant such as {example}.") from None


def _read(
    selection: _Selection,
    settings: Settings | None,
    read: Callable[[StoreConnection, datetime, Series], pd.DataFrame],
) -> pd.DataFrame:
    """Return the frames that `read` returns for each series, one below the other, indexed by `ts`."""
    import pandas as pd

    from market_data_pipeline.settings import load_settings

    settings = settings or load_settings()
    now = settings.clock()
    symbols = [series.symbol for series in selection.series]
    with _connected(settings, symbols) as connection:
        frames = [read(connection, now, series) for series in selection.series]
    if selection.several:
        dtype = pd.CategoricalDtype(symbols)
        for code, frame in enumerate(frames):
            frame.insert(0, "symbol", pd.Series(pd.Categorical.from_codes([code] * len(frame), dtype=dtype)))
    whole = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    return whole.set_index("ts")


def _connected(settings: Settings, symbols: Sequence[str]) -> StoreConnection:
    """Return a connection with a read-only snapshot, after starting and migrating the embedded server if necessary."""
    try:
        return _snapshot(settings, symbols)
    except (DatabaseUnavailableError, ConfigurationError):
        if not settings.embedded_database:
            raise
    from market_data_pipeline.runtime.database import migrate_database

    migrate_database(settings)
    return _snapshot(settings, symbols)


def _snapshot(settings: Settings, symbols: Sequence[str]) -> StoreConnection:
    from market_data_pipeline.store.connection import Role
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.universe import known_symbols

    connection = StoreConnection(settings.database_url, settings.as_of, Role.READER)
    try:
        connection.read_only_snapshot()
        _check(symbols, known_symbols(connection, symbols))
    except BaseException:
        connection.close()
        raise
    return connection


def _check(symbols: Sequence[str], known: set[str]) -> None:
    for symbol in symbols:
        if symbol not in known:
            similar = next((one for one in sorted(known) if one.upper() == symbol.upper()), None)
            hint = f"did you mean {similar}?" if similar else f"`market-data universe add {symbol}` adds it."
            raise UsageError(f"{symbol[:40]!r} is not tracked here; {hint}")


def _frame(table: pa.Table, own: Sequence[Feature]) -> pd.DataFrame:
    """Return a table of features as a frame; a feature with labels becomes a category over them."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    labelled = [feature for feature in (*FEATURES, *own) if feature.labels]
    frame: pd.DataFrame = table.drop_columns([feature.name for feature in labelled]).to_pandas(
        types_mapper={pa.bool_(): pd.BooleanDtype()}.get, split_blocks=True
    )
    for feature in labelled:
        codes = pc.fill_null(pc.index_in(table[feature.name], pa.array(feature.labels, pa.string())), -1).to_numpy()
        column = pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(list(feature.labels))))
        frame.insert(table.column_names.index(feature.name), feature.name, column)
    return frame
