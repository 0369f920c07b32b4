"""Bars and features as pandas frames, straight from the database: for notebooks and scripts.

`read_bars` and `read_features` are what `market_data_pipeline` exports. They read the settings as every command does,
start the embedded server when that is the database and it does not run, and take what they return from one snapshot.

Frames are indexed by `ts`, the bars' START (aware, UTC, ascending), so that bars and features of a series join without
ado. For several symbols they have a first column `symbol` and hold one symbol after the other.

Add here: a way to read for people who calculate. Keep out: writing, and formats for the wire (serving).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.bars import COLUMNS
from market_data_pipeline.domain.calendar import calendar_for, exchange_date
from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError, UsageError
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import Series, asset_class_of, parse_timeframe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.arrow import ArrowReader

    When: TypeAlias = str | date | datetime

_BEGINNING: Final = datetime(1, 1, 2, tzinfo=UTC)
_END: Final = datetime(9999, 12, 30, tzinfo=UTC)

_BARS: Final = f"""
    select b.symbol, {", ".join(f"b.{name}" for name in COLUMNS)}
    from market_data.bars as b
    where b.symbol = $1 and b.timeframe = $2 and b.ts >= $3 and b.ts < $4
    order by b.ts
"""  # noqa: S608 - the names are constants of this package
_BARS_AS_OF: Final = _BARS.replace("market_data.bars as b", "market_data.bars_as_of($1, $2, $5) as b")


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
    """Return the bars of one or several symbols that start in [start, end).

    Args:
        symbol: a ticker, or several.
        timeframe: `5m`, `15m`, `1h`, `4h` or `1d`.
        start: the first bar start to include: an aware datetime, or a date (also as ISO 8601 text), which means
            midnight where the symbol trades. None: from the first bar on.
        end: bars that start at or after it are left out; as `start`. None: up to the last one.
        adjusted: prices and volume adjusted for splits, or as they were traded.
        as_of: answer with what was known at this instant: bars as they were stored then, adjusted for the splits that
            had been listed to us by then and were in force on that New York day. None: now.
        settings: of the project; None reads them from the environment and `.env`.

    Returns:
        Columns open, high, low, close, volume and vwap (float64) and trades (Int64), with `ts` as the index; no rows
        when there are none.

    Raises:
        UsageError: an unknown symbol or timeframe, a time without zone, or a range that does not start before it ends.
        ConfigurationError: the settings are bad, or the database was never set up.
        DatabaseUnavailableError: the database cannot be reached.
    """
    wanted = _Wanted(symbol, timeframe, start, end)
    known_at = None if as_of is None else _instant("as_of", as_of, None)

    def read(reader: ArrowReader, now: datetime, series: Series) -> pa.Table:
        between = wanted.between(series)
        if known_at is None:
            bars = reader.arrow(_BARS, series.symbol, str(series.timeframe), *between)
        else:
            bars = reader.arrow(_BARS_AS_OF, series.symbol, str(series.timeframe), *between, known_at)
        return _adjusted(reader, bars, series.symbol, known_at, now) if adjusted else bars

    return _read(wanted, settings, read)


def read_features(
    symbol: str | Sequence[str],
    timeframe: str,
    start: When | None = None,
    end: When | None = None,
    *,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Return the features of one or several symbols' bars that start in [start, end).

    The arguments and what is raised are those of `read_bars`.

    Returns:
        The 17 features and the project's own ones, with `ts` as the index. Floats are float64 with NaN for NULL,
        booleans pandas `boolean` with NA, texts a `category` over their labels (own texts without labels: `str`).
    """
    from market_data_pipeline.ingest.own_features import load_own_features
    from market_data_pipeline.settings import load_settings
    from market_data_pipeline.store.features import feature_columns

    wanted = _Wanted(symbol, timeframe, start, end)
    settings = settings or load_settings()
    own = load_own_features(settings).declarations
    statement = f"""
        select f.symbol, f.ts, {feature_columns(own, "f")}
        from market_data.features as f
        where f.symbol = $1 and f.timeframe = $2 and f.ts >= $3 and f.ts < $4
        order by f.ts
    """  # noqa: S608 - names of columns, checked when they were declared
    labels = {feature.name: feature.labels for feature in (*FEATURES, *own) if feature.labels}

    def read(reader: ArrowReader, _now: datetime, series: Series) -> pa.Table:
        return reader.arrow(statement, series.symbol, str(series.timeframe), *wanted.between(series))

    return _read(wanted, settings, read, labels)


class _Wanted:
    """Which bars are asked for, checked as far as it goes without the database."""

    def __init__(self, symbol: str | Sequence[str], timeframe: str, start: When | None, end: When | None) -> None:
        self.several = not isinstance(symbol, str)
        symbols = [symbol] if isinstance(symbol, str) else list(symbol) if isinstance(symbol, Iterable) else []
        if not symbols or not all(isinstance(one, str) for one in symbols):
            raise UsageError("Name at least one symbol: 'AAPL', or ['AAPL', 'MSFT'].")
        frame = parse_timeframe(timeframe)
        self.series = [Series(one, frame) for one in dict.fromkeys(symbols)]
        self.start, self.end = start, end
        for series in self.series:
            if start is not None and end is not None and self.between(series)[0] >= self.between(series)[1]:
                raise UsageError(f"start has to lie before end: {start} does not lie before {end}.")

    def between(self, series: Series) -> tuple[datetime, datetime]:
        """Return the range as instants; a date depends on where the symbol trades."""
        return (
            _BEGINNING if self.start is None else _instant("start", self.start, series),
            _END if self.end is None else _instant("end", self.end, series),
        )


def _instant(what: str, value: When, series: Series | None) -> datetime:
    """Return an aware UTC instant; dates are midnight where `series` trades and refused without one."""
    example = "2026-01-05" if series is not None else "2026-01-05T20:00:00Z"
    moment: date | datetime = value if not isinstance(value, str) else _parsed(what, value, example)
    if not isinstance(moment, datetime):
        if not isinstance(moment, date) or series is None:
            raise UsageError(f"{what} {value!r} is not an instant; write it with its zone, for example {example}.")
        moment = datetime.combine(moment, time(), calendar_for(asset_class_of(series.symbol)).tz)
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise UsageError(f"{what} {value!r} does not say which zone it means; add tzinfo, for example timezone.utc.")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{what} {value!r} lies outside the years 1 to 9999.") from None


def _parsed(what: str, text: str, example: str) -> date | datetime:
    try:
        return date.fromisoformat(text) if len(text) <= len("2026-01-05") else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{what} {text!r} is not an ISO 8601 date or instant such as {example}.") from None


def _read(
    wanted: _Wanted,
    settings: Settings | None,
    read: Callable[[ArrowReader, datetime, Series], pa.Table],
    labels: dict[str, tuple[str, ...]] | None = None,
) -> pd.DataFrame:
    import pyarrow as pa

    from market_data_pipeline.settings import load_settings

    settings = settings or load_settings()
    now = settings.clock()
    with _connected(settings) as reader:
        reader.execute("set transaction isolation level repeatable read, read only")
        _check_symbols(reader, [series.symbol for series in wanted.series])
        tables = [read(reader, now, series) for series in wanted.series]
    table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    order = tuple(series.symbol for series in wanted.series)
    return _frame(table, {**(labels or {}), "symbol": order}, several=wanted.several)


def _connected(settings: Settings) -> ArrowReader:
    """Return a connection to a database with our schema; the embedded server is started, and set up, if need be."""
    from market_data_pipeline.store.arrow import ArrowReader

    embedded = settings.embedded_database
    try:
        reader = ArrowReader(settings.database_url, settings.as_of)
    except DatabaseUnavailableError:
        if not embedded:
            raise
        return _set_up(settings)
    if reader.rows("select to_regclass('market_data.features') is not null as there")[0]["there"]:
        reader.rollback()
        return reader
    reader.close()
    if not embedded:
        raise ConfigurationError("The database holds no market data yet: run `market-data migrate`, then a backfill.")
    return _set_up(settings)


def _set_up(settings: Settings) -> ArrowReader:
    from market_data_pipeline.runtime.database import migrate_database
    from market_data_pipeline.store.arrow import ArrowReader

    migrate_database(settings)
    return ArrowReader(settings.database_url, settings.as_of)


def _check_symbols(reader: ArrowReader, symbols: list[str]) -> None:
    known = reader.rows(
        """
        select symbol from market_data.symbols
        where upper(symbol) = any(select upper(unnest($1::text[])))
        """,
        symbols,
    )
    held = {row["symbol"] for row in known}
    for symbol in symbols:
        if symbol not in held:
            similar = next((one for one in sorted(held) if one.upper() == symbol.upper()), None)
            hint = f"did you mean {similar}?" if similar else f"`market-data universe add {symbol}` adds it."
            raise UsageError(f"{symbol[:40]!r} is not tracked here; {hint}")


def _adjusted(reader: ArrowReader, bars: pa.Table, symbol: str, known_at: datetime | None, now: datetime) -> pa.Table:
    """Return `bars` adjusted for the splits known and in force at `known_at`, or `now`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from market_data_pipeline.domain.adjustments import price_factor
    from market_data_pipeline.store.reference import read_splits

    splits = read_splits(reader, symbol, known_at)
    today = exchange_date(known_at or now)
    starts = bars["ts"].cast(pa.timestamp("us", tz="UTC")).to_numpy().astype("datetime64[us]").view("int64")
    factor = price_factor(starts, splits, today)
    if np.all(factor == 1.0):
        return bars
    for name in ("open", "high", "low", "close", "vwap", "volume"):
        change = pc.divide if name == "volume" else pc.multiply
        bars = bars.set_column(bars.column_names.index(name), name, change(bars[name], factor))
    return bars


def _frame(table: pa.Table, labels: dict[str, tuple[str, ...]], *, several: bool) -> pd.DataFrame:
    """Return a table as a frame indexed by `ts`; `labels` are the categories of its text columns."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if not several:
        table = table.drop_columns(["symbol"])
    texts = [name for name in table.column_names if name in labels]
    frame: pd.DataFrame = table.drop_columns(texts).to_pandas(
        types_mapper={pa.bool_(): pd.BooleanDtype(), pa.int64(): pd.Int64Dtype()}.get, split_blocks=True
    )
    for name in texts:
        codes = pc.fill_null(pc.index_in(table[name], pa.array(labels[name], pa.string())), -1).to_numpy()
        column = pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(list(labels[name]))))
        frame.insert(table.column_names.index(name), name, column)
    return frame.set_index("ts")
