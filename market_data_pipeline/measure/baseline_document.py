"""What a baseline's measurement amounts to: pure, costs of series and times of runs in, the document out.

The split is of wall-clock seconds and adds up to the whole. While no series is in work, Dagster is: it queues, starts
processes and keeps its books. While some are, the seconds are shared out as the series recorded them: fetching,
storing and computing, side by side, so that their sum is larger; it leaves out a few hundredths of a series' time.

Add here: a figure that follows from others. Keep out: what to do about them (baseline_advice), measuring (baseline) and
printing (baseline_view).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.measure.baseline_advice import Part, bottleneck

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class SeriesCost:
    """A row of `ingest_log`."""

    symbol: str
    timeframe: str
    tier: str
    run_id: str
    status: str
    started_at: datetime
    finished_at: datetime
    requests: int
    rate_limited: int
    bytes: int
    rows_fetched: int
    rows_inserted: int
    features_written: int
    fetch_seconds: float
    store_seconds: float
    compute_seconds: float
    error: str | None

    @property
    def seconds(self) -> float:
        """Time in its work."""
        return self.fetch_seconds + self.store_seconds + self.compute_seconds


@dataclass(frozen=True, slots=True)
class RunTimes:
    """One of Dagster's runs; instants are seconds since 1970, None where it did not get there."""

    run_id: str
    job: str
    status: str
    queued: float
    started: float | None
    ended: float | None


def baseline_document(
    costs: Sequence[SeriesCost],
    runs: Sequence[RunTimes],
    *,
    duration: float,
    preparation: float,
    circumstances: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the document of a baseline.

    Args:
        costs: of all series, in the order in which they ended; a run that Dagster retried has two for a series.
        runs: Dagster's.
        duration: seconds of wall clock from asking for the runs to the end of the last one.
        preparation: seconds before that, for database, vendor and Dagster to start.
        circumstances: when, where and of what it was taken.
    """
    expected = len(circumstances["symbols"]) * len(_with_bases(circumstances["timeframes"]))
    outcome = {(cost.symbol, cost.timeframe): cost.status for cost in costs}
    failed = sum(status == "failed" for status in outcome.values())
    completed = len(outcome) - failed
    inserted = sum(cost.rows_inserted for cost in costs)
    split = _split(costs, duration)
    requests, refused = sum(c.requests for c in costs), sum(c.rate_limited for c in costs)
    slowest = max(costs, key=lambda cost: cost.seconds, default=None)
    by_timeframe = [_of_timeframe(t, [c for c in costs if c.timeframe == t]) for t in Timeframe]
    timeframes = [one for one in by_timeframe if one["jobs"]]
    document: dict[str, Any] = {
        **circumstances,
        "duration_seconds": round(duration, 3),
        "preparation_seconds": round(preparation, 3),
        "jobs": {
            "total": expected,
            "completed": completed,
            "failed": failed,
            "never_begun": expected - len(outcome),
            "success_rate": completed / expected if expected else 0.0,
        },
        "records": {
            "fetched": sum(cost.rows_fetched for cost in costs),
            "inserted": inserted,
            "features": sum(cost.features_written for cost in costs),
            "per_second": round(inserted / duration, 1) if duration else 0.0,
        },
        "requests": {"total": requests, "rate_limited": refused, "bytes": sum(cost.bytes for cost in costs)},
        "split": split,
        "slowest": {
            "job": None if slowest is None else _of_series(slowest),
            "timeframe": max(timeframes, key=lambda one: one["seconds"], default=None),
        },
        "timeframes_in_all": timeframes,
        "runs": [_of_run(run) for run in runs],
        "series": [_of_series(cost) for cost in sorted(costs, key=_place)],
    }
    return {**document, "bottleneck": bottleneck(document)}


def _with_bases(timeframes: Iterable[str]) -> set[Timeframe]:
    return {each for name in timeframes for each in (Timeframe(name), Timeframe(name).base)}


def _place(cost: SeriesCost) -> tuple[str, int]:
    return cost.symbol, list(Timeframe).index(Timeframe(cost.timeframe))


def _split(costs: Sequence[SeriesCost], duration: float) -> dict[str, dict[str, float]]:
    busy = min(_covered((c.started_at.timestamp(), c.finished_at.timestamp()) for c in costs), duration)
    recorded = {
        Part.VENDOR: sum(c.fetch_seconds for c in costs),
        Part.DATABASE: sum(c.store_seconds for c in costs),
        Part.COMPUTATION: sum(c.compute_seconds for c in costs),
    }
    in_all = sum(recorded.values())
    seconds = {part: busy * value / in_all if in_all else 0.0 for part, value in recorded.items()}
    seconds[Part.DAGSTER] = duration - sum(seconds.values())
    return {
        str(part): {
            "seconds": round(seconds[part], 3),
            "percent": round(100 * seconds[part] / duration, 1) if duration else 0.0,
            "recorded_seconds": round(recorded.get(part, seconds[part]), 3),
        }
        for part in Part
    }


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the seconds that at least one of the spans covers."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return covered


def _of_timeframe(timeframe: Timeframe, costs: Sequence[SeriesCost]) -> dict[str, Any]:
    return {
        "timeframe": str(timeframe),
        "jobs": len(costs),
        "rows_fetched": sum(c.rows_fetched for c in costs),
        "rows_inserted": sum(c.rows_inserted for c in costs),
        "seconds": round(sum(c.seconds for c in costs), 3),
        "fetch_seconds": round(sum(c.fetch_seconds for c in costs), 3),
        "store_seconds": round(sum(c.store_seconds for c in costs), 3),
        "compute_seconds": round(sum(c.compute_seconds for c in costs), 3),
    }


def _of_series(cost: SeriesCost) -> dict[str, Any]:
    return {
        "symbol": cost.symbol,
        "timeframe": cost.timeframe,
        "tier": cost.tier,
        "status": cost.status,
        "requests": cost.requests,
        "rows_fetched": cost.rows_fetched,
        "rows_inserted": cost.rows_inserted,
        "features_written": cost.features_written,
        "seconds": round(cost.seconds, 3),
        "fetch_seconds": round(cost.fetch_seconds, 3),
        "store_seconds": round(cost.store_seconds, 3),
        "compute_seconds": round(cost.compute_seconds, 3),
        "error": cost.error,
    }


def _of_run(run: RunTimes) -> dict[str, Any]:
    waited = None if run.started is None else round(max(run.started - run.queued, 0.0), 3)
    took = None if run.started is None or run.ended is None else round(run.ended - run.started, 3)
    return {"run_id": run.run_id, "job": run.job, "status": run.status, "queued_seconds": waited, "seconds": took}
