"""What reading in Python costs: one series, a cross-section, and 25 symbols' year beside Parquet and ArcticDB.

Figures are processor time, of the reading process and of the database server together: unlike time on the clock, it
does not depend on what else the machine does. As the two mostly take turns, it is about what a call takes on a quiet
machine; the details have the time on the clock. The sides of a ratio alternate.

Another way to the same frames is added in `contenders`: a function that reads once and returns its processor seconds.

    python -m benchmarks.reading
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import psutil
import psycopg

from benchmarks import lake_figures, research_data
from benchmarks.arctic_peer import arctic_reader
from benchmarks.place import REPOSITORY, Place, running_server
from benchmarks.report import Measurement, show
from benchmarks.research_data import LAST_DAY, LONG, SYMBOLS
from market_data_pipeline import read_bars, read_features, read_records

if TYPE_CHECKING:
    from collections.abc import Callable

    Contender = Callable[[], float]  # reads once and returns the processor seconds of all processes that took part

ROUNDS: Final = 7  # of ratios, each of more than a second
MOST_OVER: Final = {("database", "Parquet"): 3.0, ("lake", "Parquet"): 1.2, ("lake", "ArcticDB"): 1.5}
_IMPORTS: Final = 15


class Meter:
    """Processor time of this process and of a database server with all of its processes."""

    def __init__(self, place: Place) -> None:
        with psycopg.connect(place.postgres_url) as connection:
            server = psutil.Process(connection.info.backend_pid).parent()
        assert server is not None  # noqa: S101 - the server's main process started this one
        self._server = server

    def seconds(self) -> float:
        """Return what has been used so far, by processes that have ended too."""
        while True:
            try:
                server = sum(_used(each) for each in (self._server, *self._server.children()))
            except psutil.NoSuchProcess:  # a connection's ended meanwhile, and its time became the server's
                continue
            return time.process_time() + server

    def of(self, work: Callable[[], object]) -> float:
        """Return what one call of `work` uses."""
        before = self.seconds()
        work()
        return self.seconds() - before


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    ended: float = times.children_user + times.children_system
    return times.user + times.system + ended


def single_calls(meter: Meter) -> list[Measurement]:
    """Return what a call takes once the connection is open."""
    day = str(LAST_DAY)
    return [
        _call(meter, "250 day bars of a symbol", 200, 5.0, lambda: read_bars("S003", "1d", source="database")),
        _call(meter, "a year of 5m bars of a symbol", 20, 25.0, lambda: read_bars("S003", "5m", source="database")),
        _call(meter, "the same with features", 20, 50.0, lambda: read_records("S003", "5m")),
        _call(meter, "a day of 400 symbols", 50, 50.0, lambda: read_records(SYMBOLS, "1d", start=day)),
        _call(meter, "a day of 400 symbols, 5m bars", 10, None, lambda: read_bars(SYMBOLS, "5m", start=day)),
    ]


def single_calls_of_the_lake(meter: Meter) -> list[Measurement]:
    """Return what a call takes that reads the lake's files."""
    day = str(LAST_DAY)
    return [
        _call(meter, "a year of 5m bars of a symbol, lake", 20, None, lambda: read_bars("S003", "5m", source="lake")),
        _call(
            meter, "a day of 400 symbols, lake", 20, 100.0,
            lambda: read_records(SYMBOLS, "1d", start=day, source="lake"),
        ),
        _call(
            meter, "a day of 400 symbols, 5m bars, lake", 5, None,
            lambda: read_bars(SYMBOLS, "5m", start=day, source="lake"),
        ),
    ]  # fmt: skip


def _call(meter: Meter, name: str, calls: int, most_ms: float | None, work: Callable[[], object]) -> Measurement:
    work()
    elapsed = []

    def repeated() -> None:
        for _ in range(calls):
            began = time.perf_counter()
            work()
            elapsed.append((time.perf_counter() - began) * 1e3)

    used = meter.of(repeated)
    details = {"clock_ms": statistics.median(elapsed), "least_clock_ms": min(elapsed), "calls": calls}
    return Measurement(name, used / calls * 1e3, "ms", at_most=most_ms, details=details)


def contenders(meter: Meter, folder: Path, read: Callable[..., pd.DataFrame]) -> dict[str, Contender]:
    """Return the ways to the frame of 25 symbols' year that are compared, Parquet first: the others are over it.

    Args:
        meter: of this process and the server.
        folder: for files; removed at the end.
        read: `read_bars` or `read_features`.
    """
    file = folder / f"{read.__name__}.parquet"
    frame = read(LONG, "5m")
    frame.to_parquet(file)

    def parquet() -> None:
        if len(pd.read_parquet(file)) != len(frame):
            raise AssertionError("not the same rows")

    def database() -> None:
        if len(read(LONG, "5m", source="database")) != len(frame):
            raise AssertionError("not the same rows")

    def lake() -> None:
        if len(read(LONG, "5m", source="lake")) != len(frame):
            raise AssertionError("not the same rows")

    return {
        "Parquet": lambda: meter.of(parquet),
        "database": lambda: meter.of(database),
        "lake": lambda: meter.of(lake),
    }


def ratios(what: str, ways: dict[str, Contender]) -> list[Measurement]:
    """Return the other ways' processor time over that of Parquet, and the lake's over ArcticDB's where it was measured.

    Each is the median of rounds in which the ways alternate.
    """
    pairs = [(name, "Parquet") for name in ways if name != "Parquet"]
    pairs += [("lake", "ArcticDB")] if "ArcticDB" in ways else []
    used: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, way in ways.items():
            seconds = way()
            if round_:  # the first does not count
                used[name].append(seconds)
    found = []
    for name, other in pairs:
        ratio = statistics.median(own / base for own, base in zip(used[name], used[other], strict=True))
        details: dict[str, Any] = {
            "ms": statistics.median(used[name]) * 1e3,
            "over_ms": statistics.median(used[other]) * 1e3,
        }
        title = f"25 symbols' year of 5m {what}: {name} over {other}"
        found.append(Measurement(title, ratio, "times", at_most=MOST_OVER.get((name, other)), details=details))
    return found


def compared_with_arctic(meter: Meter, folder: Path) -> list[Measurement]:
    """Return the ratios of bars, with ArcticDB among the ways where it can be installed."""
    ways = contenders(meter, folder, read_bars)
    try:
        with arctic_reader(folder / "read_bars.parquet", folder / "arctic", len(read_bars(LONG, "5m"))) as reader:
            alone = statistics.median(reader.seconds(["S003"]) for _ in range(20))
            return [
                Measurement("a year of 5m bars of a symbol, ArcticDB", alone * 1e3, "ms"),
                *ratios("bars", {**ways, "ArcticDB": lambda: reader.seconds(LONG)}),
            ]
    except subprocess.CalledProcessError as error:
        print(f"ArcticDB is left out: {error}", file=sys.stderr)
        return ratios("bars", ways)


def import_time() -> Measurement:
    """Return what `import market_data_pipeline` takes in a new process, the least of several."""
    code = "import time; t = time.process_time(); import market_data_pipeline; print(time.process_time() - t)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=REPOSITORY).stdout)  # noqa: S603
        for _ in range(_IMPORTS)
    ]
    return Measurement("import market_data_pipeline", min(taken) * 1e3, "ms", at_most=50.0)


def main() -> int:
    """Measure, print and store the figures, and return the exit code."""
    with running_server() as place, tempfile.TemporaryDirectory() as folder:
        url = place.new_database("reading", ())
        print("storing a year of 25 symbols and a week of 375 ...", file=sys.stderr, flush=True)
        research_data.load(url)
        os.environ |= {"DATABASE_URL": url, "MARKET_DATA_LAKE_URL": f"{folder}/lake"}
        meter = Meter(place)
        measured = [
            *single_calls(meter),
            *lake_figures.first_sync(meter, url),
            *single_calls_of_the_lake(meter),
            *compared_with_arctic(meter, Path(folder)),
            *ratios("features", contenders(meter, Path(folder), read_features)),
            lake_figures.tick_sync(meter, url),
            import_time(),
        ]
    return show("reading", measured)


if __name__ == "__main__":
    sys.exit(main())
