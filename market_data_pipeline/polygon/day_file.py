"""Read one flat file: a day of the whole market, checked row by row, as 5m bars or day bars by ticker.

What is wrong with a row spoils its ticker's day and nothing else; an exact repeat of a row is left out. A file is
refused whole when it is cut short, is no CSV with the vendor's columns, or holds another day.

Keep out: where files come from (flat_files) and what becomes of a refused day (ingest).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from market_data_pipeline.domain.bars import VALUES
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.domain.resample import aggregated
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.polygon.flat_files import Dataset
from market_data_pipeline.polygon.rows import optional_rules, price_rules, shown, when

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from market_data_pipeline.domain.calendar import Session

COLUMNS: Final = ("ticker", "volume", "open", "close", "high", "low", "window_start", "transactions")
_NUMBERS: Final = ("open", "high", "low", "close", "volume", "transactions")
_MINUTE_US: Final = 60_000_000
_FIVE_US: Final = 5 * _MINUTE_US
_MICRO: Final = 1e6  # fractions of a share are added as whole millionths, exactly, as the vendor's own bars show them
_VWAP, _TRADES = VALUES.index("vwap"), VALUES.index("trades")


@dataclass(frozen=True, slots=True)
class DayBars:
    """The bars of one file.

    Attributes:
        tickers: those with usable rows, sorted.
        offsets: where each ticker's bars begin, and the end; one more than tickers.
        ts_us: starts of the bars, int64 microseconds since 1970 UTC; ascending for each ticker.
        values: a row of float64 for each of `domain.bars.VALUES`; vwap is NaN.
        inside: which bars lie in a session.
        refused: by ticker, why its day cannot be used: the row and what is wrong with it.
        odd: by ticker, what was taken in although it was odd.
    """

    tickers: tuple[str, ...]
    offsets: np.ndarray
    ts_us: np.ndarray
    values: np.ndarray
    inside: np.ndarray
    refused: Mapping[str, str] = field(default_factory=dict)
    odd: Mapping[str, str] = field(default_factory=dict)


def read_day(file: Path, dataset: Dataset, session: Session, name: str) -> DayBars:
    """Return the bars of a gzipped file: 5m bars of minutes, or day bars.

    Args:
        file: a local copy.
        dataset: what it holds.
        session: the day that it should hold.
        name: of the file, in messages.

    Raises:
        DataError: the file as a whole cannot be used.
    """
    table, flaws = _table(file, name)
    return _Day(table, flaws, dataset, session, name).bars()


def _table(file: Path, name: str) -> tuple[pa.Table, dict[str, str]]:
    """Return the file's columns, and what is wrong with rows that cannot be read, by ticker."""
    import pyarrow as pa
    from pyarrow import csv

    flaws: dict[str, str] = {}

    def malformed(row: csv.InvalidRow) -> str:
        ticker = row.text.partition(",")[0]
        what = f"a row has {row.actual_columns} values instead of {row.expected_columns}: {row.text[:120]!r}"
        flaws.setdefault(ticker, f"{name}: {what}")
        return "skip"

    parse = csv.ParseOptions(invalid_row_handler=malformed)
    types = {"ticker": pa.dictionary(pa.int32(), pa.string()), "window_start": pa.int64()}
    types |= dict.fromkeys(_NUMBERS, pa.float64())
    convert = {"include_columns": list(COLUMNS), "null_values": [""], "strings_can_be_null": False}
    try:
        return csv.read_csv(
            file, parse_options=parse, convert_options=csv.ConvertOptions(column_types=types, **convert)
        ), flaws
    except pa.ArrowInvalid as error:
        if "conversion error" not in str(error):
            raise _unusable(name, error) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unusable(name, error) from None
    # A value is no number: everything as text, and the rows with one are found.
    flaws.clear()
    texts = dict.fromkeys(COLUMNS, pa.string())
    try:
        table = csv.read_csv(
            file, parse_options=parse, convert_options=csv.ConvertOptions(column_types=texts, **convert)
        )
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unusable(name, error) from None
    return _converted(table, name, flaws), flaws


def _unusable(name: str, error: BaseException) -> DataError:
    what = " ".join(str(error).split())[:200].rstrip(".")
    return DataError(f"{name} cannot be used ({what}); it should be gzipped CSV with the columns {','.join(COLUMNS)}.")


def _converted(table: pa.Table, name: str, flaws: dict[str, str]) -> pa.Table:
    """Return a table of texts as numbers, without the rows that hold something else, which `flaws` names."""
    import pandas as pd
    import pyarrow as pa

    frame = table.to_pandas()
    bad = np.zeros(len(frame), dtype=bool)
    columns: dict[str, Any] = {}
    for column in ("window_start", *_NUMBERS):
        text = frame[column].astype("object")
        numbers = pd.to_numeric(text, errors="coerce")
        given = text.notna() & (text != "")
        wrong = (given if column != "window_start" else np.ones(len(frame), dtype=bool)) & numbers.isna()
        for at in np.flatnonzero(wrong.to_numpy())[:1000].tolist():
            flaws.setdefault(
                str(frame["ticker"].iloc[at]),
                f"{name}, row {at + 2}, column {column}: {str(text.iloc[at])[:60]!r} is not a number",
            )
        bad |= wrong.to_numpy()
        columns[column] = numbers
    kept = ~bad
    made = {column: numbers[kept].astype("float64").to_numpy() for column, numbers in columns.items()}
    made["window_start"] = columns["window_start"][kept].astype("int64").to_numpy()
    tickers = pa.array(frame["ticker"][kept].astype("object"), pa.string()).dictionary_encode()
    return pa.table({"ticker": tickers, **made})


class _Day:
    """The rows of one file in order, and what is found to be wrong with them, step by step."""

    def __init__(self, table: pa.Table, flaws: dict[str, str], dataset: Dataset, session: Session, name: str) -> None:
        self.dataset, self.session, self.name = dataset, session, name
        self.refused = dict(flaws)
        self.odd: dict[str, str] = {}
        codes, self.tickers = _codes(table)
        ts_us = -(-table.column("window_start").to_numpy() // 1000)  # rounded up, so that no fraction gets on the grid
        trades = table.column("transactions").to_numpy(zero_copy_only=False)
        columns = [table.column(column).to_numpy(zero_copy_only=False) for column in _NUMBERS[:-1]]
        values = np.stack([*columns, np.full(len(ts_us), np.nan), trades])
        self._check_day(ts_us)
        ordered = (codes[1:] > codes[:-1]) | ((codes[1:] == codes[:-1]) & (ts_us[1:] > ts_us[:-1]))
        if not ordered.all():
            order = np.lexsort((ts_us, codes))
            codes, ts_us, values = codes[order], ts_us[order], values[:, order]
        self.codes, self.ts_us, self.values = codes, ts_us, values

    def bars(self) -> DayBars:
        """Return the usable bars and what is wrong with the others."""
        self._leave_out_repeats()
        self._judge()
        bad = {ticker: code for code, ticker in enumerate(self.tickers) if ticker in self.refused}
        if bad:
            self._keep(~np.isin(self.codes, np.array(list(bad.values()))))
        if self.dataset is Dataset.MINUTES:
            self._to_five_minutes()
        present, first = np.unique(self.codes, return_index=True)
        calendar = calendar_for(AssetClass.US_EQUITY)
        timeframe = Timeframe.D1 if self.dataset is Dataset.DAYS else Timeframe.M5
        return DayBars(
            tuple(self.tickers[code] for code in present.tolist()),
            np.append(first, len(self.codes)).astype("int64"),
            self.ts_us,
            self.values,
            calendar.in_session(timeframe, self.ts_us),
            self.refused,
            self.odd,
        )

    def _check_day(self, ts_us: np.ndarray) -> None:
        start, end = to_us(self.session.day_start), to_us(self.session.day_end)
        if not len(ts_us):
            raise DataError(f"{self.name} has no rows; it should hold the market's bars of {self.session.date}.")
        within = (ts_us >= start) & (ts_us < end)
        if within.sum() * 2 < len(ts_us):
            first = int(ts_us[np.argmin(within)])
            raise DataError(
                f"{self.name} holds another day than {self.session.date}: {int((~within).sum())} of {len(ts_us)} rows, "
                f"the first of {_shown_time(first)}."
            )

    def _leave_out_repeats(self) -> None:
        same = (self.codes[1:] == self.codes[:-1]) & (self.ts_us[1:] == self.ts_us[:-1])
        if not same.any():
            return
        earlier, later = self.values[:, :-1][:, same], self.values[:, 1:][:, same]
        equal = ((earlier == later) | (np.isnan(earlier) & np.isnan(later))).all(axis=0)
        at = np.flatnonzero(same) + 1
        for row in at[~equal].tolist():
            self._refuse(row, f"{when(int(self.ts_us[row]))} comes twice, with different values")
        for code, count in zip(*np.unique(self.codes[at[equal]], return_counts=True), strict=True):
            rows = "a row" if count == 1 else f"{count} rows"
            self.odd[self.tickers[code]] = (
                f"{self.name}: {rows} of {self.tickers[code]} came twice with the same values."
            )
        keep = np.ones(len(self.codes), dtype=bool)
        keep[at] = False
        self._keep(keep)

    def _judge(self) -> None:
        """Note the rows that break a rule, and forget optional values that break one."""
        start, end = to_us(self.session.day_start), to_us(self.session.day_end)
        for row in np.flatnonzero((self.ts_us < start) | (self.ts_us >= end)).tolist():
            self._refuse(row, f"{_shown_time(int(self.ts_us[row]))} is not on {self.session.date}")
        off = self.ts_us != start if self.dataset is Dataset.DAYS else self.ts_us % _MINUTE_US != 0
        for row in np.flatnonzero(off).tolist():
            unit = "day" if self.dataset is Dataset.DAYS else "minute"
            self._refuse(row, f"{_shown_time(int(self.ts_us[row]))} is not the start of a {unit}")
        for rule, broken in price_rules(self.values):
            for row in np.flatnonzero(broken).tolist():
                self._refuse(row, f"{rule}: {shown(self.values, row)}")
        for rule, broken in optional_rules(self.values):
            if broken.any():
                self.values[_TRADES, broken] = np.nan
                for code in np.unique(self.codes[broken]).tolist():
                    self.odd.setdefault(self.tickers[code], f"{self.name}: {rule}; it is stored as unknown.")

    def _to_five_minutes(self) -> None:
        # One key for ticker and slot, so that all tickers are aggregated at once.
        slots = self.codes.astype("int64") << 40 | self.ts_us // _FIVE_US
        columns = {name: row for name, row in zip(VALUES, self.values, strict=True) if name != "vwap"}
        if not len(slots):
            return
        columns["volume"] = np.rint(columns["volume"] * _MICRO)
        keys, made = aggregated(slots, columns)
        made["volume"] = made["volume"] / _MICRO
        made["vwap"] = np.full(len(keys), np.nan)
        self.codes, self.ts_us = keys >> 40, (keys & ((1 << 40) - 1)) * _FIVE_US
        self.values = np.stack([made[name] for name in VALUES])

    def _keep(self, rows: np.ndarray) -> None:
        self.codes, self.ts_us, self.values = self.codes[rows], self.ts_us[rows], self.values[:, rows]

    def _refuse(self, row: int, what: str) -> None:
        ticker = self.tickers[self.codes[row]]
        self.refused.setdefault(ticker, f"{self.name}, {ticker} {_shown_time(int(self.ts_us[row]))}: {what}")


def _codes(table: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Return each row's ticker as its place among the sorted tickers, and these."""
    import pyarrow as pa

    column = table.column("ticker").unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], pa.string()).dictionary_encode()
    names: list[str] = column.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype="int64")
    rank[order] = np.arange(len(names))
    codes = rank[column.indices.to_numpy()] if len(names) else np.empty(0, dtype="int64")
    return cast("np.ndarray", codes), [names[at] for at in order]


def _shown_time(us: int) -> str:
    try:
        return when(us)
    except (OverflowError, ValueError):
        return f"window_start {us}000"
