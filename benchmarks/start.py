"""How long a run takes from its launch to its first request while a daemon runs, as at every scheduled tick.

`market-data up` runs in a separate project folder with one symbol; then full refreshes are requested, one after the
other. The time goes from Dagster's event that the run is starting to the increase of the vendor's count of requests,
which is read every 20 ms.

    python -m benchmarks.start
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psycopg

from benchmarks.backfill import first_request, project_folder
from benchmarks.place import running_place
from benchmarks.report import Measurement, show
from market_data_pipeline.measure.scratch import free_ports

RUNS: Final = 5
MOST_START_SECONDS: Final = 2.0
_DAYS: Final = 5
_PATIENCE_SECONDS: Final = 180.0
_COMMAND: Final = str(Path(sys.executable).with_name("market-data"))


def main() -> int:
    """Measure, print and return the exit code."""
    return show("start", measure())


def measure(runs: int = RUNS) -> list[Measurement]:
    """Return the median of the runs' seconds."""
    seconds = []
    with running_place() as place, project_folder(place, "start", _DAYS) as (folder, environment):
        (folder / "one.yaml").write_text("tiers: {critical: [AAPL]}\n", encoding="utf-8")
        ui, api = free_ports(2)
        environment |= {
            "MARKET_DATA_UNIVERSE": str(folder / "one.yaml"),
            "MARKET_DATA_UI_PORT": str(ui),
            "MARKET_DATA_API_PORT": str(api),
        }
        said = folder / "up.log"
        with said.open("w") as log:
            up = subprocess.Popen([_COMMAND, "up"], cwd=folder, env=environment, stdout=log, stderr=log)  # noqa: S603
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while "Ready after" not in said.read_text(encoding="utf-8"):
                if up.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"market-data up is not ready: {said.read_text(encoding='utf-8')}")
                time.sleep(0.1)
            for _ in range(runs):
                with first_request(place) as first:
                    subprocess.run(  # noqa: S603 - our own command
                        [_COMMAND, "backfill", "--full"], cwd=folder, env=environment, check=True, capture_output=True
                    )
                seconds.append(first[0] - last_start(environment["DAGSTER_POSTGRES_URL"]))
        finally:
            up.send_signal(signal.SIGINT)
            up.wait()
    return [
        Measurement(
            "start of a run to its first request",
            statistics.median(seconds),
            "s",
            at_most=MOST_START_SECONDS,
            details={"fastest": min(seconds), "slowest": max(seconds), "runs": runs},
        )
    ]


def last_start(dagster_url: str) -> float:
    """Return when Dagster launched its newest run, seconds since 1970."""
    with psycopg.connect(dagster_url) as connection:
        found = connection.execute(
            "select extract(epoch from max(timestamp at time zone 'UTC'))::float from event_logs "
            "where dagster_event_type = 'PIPELINE_STARTING'"
        ).fetchone()
    if not found or found[0] is None:
        raise SystemExit("No run was started.")
    return float(found[0])


if __name__ == "__main__":
    sys.exit(main())
