"""What a backup and the way back take: 25 symbols, 5 years, backed up, restored into an empty server, and verified.

The data come by `market-data backfill`, so that Dagster's history is backed up too; the three commands run as a user
calls them. Their processor seconds are those of all their processes and of the server's, their time also depends on
the disk. Restored means compared with the backup's checksums; `verify` then also evaluates the rules of quality.

    python -m benchmarks.backup [DAYS]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import psutil
import psycopg

from benchmarks.backfill import project_folder
from benchmarks.place import running_place, running_server
from benchmarks.report import Measurement, show
from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, Outage
from market_data_pipeline.settings.sandbox import SANDBOX_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.place import Place

DAYS: Final = 5 * 365
_MB: Final = 1e6
_PROGRAM: Final = str(Path(sys.executable).with_name("market-data"))


def main() -> int:
    """Measure, print and return the exit code."""
    return show("backup", measure(int(sys.argv[1]) if len(sys.argv) > 1 else DAYS))


def measure(days: int = DAYS) -> list[Measurement]:
    """Return the seconds of each command, the processor's and the clock's, and the sizes."""
    with running_place() as place, TemporaryDirectory(prefix="market-data-bench-") as backups:
        with project_folder(place, "source", days) as (folder, environment):
            environment["POLYGON_API_KEY"] = SANDBOX_KEY
            _command(place, folder, environment, "backfill")
            stored = _rows(environment["DATABASE_URL"])
            with psycopg.connect(environment["DATABASE_URL"]) as connection:
                (size,) = connection.execute("select pg_database_size(current_database())").fetchone() or (0,)
            made = _command(place, folder, environment, "backup", backups)
        written = sum(file.stat().st_size for file in Path(backups).rglob("*") if file.is_file())
        with (
            running_server(place.vendor_url) as empty,
            project_folder(empty, "restored", days) as (folder, environment),
        ):
            environment["POLYGON_API_KEY"] = SANDBOX_KEY
            restored = _command(empty, folder, environment, "restore", backups)
            verified = _command(empty, folder, environment, "verify", backups)
            if (held := _rows(environment["DATABASE_URL"])) != stored:
                raise SystemExit(f"{held} rows were restored of {stored}.")
    what = f"25 symbols, {days} days, {stored:,} bars with their features"
    minutes = RECOVERY_OBJECTIVES[Outage.SERVER_LOSS].rto.total_seconds() / 60
    return [
        Measurement(f"size in the database: {what}", size / _MB, "MB"),
        Measurement("size of a backup", written / _MB, "MB"),
        *_measured("backup", made),
        *_measured("restore into an empty server", restored),
        *_measured("verify", verified),
        Measurement("restore and verify", (restored[1] + verified[1]) / 60, "min", at_most=minutes),
    ]


def _measured(name: str, seconds: tuple[float, float]) -> list[Measurement]:
    return [Measurement(name, seconds[1], "s"), Measurement(f"{name}: processor time", seconds[0], "s")]


def _rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from market_data.records").fetchone()
    return int(row[0]) if row else 0


def _command(place: Place, folder: Path, environment: Mapping[str, str], *words: str) -> tuple[float, float]:
    """Run a command of ours; return the processor seconds of it and the server, and those of the clock."""
    with psycopg.connect(place.postgres_url) as connection:
        server = psutil.Process(connection.info.backend_pid).parent()
    if server is None:
        raise SystemExit("The server is not one of this machine.")
    before, began = _used(server), time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own command
        [_PROGRAM, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    used, seconds = _used(server) - before, time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"market-data {words[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    print(f"  {words[0]}: {seconds:.1f} s, {used:.1f} s of processor time", file=sys.stderr, flush=True)
    return used, seconds


def _used(server: psutil.Process) -> float:
    """Return the processor seconds so far of the commands that have ended, and of the server with its processes."""
    commands = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = server.cpu_times()
    backends = [each.cpu_times() for each in server.children()]
    return commands.ru_utime + commands.ru_stime + sum(own) + sum(times.user + times.system for times in backends)


if __name__ == "__main__":
    sys.exit(main())
