"""Recorded bars as a source: the vendor's flat files, served as they are.

A folder holds the vendor's own layout, `us_stocks_sip/day_aggs_v1/YYYY/MM/*.csv.gz` and the same below
`minute_aggs_v1`, or the short one, `day/*.csv.gz` and `minute/*.csv.gz`; files have the columns `ticker,volume,open,
close,high,low,window_start,transactions` (`window_start` in ns since 1970 UTC, a bar's start; day bars at local
midnight). Beside them may be `splits.csv` with `ticker,execution_date,split_from,split_to` and `dividends.csv` with
`ticker,ex_dividend_date,cash_amount`. Minutes are aggregated to any intraday bar; day bars come from the day files
alone: a ticker with only one kind has no bars of the other. A row that comes twice counts once, and one of two rows
that contradict each other too: the later one.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.polygon.flat_files import MARKET
from market_data_pipeline.sandbox.bars import NO_BARS, Bars, DividendRow, SplitRow, to_step
from market_data_pipeline.sandbox.view import Security

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_FOLDERS: Final = {kind: (kind, f"{MARKET}/{kind}_aggs_v1", f"{kind}_aggs_v1") for kind in ("day", "minute")}
_NUMBERS: Final = ("volume", "open", "close", "high", "low", "transactions")
_SPLIT_COLUMNS: Final = ("ticker", "execution_date", "split_from", "split_to")
_DIVIDEND_COLUMNS: Final = ("ticker", "ex_dividend_date", "cash_amount")


class Replay:
    """The recorded bars of one folder, held in memory (72 bytes a bar)."""

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            ConfigurationError: it is not such a folder, or a file in it cannot be read; the sentence names it.
        """
        found = {kind: _files(folder, kind) for kind in _FOLDERS}
        if not any(found.values()):
            raise ConfigurationError(
                f"{folder} holds no recorded bars: it needs *.csv.gz files in the vendor's flat-file columns, in "
                f"{MARKET}/day_aggs_v1/ or {MARKET}/minute_aggs_v1/ (in folders by year and month, as the vendor has "
                "them), or in day/ or minute/."
            )
        self._folder = folder
        self._days = _read_bars(found["day"])
        self._minutes = _read_bars(found["minute"])
        self._splits = [
            SplitRow(ticker, day, old, new)
            for ticker, day, old, new in _read_actions(folder / "splits.csv", _SPLIT_COLUMNS, "splits")
        ]
        self._dividends = [
            DividendRow(ticker, day, amount)
            for ticker, day, amount in _read_actions(folder / "dividends.csv", _DIVIDEND_COLUMNS, "dividends")
        ]

    @property
    def description(self) -> str:
        """What it is, for people."""
        return f"recorded bars of {len(self.tickers())} tickers in {self._folder}"

    def tickers(self) -> tuple[str, ...]:
        """Return the recorded tickers in order."""
        return tuple(sorted({*self._days, *self._minutes}))

    def security(self, ticker: str) -> Security | None:
        """Return a recorded ticker; the files do not say when it was listed or delisted."""
        return Security(ticker) if ticker in self._days or ticker in self._minutes else None

    def security_on(self, ticker: str, day: dt.date) -> Security | None:
        """Return the same on each day: no ticker was ever another security."""
        del day
        return self.security(ticker)

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        """Yield the bars of `step_ms` made of the recorded minutes in [start_ms, end_ms), in one piece."""
        del descending
        yield to_step(self._minutes.get(ticker, NO_BARS).between(start_ms, end_ms), step_ms)

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the recorded day bars that start in [start_ms, end_ms)."""
        return self._days.get(ticker, NO_BARS).between(start_ms, end_ms)

    def splits(self) -> Sequence[SplitRow]:
        """Return all recorded splits by ascending date."""
        return self._splits

    def dividends(self) -> Sequence[DividendRow]:
        """Return all recorded dividends by ascending ex date."""
        return self._dividends

    def closings(self) -> Sequence[dt.date]:
        """Return none: nothing is announced that the calendar does not know."""
        return ()


def _files(folder: Path, kind: str) -> list[Path]:
    """Return the files of one kind, by name."""
    return sorted(file for name in _FOLDERS[kind] for file in (folder / name).rglob("*.csv.gz"))


def _read_bars(files: Sequence[Path]) -> dict[str, Bars]:
    """Return the bars of all files by ticker, ascending."""
    import pyarrow as pa
    from pyarrow import csv

    types = {"ticker": pa.string(), "window_start": pa.int64()} | dict.fromkeys(_NUMBERS, pa.float64())
    options = csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[""])
    tables = []
    for file in files:
        try:
            tables.append(csv.read_csv(file, convert_options=options))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ConfigurationError(
                f"{file} is not a flat file of bars ({error}); its columns should be {','.join(types)}."
            ) from None
    if not tables:
        return {}
    table = pa.concat_tables(tables)
    column = table.column("ticker").dictionary_encode().unify_dictionaries().combine_chunks()
    names: list[str] = column.dictionary.to_pylist()
    codes = column.indices.to_numpy()
    ms = table.column("window_start").to_numpy() // 1_000_000
    order = np.lexsort((ms, codes))  # stable: of rows with one start, the one that was read last is the last
    codes, ms = codes[order], ms[order]
    last = np.append((codes[1:] != codes[:-1]) | (ms[1:] != ms[:-1]), True)[: len(order)]
    order, codes, ms = order[last], codes[last], ms[last]
    v, o, c, h, lo, n = (table.column(name).to_numpy(zero_copy_only=False)[order] for name in _NUMBERS)
    unknown, one = np.full(len(ms), np.nan), np.ones(len(ms), dtype="int64")
    bars = Bars(ms, o, h, lo, c, v, unknown, n, one)
    present, first = np.unique(codes, return_index=True)
    ends = np.append(first[1:], len(codes))
    return {
        names[code]: bars.take(slice(start, end))
        for code, start, end in zip(present.tolist(), first.tolist(), ends.tolist(), strict=True)
    }


def _read_actions(file: Path, columns: tuple[str, ...], what: str) -> list[tuple[Any, ...]]:
    """Return the rows of a file of ticker, day and numbers, by ascending day and ticker; none without the file."""
    import csv

    if not file.exists():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [tuple(row[name] for name in columns) for row in csv.DictReader(stream)]
            found = [(ticker, dt.date.fromisoformat(day), *map(float, numbers)) for ticker, day, *numbers in rows]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{file} is not a list of {what} ({error}); its columns should be {','.join(columns)}."
        ) from None
    return sorted(found, key=lambda row: (row[1], row[0]))
