"""Bars and features as frames of pandas or Polars or Arrow tables: for notebooks and scripts.

`market_data_pipeline` exports the functions of this module. They read the settings as every command does, start the
embedded server if it is the database and does not run, and answer each call from one snapshot.

Frames of pandas are indexed by `ts`, the bars' START (aware, UTC, ascending), so that bars and features of a series
join. For several symbols or timeframes they have first columns `symbol` and `timeframe` and hold one series after the
other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from market_data_pipeline.reading.connections import close_connections as close_connections
from market_data_pipeline.reading.database import PIECE_ROWS
from market_data_pipeline.reading.read import Source, iterate, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from typing import Unpack

    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from market_data_pipeline.domain.adjustments import Adjusted
    from market_data_pipeline.reading.options import BarOptions, FeatureOptions, RecordOptions
    from market_data_pipeline.reading.selection import SessionHours, When
    from market_data_pipeline.settings import Settings


@overload
def read_bars(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    *, as_arrow: Literal[True], **options: Unpack[BarOptions],
) -> pa.Table: ...  # fmt: skip
@overload
def read_bars(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    *, as_polars: Literal[True], **options: Unpack[BarOptions],
) -> pl.DataFrame: ...  # fmt: skip
@overload
def read_bars(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    **options: Unpack[BarOptions],
) -> pd.DataFrame: ...  # fmt: skip
def read_bars(
    symbol: str | Iterable[str],
    timeframe: str | Iterable[str],
    start: When | None = None,
    end: When | None = None,
    *,
    adjusted: Adjusted = "splits",
    as_of: datetime | None = None,
    session: SessionHours = "extended",
    columns: Iterable[str] | None = None,
    source: Source = "auto",
    as_arrow: bool = False,
    as_polars: bool = False,
    settings: Settings | None = None,
) -> Any:
    """Return the bars of one or more series that start in [start, end).

    Args:
        symbol: a ticker, or several. One that is not followed is read if the security of a followed one had it: FB
            for META.
        timeframe: `5m`, `15m`, `1h`, `4h` or `1d`, or several.
        start: the first bar start to include: an aware datetime, or a date (also as ISO 8601 text), which means
            midnight where the symbol trades. None: from the first bar on.
        end: bars that start at or after it are left out; as `start`. None: up to the last one.
        adjusted: `splits` or True: prices and volume adjusted for splits. `all`: prices for dividends too, so that the
            returns of closes are total returns (docs/adjustments.md). `none` or False: as they were traded.
        as_of: return what was known at this instant: bars as they were stored then, adjusted for the splits and the
            dividends that the vendor had listed by then and that were in force on that New York day. None: now.
        session: `extended`, all hours, or `regular`: of US stocks and indices the bars of 09:30 to 16:00 New York (to
            13:00 on early closes). 1h and 4h bars are then made of 5m bars and start at 09:30; day bars are the same.
        columns: which columns to read, in this order; `ts`, and `symbol` and `timeframe` of several, come in any case.
        source: `database`, `lake`, or `auto`, which takes the nearer of the two that has the rows. The rows are the
            same.
        as_arrow: return an Arrow table, with `ts` as a column.
        as_polars: return a frame of Polars, with `ts` as a column; needs the extra `polars`.
        settings: the project's; None takes them from the environment and `.env`.

    Returns:
        A frame with open, high, low, close, volume and vwap (float64) and trades (Int64), and `ts` as the index; no
        rows when there are none. A list of symbols, even of one, adds the column `symbol`, a list of timeframes the
        column `timeframe`; one series follows the other in the order of the lists.

    Raises:
        UsageError: an unknown symbol, timeframe or column, a time without a time zone, or an empty range.
        ConfigurationError: the settings are wrong, or the database was never migrated.
        DatabaseUnavailableError: the database cannot be reached.

    Example:
        Apple split 7 for 1 on 2014-06-09:

        >>> from market_data_pipeline import read_bars
        >>> days = {"start": "2014-06-05", "end": "2014-06-10"}
        >>> read_bars("AAPL", "1d", **days)["close"].round(2).to_list()
        [92.48, 92.22, 93.7]
        >>> read_bars("AAPL", "1d", **days, adjusted="none")["close"].round(2).to_list()
        [647.35, 645.57, 93.7]
        >>> read_bars("AAPL", "1d", **days).index[0]
        Timestamp('2014-06-05 04:00:00+0000', tz='UTC')
        >>> read_bars("AAPL", ["1d", "4h"], **days, columns=["close"], as_arrow=True).num_rows
        15
    """
    return read(
        "bars", symbol=symbol, timeframe=timeframe, start=start, end=end, adjusted=adjusted, as_of=as_of,
        session=session, columns=columns, source=source, as_arrow=as_arrow, as_polars=as_polars, settings=settings,
    )  # fmt: skip


@overload
def read_features(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    *, as_arrow: Literal[True], **options: Unpack[FeatureOptions],
) -> pa.Table: ...  # fmt: skip
@overload
def read_features(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    *, as_polars: Literal[True], **options: Unpack[FeatureOptions],
) -> pl.DataFrame: ...  # fmt: skip
@overload
def read_features(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    **options: Unpack[FeatureOptions],
) -> pd.DataFrame: ...  # fmt: skip
def read_features(
    symbol: str | Iterable[str],
    timeframe: str | Iterable[str],
    start: When | None = None,
    end: When | None = None,
    *,
    session: SessionHours = "extended",
    columns: Iterable[str] | None = None,
    source: Source = "auto",
    as_arrow: bool = False,
    as_polars: bool = False,
    settings: Settings | None = None,
) -> Any:
    """Return the features of the bars of one or more series that start in [start, end).

    Arguments and errors are those of `read_bars`. Features are computed of all hours: `session="regular"` leaves rows
    out and changes none, and there are none of the 1h and 4h bars of regular hours.

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
    return read(
        "features", symbol=symbol, timeframe=timeframe, start=start, end=end, session=session, columns=columns,
        source=source, as_arrow=as_arrow, as_polars=as_polars, settings=settings,
    )  # fmt: skip


@overload
def read_records(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    *, as_arrow: Literal[True], **options: Unpack[RecordOptions],
) -> pa.Table: ...  # fmt: skip
@overload
def read_records(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    *, as_polars: Literal[True], **options: Unpack[RecordOptions],
) -> pl.DataFrame: ...  # fmt: skip
@overload
def read_records(
    symbol: str | Iterable[str], timeframe: str | Iterable[str], start: When | None = ..., end: When | None = ...,
    **options: Unpack[RecordOptions],
) -> pd.DataFrame: ...  # fmt: skip
def read_records(
    symbol: str | Iterable[str],
    timeframe: str | Iterable[str],
    start: When | None = None,
    end: When | None = None,
    *,
    adjusted: Adjusted = "splits",
    session: SessionHours = "extended",
    columns: Iterable[str] | None = None,
    source: Source = "auto",
    as_arrow: bool = False,
    as_polars: bool = False,
    settings: Settings | None = None,
) -> Any:
    """Return the bars of one or more series that start in [start, end), each with its features, from one snapshot.

    Arguments and errors are those of `read_bars`. There is no `as_of`: features are those of the bars as known now.

    Returns:
        The columns of `read_bars` and those of `read_features`; a bar whose features are not computed yet has nulls.

    Example:
        >>> from market_data_pipeline import read_records
        >>> read_records("AAPL", "1d", start="2014-06-05", columns=["close", "trend_direction"]).round(2)
                                   close trend_direction
        ts
        2014-06-05 04:00:00+00:00  92.48              up
        2014-06-06 04:00:00+00:00  92.22              up
        2014-06-09 04:00:00+00:00  93.70              up
    """
    return read(
        "records", symbol=symbol, timeframe=timeframe, start=start, end=end, adjusted=adjusted, session=session,
        columns=columns, source=source, as_arrow=as_arrow, as_polars=as_polars, settings=settings,
    )  # fmt: skip


def iter_bars(
    symbol: str | Iterable[str],
    timeframe: str | Iterable[str],
    start: When | None = None,
    end: When | None = None,
    *,
    rows: int = PIECE_ROWS,
    adjusted: Adjusted = "splits",
    as_of: datetime | None = None,
    session: SessionHours = "extended",
    columns: Iterable[str] | None = None,
    source: Source = "auto",
    as_arrow: bool = False,
    as_polars: bool = False,
    settings: Settings | None = None,
) -> Iterator[Any]:
    """Yield what `read_bars` returns in frames of at most `rows` rows, for more than fits into memory.

    The frames come in the order of `read_bars` and together are its answer; none is empty. They are read as they are
    asked for, from one snapshot, which stays open until the last one or until the iterator is closed. Arguments and
    errors are those of `read_bars`.

    Example:
        >>> from market_data_pipeline import iter_bars
        >>> [len(bars) for bars in iter_bars("AAPL", "1d", start="2014-06-02", rows=4)]
        [4, 2]
    """
    return iterate(
        "bars", symbol=symbol, timeframe=timeframe, start=start, end=end, rows=rows, adjusted=adjusted, as_of=as_of,
        session=session, columns=columns, source=source, as_arrow=as_arrow, as_polars=as_polars, settings=settings,
    )  # fmt: skip


def iter_features(
    symbol: str | Iterable[str],
    timeframe: str | Iterable[str],
    start: When | None = None,
    end: When | None = None,
    *,
    rows: int = PIECE_ROWS,
    session: SessionHours = "extended",
    columns: Iterable[str] | None = None,
    source: Source = "auto",
    as_arrow: bool = False,
    as_polars: bool = False,
    settings: Settings | None = None,
) -> Iterator[Any]:
    """Yield what `read_features` returns in frames of at most `rows` rows, see `iter_bars`.

    Example:
        >>> from market_data_pipeline import iter_features
        >>> sum(len(features) for features in iter_features("AAPL", "5m", rows=100, columns=["atr"]))
        536
    """
    return iterate(
        "features", symbol=symbol, timeframe=timeframe, start=start, end=end, rows=rows, session=session,
        columns=columns, source=source, as_arrow=as_arrow, as_polars=as_polars, settings=settings,
    )  # fmt: skip


def iter_records(
    symbol: str | Iterable[str],
    timeframe: str | Iterable[str],
    start: When | None = None,
    end: When | None = None,
    *,
    rows: int = PIECE_ROWS,
    adjusted: Adjusted = "splits",
    session: SessionHours = "extended",
    columns: Iterable[str] | None = None,
    source: Source = "auto",
    as_arrow: bool = False,
    as_polars: bool = False,
    settings: Settings | None = None,
) -> Iterator[Any]:
    """Yield what `read_records` returns in frames of at most `rows` rows, see `iter_bars`.

    Example:
        >>> from market_data_pipeline import iter_records
        >>> for records in iter_records("AAPL", ["1h", "1d"], start="2014-06-09", as_arrow=True):
        ...     print(records.num_rows, records.column_names[:4])
        17 ['timeframe', 'ts', 'open', 'high']
    """
    return iterate(
        "records", symbol=symbol, timeframe=timeframe, start=start, end=end, rows=rows, adjusted=adjusted,
        session=session, columns=columns, source=source, as_arrow=as_arrow, as_polars=as_polars, settings=settings,
    )  # fmt: skip
