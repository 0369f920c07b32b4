"""How much faster the pipeline is than other ways of doing the same work: the official client and four ways of storing.

Vendor, PostgreSQL server, tables (dlt creates its own), bars and features are the same; the number of stored rows is
compared. The peers do not do what only the pipeline does (coverage, audit log, comparison with what is held, checks of
every page), and they use its resampling and features. Each runs right after the pipeline, which runs as a library, in
its own process, whose imports do not count, in an environment that this benchmark creates. There are only three
symbols, because even so a round of all of them takes minutes; costs per symbol are flat (see `growth`).

    python -m benchmarks.peers [DAYS]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

from benchmarks.backfill import DAYS, ingest
from benchmarks.peer_environment import environment
from benchmarks.place import NOW, REPOSITORY, Place, running_place, universe
from benchmarks.report import Measurement, show
from market_data_pipeline.settings.sandbox import SANDBOX_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SYMBOLS: Final = 3


class Peer(NamedTuple):
    """What a script does, its number of rounds, and how many times faster the pipeline has to be."""

    title: str
    rounds: int
    at_least: float | None


PEERS: Final[dict[str, Peer]] = {
    "to_sql": Peer("official client, pandas.to_sql", 3, 8.0),
    "upserts": Peer("official client, executemany upserts", 5, 7.0),  # fast enough for two more
    "records": Peer("official client, dlt merge of rows", 3, 15.0),
    "merge": Peer("official client, dlt merge of Arrow", 3, None),
}
# The environment: what is compared, and what the pipeline also uses, in the pipeline's versions.
_FOREIGN: Final = ("massive", "dlt[postgres]")
_SHARED: Final = (
    *("numpy", "pandas", "pyarrow", "TA-Lib", "Bottleneck", "exchange-calendars"),
    *("SQLAlchemy", "psycopg", "psycopg-binary", "psycopg2-binary"),
)


def main() -> int:
    """Measure, print and return the exit code."""
    return show("peers", measure(int(sys.argv[1]) if len(sys.argv) > 1 else DAYS))


def measure(days: int = DAYS) -> list[Measurement]:
    """Return how many times faster the pipeline is than each peer, which runs right after it."""
    python = environment("peers", [*_FOREIGN, *(f"{name}=={version(name)}" for name in _SHARED)])
    symbols = universe()[:SYMBOLS]
    ours: list[float] = []
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in PEERS}
    with running_place() as place:
        url, _, _ = ingest(place, "warm", symbols, days)
        expected = _rows(url, "market_data")
        place.drop(url)
        for number in range(max(peer.rounds for peer in PEERS.values())):
            for name in (name for name, peer in PEERS.items() if number < peer.rounds):
                url, seconds, _ = ingest(place, f"before_{name}_{number}", symbols, days)
                place.drop(url)
                took, stored = _peer(place, python, name, f"{name}_{number}", symbols, days)
                if stored != expected:
                    raise SystemExit(f"{name} stored {stored} bars and features, the pipeline {expected}.")
                ours.append(seconds)
                pairs[name].append((took, seconds))
                print(f"  round {number + 1}: {name} {took:.1f} s over {seconds:.2f} s", file=sys.stderr, flush=True)
    what = f"{SYMBOLS} symbols, {days} days"
    details = {"bars": expected[0], "features": expected[1], "rounds": len(ours)}
    return [
        Measurement(f"the pipeline: {what}", statistics.median(ours), "s", details=details),
        *(
            Measurement(
                f"faster than {peer.title}",
                statistics.median(took / seconds for took, seconds in pairs[name]),
                "times",
                at_least=peer.at_least,
                details={"seconds": statistics.median(took for took, _ in pairs[name]), "rounds": len(pairs[name])},
            )
            for name, peer in PEERS.items()
        ),
    ]


def _peer(
    place: Place, python: Path, script: str, name: str, symbols: Sequence[str], days: int
) -> tuple[float, tuple[int, int]]:
    """Return the seconds of a peer and how many bars and features it stored."""
    url = place.new_database(name, tuple(symbols))
    task: dict[str, Any] = {
        "vendor_url": place.vendor_url,
        "key": SANDBOX_KEY,
        "database_url": url,
        "symbols": list(symbols),
        "first": (NOW.date() - timedelta(days=days)).isoformat(),
        "last": NOW.date().isoformat(),
    }
    command = [str(python), "-m", "benchmarks.peer_scripts", script]
    done = subprocess.run(  # noqa: S603 - ours
        command, input=json.dumps(task), stdout=subprocess.PIPE, check=True, cwd=REPOSITORY, text=True
    )
    stored = _rows(url, "peer" if script in ("merge", "records") else "market_data")
    place.drop(url)
    return json.loads(done.stdout.splitlines()[-1])["seconds"], stored


def _rows(url: str, schema: str) -> tuple[int, int]:
    with psycopg.connect(url) as connection:
        bars, features = (
            connection.execute(f"select count(*) from {schema}.{name}").fetchone()  # noqa: S608 - ours
            for name in ("bars", "features")
        )
    return bars[0], features[0]  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
