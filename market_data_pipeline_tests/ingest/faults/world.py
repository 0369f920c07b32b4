"""A whole ingestion against a faulty vendor, and what it leaves behind: every row, except when it was stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from math import isclose
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.polygon.client import PolygonClient
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.polygon.rate_limit import UnlimitedLimiter
from market_data_pipeline.polygon.transport import Limits
from market_data_pipeline_tests.ingest.conftest import World

if TYPE_CHECKING:
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline_tests.ingest.faults.vendor import FaultyVendor

Snapshot = dict[str, list[tuple[Any, ...]]]

RELATIONS = {
    "bars": "symbol, timeframe, ts, open, high, low, close, volume, vwap, trades",
    "features": f"symbol, timeframe, ts, {', '.join(FEATURE_NAMES)}",
    "coverage": "symbol, timeframe, session_date, status, rows",
    "series_state": (
        "symbol, timeframe, tier, first_ts, last_ts, bar_count, feature_count, feature_version, splits_digest,"
        " quiet_slots, next_due_at, last_error_class, last_error, consecutive_failures"
    ),
    "splits": "symbol, execution_date, split_from, split_to",
}


def differences(one: Snapshot, other: Snapshot) -> dict[str, list[tuple[Any, Any]]]:
    """Return the rows that differ, by relation; features may differ by 1e-9 of their value.

    An average that is carried on from bar to bar remembers where it began: the law of features allows that much.
    """
    found = {}
    for relation, rows in one.items():
        pairs = list(zip_longest(rows, other[relation]))
        if different := [pair for pair in pairs if not _same(*pair, near=relation == "features")]:
            found[relation] = different
    return found


def _same(one: Any, other: Any, *, near: bool) -> bool:
    if one == other or not near or one is None or other is None:
        return bool(one == other)
    return all(
        a == b or (isinstance(a, float) and isinstance(b, float) and isclose(a, b, rel_tol=1e-9))
        for a, b in zip(one, other, strict=True)
    )


class Time:
    """Seconds that pass only by sleeping."""

    def __init__(self) -> None:
        self.passed = 0.0

    def sleep(self, seconds: float) -> None:
        self.passed += seconds

    def __call__(self) -> float:
        return self.passed


@dataclass
class FaultyWorld(World):
    """One vendor that misbehaves on demand, one database and one clock. Backoff and pauses cost no time."""

    vendor: FaultyVendor = None  # type: ignore[assignment]
    read_seconds: float = 30.0  # without a byte

    def pipeline(self, history_days: int) -> Pipeline:
        usual = super().pipeline(history_days)
        usual.client.close()
        time = Time()
        client = PolygonClient(
            self.vendor.url,
            self.key,
            limiter=UnlimitedLimiter(None, sleep=time.sleep, monotonic=time),
            plan=plan_named(self.plan),
            limits=Limits(read=self.read_seconds),
            sleep=time.sleep,
            uniform=lambda low, high: high,
            clock=self.clock,
        )
        return replace(usual, client=client)

    def snapshot(self) -> Snapshot:
        """Return every relation's rows in the order of their keys."""
        return {
            relation: [
                tuple(row.values())
                for row in self.query(f"select {columns} from market_data.{relation} order by 1, 2, 3")
            ]
            for relation, columns in RELATIONS.items()
        }

    def log(self, run: int | None = None) -> list[dict[str, object]]:
        """Return the audit log rows of a run, the last one by default."""
        return self.query(
            "select * from market_data.ingest_log where run_id = %s order by id", f"run-{run or self.runs}"
        )
