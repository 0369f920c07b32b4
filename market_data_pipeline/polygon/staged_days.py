"""This machine's copies of flat files, read once: a file per day with the bars of all tickers, mapped into memory.

A run refreshes symbol by symbol, a flat file holds a day of all of them. So a file is downloaded and checked once, by
the first process that needs it, and its bars are laid down by ticker; every run of this machine then reads a symbol's
bars of a day without reading those of others. What has not been used for days is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from market_data_pipeline.domain.bars import VALUES, bar_frame
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.counters import NOTHING, Counters
from market_data_pipeline.domain.errors import DataError, TransientError
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.polygon.day_file import DayBars, read_day
from market_data_pipeline.polygon.flat_files import Dataset, FileVersion

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.polygon.flat_files import FlatFiles

_KEPT_SECONDS: Final = 3 * 86_400  # a load that was stopped on Friday goes on on Monday
_LISTED_SECONDS: Final = 900  # the runs of one load share a list
_ATTEMPTS: Final = 2  # at a file that cannot be read: the first time, the way may have been at fault
AT_ONCE: Final = 2  # files that one process downloads and reads side by side: each takes 650 MB of memory for seconds
_COLUMNS: Final = ("ts_us", *(name for name in VALUES if name != "vwap"), "inside")


class Found(NamedTuple):
    """What a file has of one ticker.

    Attributes:
        bars: a bar frame within the interval and a session; vwap is NaN.
        outside: the same of what lies in no session; None for nothing.
        refused: why the day cannot be used, None if it can.
        odd: what was taken in although it was odd, None for nothing.
    """

    bars: pd.DataFrame
    outside: pd.DataFrame | None
    refused: str | None
    odd: str | None


class FoundMany(NamedTuple):
    """What a file has of several tickers, one behind the other.

    Attributes:
        counts: how many bars each ticker has.
        ts_us: starts of the bars, int64 microseconds since 1970 UTC; ascending for each ticker.
        values: a row of float64 for each of `domain.bars.VALUES`; vwap is NaN.
        inside: which bars lie in a session.
    """

    counts: np.ndarray
    ts_us: np.ndarray
    values: np.ndarray
    inside: np.ndarray


class StagedDays:
    """The days that were read on this machine; threads and processes may share the folder.

    Args:
        folder: where the copies are; it need not exist.
        files: the client.
    """

    def __init__(self, folder: Path, files: FlatFiles) -> None:
        place = blake2b(str(files.access).encode(), digest_size=6).hexdigest()
        self.files = files
        self._folder = folder / place
        self._open: dict[FileVersion, DayBars] = {}
        self._broken: dict[FileVersion, list[str]] = {}
        self._lock = threading.Lock()
        self._reading = threading.BoundedSemaphore(AT_ONCE)
        self._locks: dict[FileVersion, threading.Lock] = {}

    def listing(self, dataset: Dataset, first: dt.date, last: dt.date) -> dict[dt.date, FileVersion]:
        """Return the files of the days from `first` to `last`, as they were listed in the last quarter of an hour.

        Raises:
            PipelineError: as `FlatFiles.listing`.
        """
        path = self._folder / f"{dataset}.{first}.{last}.json"
        with suppress(OSError, ValueError, TypeError):
            if time.time() - path.stat().st_mtime < _LISTED_SECONDS:
                return {each.day: each for each in map(_version, json.loads(path.read_text()))}
        found = self.files.listing(dataset, first, last)
        rows = [(v.dataset, str(v.day), v.etag, v.bytes, v.published_at.isoformat()) for v in found.values()]
        self._replace(path, json.dumps(rows).encode())
        return found

    def is_staged(self, version: FileVersion) -> bool:
        """Return whether reading the file needs no download."""
        return version in self._open or self._path(version).exists()

    def day(self, version: FileVersion) -> tuple[DayBars, Counters]:
        """Return a file's bars, and what it cost to get them now: nothing when another symbol needed them before.

        Raises:
            DataError: the file as a whole cannot be used.
            PipelineError: it cannot be had, as `FlatFiles.download`.
        """
        if (bars := self._open.get(version)) is not None:
            return bars, NOTHING
        with self._lock:
            lock = self._locks.setdefault(version, threading.Lock())
        with lock:
            if (bars := self._open.get(version)) is not None:
                return bars, NOTHING
            if len(failures := self._broken.get(version, [])) >= _ATTEMPTS:
                raise DataError(failures[-1])
            cost, path = NOTHING, self._path(version)
            with self._alone(path):
                bars = _load(path)
                if bars is None:
                    began = time.perf_counter()
                    with self._reading:
                        self._stage(version, path)
                    cost = Counters(requests=1, bytes=version.bytes, fetch_seconds=time.perf_counter() - began)
                    bars = _load(path)
            if bars is None:
                raise TransientError(f"{path} cannot be written or read: is there space on the disk?")
            self._open[version] = bars
            return bars, cost

    def close(self) -> None:
        """Let go of the mapped files, and remove those that no run has used for days."""
        self._open.clear()
        for path in self._folder.glob("*.*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                    path.unlink()

    def _path(self, version: FileVersion) -> Path:
        etag = blake2b(version.etag.encode(), digest_size=8).hexdigest()
        return self._folder / f"{version.dataset}.{version.day}.{etag}.arrow"

    def _stage(self, version: FileVersion, path: Path) -> None:
        session = calendar_for(AssetClass.US_EQUITY).session_on(version.day)
        if session is None:
            raise DataError(f"{version.key} is of a day without a session.")
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".csv.gz") as local:
                self.files.download(version, local)
                local.flush()
                bars = read_day(type(path)(local.name), version.dataset, session, version.key)
        except DataError as error:
            self._broken.setdefault(version, []).append(str(error))
            raise
        except OSError as error:
            raise TransientError(
                f"{version.key} cannot be kept in {self._folder}: {error.strerror}; free some space there."
            ) from None
        with suppress(OSError):  # if it cannot be kept, the caller says so
            self._replace(path, _written(bars))

    def _replace(self, path: Path, content: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".new", delete=False) as new:
            new.write(content)
        type(path)(new.name).replace(path)

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold the file for this process alone."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def found_many(day: DayBars, tickers: Sequence[str]) -> FoundMany:
    """Return what a file has of `tickers`, whichever of them it names."""
    at = np.array([bisect_left(day.tickers, ticker) for ticker in tickers])
    named = np.array(
        [place < len(day.tickers) and day.tickers[place] == each for place, each in zip(at, tickers, strict=True)]
    )
    low = np.where(named, day.offsets[at * named], 0)
    counts = np.where(named, day.offsets[at * named + 1] - low, 0)
    ends = np.cumsum(counts)
    rows = np.arange(ends[-1] if len(ends) else 0) + np.repeat(low - (ends - counts), counts)
    return FoundMany(counts, day.ts_us[rows], day.values[:, rows], day.inside[rows])


def found(day: DayBars, ticker: str, interval: Interval) -> Found:
    """Return what a file has of a ticker within an interval."""
    at = bisect_left(day.tickers, ticker)
    part = slice(0, 0)
    if at < len(day.tickers) and day.tickers[at] == ticker:
        low, high = int(day.offsets[at]), int(day.offsets[at + 1])
        starts = day.ts_us[low:high]
        part = slice(
            low + int(starts.searchsorted(to_us(interval.start))), low + int(starts.searchsorted(to_us(interval.end)))
        )
    inside = day.inside[part]
    whole = bool(inside.all())
    ts_us, values = day.ts_us[part], day.values[:, part]
    return Found(
        _frame(ts_us, values) if whole else _frame(ts_us[inside], values[:, inside]),
        None if whole else _frame(ts_us[~inside], values[:, ~inside]),
        day.refused.get(ticker),
        day.odd.get(ticker),
    )


def _frame(ts_us: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    return bar_frame(np.array(ts_us), {name: np.array(values[at]) for at, name in enumerate(VALUES)})


def _version(row: list[Any]) -> FileVersion:
    import datetime as dt

    dataset, day, etag, size, published = row
    return FileVersion(
        Dataset(dataset), dt.date.fromisoformat(day), etag, int(size), dt.datetime.fromisoformat(published)
    )


def _written(bars: DayBars) -> Any:
    """Return a day as an Arrow file whose columns can be mapped as they are."""
    import pyarrow as pa

    index = {
        "tickers": bars.tickers,
        "offsets": bars.offsets.tolist(),
        "refused": dict(bars.refused),
        "odd": dict(bars.odd),
    }
    rows = {name: bars.values[at] for at, name in enumerate(VALUES)}
    columns = [bars.ts_us, *(rows[name] for name in VALUES if name != "vwap"), bars.inside.astype("uint8")]
    schema = pa.schema(
        [(name, pa.from_numpy_dtype(column.dtype)) for name, column in zip(_COLUMNS, columns, strict=True)],
        metadata={"day": json.dumps(index)},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(column) for column in columns], schema=schema))
    return sink.getvalue()


def _load(path: Path) -> DayBars | None:
    """Return a day that was staged, mapped into memory; None if it was not."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            batch, metadata = reader.get_batch(0), reader.schema.metadata
        index = json.loads(metadata[b"day"])
        os.utime(path)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    columns = {name: batch.column(name).to_numpy() for name in _COLUMNS}
    return DayBars(
        tuple(map(sys.intern, index["tickers"])),  # a ticker is the same object in every day of a long history
        np.array(index["offsets"], dtype="int64"),
        columns["ts_us"],
        _Mapped(columns),  # type: ignore[arg-type]
        columns["inside"].view("bool"),
        index["refused"],
        index["odd"],
    )


class _Mapped:
    """The value rows of a mapped day: `[:, part]` gives the rows of a slice or of indices, as of one array."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns

    def __getitem__(self, key: tuple[slice, slice | np.ndarray]) -> np.ndarray:
        part = key[1]
        some = self._columns["open"][part]
        rows = [np.full(len(some), np.nan) if name == "vwap" else self._columns[name][part] for name in VALUES]
        return np.stack(rows)
