"""What holds a load up, by a baseline's figures, and what to do about it in the words of whoever runs it.

Everything is said of a finished document (baseline_document). Add here: a piece of advice, with the figure that gives
rise to it. Keep out: figures.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from collections.abc import Mapping

BOUND_ABOVE: Final = 60.0  # percent: what takes more is what to work on; up to there a load counts as balanced
_SMALL: Final = 500_000  # bars: a load of about the time that starting and ending three runs takes (measured)
_BUSY: Final = 85.0  # percent of all processors: more threads would only wait for one


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


def bottleneck(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what takes most of the time, whether that is too much, and recommendations that fit the figures."""
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
            f"{requests['rate_limited']} of {requests['total']} requests were refused for the rate: another program "
            "shares the key, or POLYGON_CALLS_PER_MINUTE is above what the plan allows."
        )
    at_least = requests["total"] / limit * 60 if limit else 0.0
    if at_least > document["split"]["vendor"]["seconds"] / 2:
        advice.append(
            f"{requests['total']} requests at {limit} a minute take {span(at_least)} whatever the machine: only a "
            "larger plan, fewer symbols or fewer days make it shorter."
        )
    elif requests["total"]:
        each = document["split"]["vendor"]["recorded_seconds"] / requests["total"]
        advice.append(f"A request takes {each:.2f} s on average, waiting and decoding included.")
        advice += _more_at_once(document)
    return advice


def _of_database(document: Mapping[str, Any]) -> list[str]:
    advice = [
        f"Storing 1,000 bars with their features takes {_per_thousand(document, 'database')} ms. See that the server "
        "is near (every statement goes there and back) and that its disk is fast."
    ]
    if document["processors_busy_percent"] >= _BUSY:
        advice.append(f"{_processors(document)}: a machine of its own for PostgreSQL relieves them.")
    return advice


def _of_computation(document: Mapping[str, Any]) -> list[str]:
    return [
        f"Computing 1,000 bars' features takes {_per_thousand(document, 'computation')} ms. Features of your own are "
        "the usual reason: measure with MARKET_DATA_FEATURES_MODULE left out, and write them over whole arrays.",
        f"{_processors(document)}; a run launcher in dagster.yaml (Kubernetes, Celery) spreads shards over machines.",
    ]


def _of_dagster(document: Mapping[str, Any]) -> list[str]:
    count = len(document["runs"])
    runs = "1 run" if count == 1 else f"{count} runs"
    advice = [
        f"Queueing, starting processes and bookkeeping took {span(document['split']['dagster']['seconds'])} for {runs}."
    ]
    if count > len(Tier):
        advice.append("Larger shards (`max_shard_symbols` in domain/objectives.py) need fewer runs.")
    elif document["records"]["inserted"] < _SMALL:
        advice.append("They cost a small load the same as a large one: measure with more symbols or days.")
    else:
        advice += _more_at_once(document)
    return advice


def _more_at_once(document: Mapping[str, Any]) -> list[str]:
    if document["processors_busy_percent"] >= _BUSY:
        return [
            f"{_processors(document)}: more of them, or a run launcher that spreads shards over machines, helps most."
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
