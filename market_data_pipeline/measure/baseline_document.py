"""The document of a baseline: a pure function of the costs of its series and the times of its runs.

The split is of wall-clock seconds and adds up to the total. Time in which no series is being refreshed is Dagster's: it
queues, starts processes and keeps its records. The rest is divided as the series recorded it (fetching, storing,
computing). Series run in parallel, so their own sum is larger; it leaves out a few hundredths of a series' time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from market_data_pipeline.reports.completeness import SeriesCost

BOUND_ABOVE: Final = 60.0  # percent: a part that takes more is the bottleneck; if none does, the load is balanced
_SMALL: Final = 500_000  # bars: loading them takes about as long as starting and ending three runs (measured)
_BUSY: Final = 85.0  # percent of all processors: more threads would only wait


class Part(StrEnum):
    """Where time goes."""

    VENDOR = "vendor"
    DATABASE = "database"
    COMPUTATION = "computation"
    DAGSTER = "dagster"


_BOUND: Final = {
    Part.VENDOR: "API bound",
    Part.DATABASE: "database bound",
    Part.COMPUTATION: "computation bound",
    Part.DAGSTER: "Dagster bound",
}

_NAMED: Final = {
    Part.VENDOR: "The vendor",
    Part.DATABASE: "The database",
    Part.COMPUTATION: "Computation",
    Part.DAGSTER: "Dagster",
}


@dataclass(frozen=True, slots=True)
class RunTimes:
    """One of Dagster's runs; instants are seconds since 1970, None if the run did not get that far."""

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
        costs: of all series, in the order in which they ended; a series whose run Dagster retried has two.
        runs: Dagster's.
        duration: wall-clock seconds from the request for the runs to the end of the last one.
        preparation: seconds before that, in which database, vendor and Dagster started.
        circumstances: when, where and of what the baseline was taken; part of the document.
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


def bottleneck(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return which part takes most of the time, whether it limits the load, and recommendations from the figures."""
    split = document["split"]
    largest = max(Part, key=lambda part: split[part]["percent"])
    percent = split[largest]["percent"]
    if percent > BOUND_ABOVE:
        kind, why = _BOUND[largest], f"{_NAMED[largest]} takes {percent:.0f} % of the time."
    else:
        kind, why = (
            "balanced",
            f"No part takes more than {BOUND_ABOVE:.0f} %. {_NAMED[largest]} takes most, {percent:.0f} %.",
        )
    advice = _ADVICE[largest](document)
    if kind == "balanced":
        advice = [
            f"{_NAMED[largest]} in half the time would save {span(round(split[largest]['seconds'] / 2))}.",
            *_more_at_once(document),
        ]
    return {"kind": kind, "explanation": why, "recommendations": advice}


def _of_vendor(document: Mapping[str, Any]) -> list[str]:
    requests, limit = document["requests"], document["calls_per_minute"]
    advice = []
    if requests["rate_limited"]:
        advice.append(
            f"{requests['rate_limited']} of {requests['total']} requests were refused by the rate limit: another "
            "program uses the same key, or POLYGON_CALLS_PER_MINUTE is above what the plan allows."
        )
    at_least = requests["total"] / limit * 60 if limit else 0.0
    if at_least > document["split"]["vendor"]["seconds"] / 2:
        advice.append(
            f"{requests['total']} requests at {limit} a minute take {span(at_least)} on any machine: only a larger "
            "plan, fewer symbols or fewer days shorten this."
        )
    elif requests["total"]:
        each = document["split"]["vendor"]["recorded_seconds"] / requests["total"]
        advice.append(f"A request takes {each:.2f} s on average, waiting and decoding included.")
        advice += _more_at_once(document)
    return advice


def _of_database(document: Mapping[str, Any]) -> list[str]:
    advice = [
        f"Storing 1,000 bars with their features takes {_per_thousand(document, 'database')} ms. Check that the server "
        "is near (every statement is a round trip) and that its disk is fast."
    ]
    if document["processors_busy_percent"] >= _BUSY:
        advice.append(f"{_processors(document)}: a separate machine for PostgreSQL relieves them.")
    return advice


def _of_computation(document: Mapping[str, Any]) -> list[str]:
    return [
        f"Computing the features of 1,000 bars takes {_per_thousand(document, 'computation')} ms. Your own features "
        "are the usual reason: measure without MARKET_DATA_FEATURES_MODULE, and write them over whole arrays.",
        f"{_processors(document)}; a run launcher in dagster.yaml (Kubernetes, Celery) spreads shards over machines.",
    ]


def _of_dagster(document: Mapping[str, Any]) -> list[str]:
    count = len(document["runs"])
    runs = "1 run" if count == 1 else f"{count} runs"
    advice = [
        f"Queueing, starting processes and keeping records took "
        f"{span(document['split']['dagster']['seconds'])} for {runs}."
    ]
    if count > len(Tier):
        advice.append("Larger shards (MARKET_DATA_SHARD_SYMBOLS) need fewer runs.")
    elif document["records"]["inserted"] < _SMALL:
        advice.append("This takes as long for a small load as for a large one: measure with more symbols or days.")
    else:
        advice += _more_at_once(document)
    return advice


def _more_at_once(document: Mapping[str, Any]) -> list[str]:
    if document["processors_busy_percent"] >= _BUSY:
        return [
            f"{_processors(document)}: more processors, or a run launcher that spreads shards over machines, help most."
        ]
    return [
        f"{_processors(document)}: raise MARKET_DATA_MAX_CONCURRENT_SYMBOLS from {document['max_concurrent_symbols']} "
        "and measure again."
    ]


def _processors(document: Mapping[str, Any]) -> str:
    return f"The {document['processors']} processors are {document['processors_busy_percent']:.0f} % busy"


def _per_thousand(document: Mapping[str, Any], part: str) -> str:
    inserted = document["records"]["inserted"]
    return f"{document['split'][part]['recorded_seconds'] * 1e6 / inserted:.1f}" if inserted else "no"


_ADVICE: Final = {
    Part.VENDOR: _of_vendor,
    Part.DATABASE: _of_database,
    Part.COMPUTATION: _of_computation,
    Part.DAGSTER: _of_dagster,
}
