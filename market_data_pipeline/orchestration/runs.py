"""Which runs a refresh needs, and how to submit them from outside Dagster's daemon.

Runs wait in Dagster's queue by priority (https://docs.dagster.io/guides/operate/managing-concurrency). Add here: how
work is cut into runs. When they start is in schedules and sensors.
"""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.cadences import MAX_RUNTIME_TAG
from market_data_pipeline.orchestration.dagster_internals import enqueue, load_location
from market_data_pipeline.orchestration.jobs.refresh import QUALITY_JOB, job_name, op_name, run_tags
from market_data_pipeline.orchestration.partitions import range_tags, symbols_of
from market_data_pipeline.orchestration.provenance import REASON_TAG, TRIGGER_TAG, USER_TAG, caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

NARROW_TAG: Final = "market_data/narrow"  # on runs for some series only; a tier's schedule does not wait for them

UNFINISHED: Final = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)

_POLL_SECONDS: Final = 0.5  # a query costs 10 ms of the database and the shortest run takes 2 s


def shards(symbols: Sequence[str], max_symbols: int) -> list[Sequence[str]]:
    """Return `symbols` cut into contiguous pieces of nearly equal size, none larger than `max_symbols`."""
    count = -(-len(symbols) // max_symbols)
    edges = [len(symbols) * piece // count for piece in range(count + 1)] if count else []
    return [symbols[start:end] for start, end in pairwise(edges)]


def tier_run_requests(
    symbols: Sequence[str],
    tier: Tier,
    max_symbols: int | None = None,
    *,
    trigger: str = "schedule",
    run_config: Mapping[str, Any] | None = None,
    max_runtime: int | None = None,
) -> list[dg.RunRequest]:
    """Return the runs that refresh a tier, one per shard of its symbols.

    Args:
        symbols: all symbols of the tier in the order of `symbols_of`: a shard is a range of partitions.
        tier: the tier.
        max_symbols: symbols of one run at most; by default the tier's objective.
        trigger: what starts the runs, for their tags.
        run_config: goes to every run.
        max_runtime: seconds after which Dagster ends a run; by default those of dagster.yaml.
    """
    limit = {MAX_RUNTIME_TAG: str(max_runtime)} if max_runtime else {}
    return [
        dg.RunRequest(
            run_key=f"{shard[0]}..{shard[-1]}",
            job_name=job_name(tier),
            run_config=run_config or {},
            tags={**run_tags(tier), **range_tags(shard), TRIGGER_TAG: trigger, **limit},
        )
        for shard in shards(symbols, max_symbols or TIER_OBJECTIVES[tier].max_shard_symbols)
    ]


def narrowed(
    tier: Tier,
    *,
    symbols: Iterable[str] = (),
    timeframes: Iterable[Timeframe] = (),
    history_days: int | None = None,
    full: bool = False,
) -> dict[str, Any]:
    """Return the run config of a refresh; empty when nothing is narrowed."""
    fields = {
        "symbols": list(symbols),
        "timeframes": [timeframe.value for timeframe in timeframes],
        "history_days": history_days,
        "full_refresh": full,
    }
    config = {name: value for name, value in fields.items() if value}
    return {"ops": {op_name(tier): {"config": config}}} if config else {}


def unfinished_tier_run(instance: dg.DagsterInstance, tier: Tier) -> str | None:
    """Return the id of an unfinished run for the whole tier or a shard of it; None when there is none."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job_name(tier), statuses=list(UNFINISHED)), limit=100)
    return next((run.run_id for run in (r.dagster_run for r in records) if NARROW_TAG not in run.tags), None)


def submit_refresh(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions | None = None,
    *,
    symbols: Iterable[str] = (),
    timeframes: Iterable[Timeframe] = (),
    history_days: int | None = None,
    full: bool = False,
    trigger: str = "cli",
) -> list[str]:
    """Put refreshes into the queue and return their run ids, the most urgent tier first; the daemon starts them.

    The partitions must have been registered (`partitions.sync_partitions`).

    Args:
        instance: Dagster's storage.
        definitions: what `build_defs()` returned; by default the location is loaded by its name, as the daemon does.
        symbols: only these; by default all symbols of all tiers.
        timeframes: only these; by default all.
        history_days: calendar days of history to hold, instead of the configured ones.
        full: fetch everything again.
        trigger: what starts the runs, for their tags.

    Raises:
        UsageError: a symbol is in no tier.
    """
    repository = (definitions or load_location()).get_repository_def()
    chosen = list(symbols)
    members = {tier: symbols_of(instance, tier) for tier in Tier}
    if unknown := [symbol for symbol in chosen if not any(symbol in of_tier for of_tier in members.values())]:
        raise UsageError(f"{', '.join(unknown)}: not tracked; `market-data universe add` tracks a symbol.")
    run_ids = []
    for tier, of_tier in members.items():
        kept = [symbol for symbol in of_tier if symbol in set(chosen)] if chosen else of_tier
        only = kept if chosen else ()
        config = narrowed(tier, symbols=only, timeframes=timeframes, history_days=history_days, full=full)
        if chosen and kept:
            requests = [
                dg.RunRequest(
                    job_name=job_name(tier),
                    run_config=config,
                    tags={**run_tags(tier), TRIGGER_TAG: trigger, NARROW_TAG: "symbols"},
                )
            ]
        else:
            requests = tier_run_requests(kept, tier, trigger=trigger, run_config=config)
        run_ids += [enqueue(instance, repository, request, {USER_TAG: caller()}) for request in requests]
    return run_ids


def submit_first_quality(instance: dg.DagsterInstance) -> str | None:
    """Put the first quality run into the queue and return its id; None when there has been one.

    From then on it runs each night. The partitions must have been registered (`partitions.sync_partitions`).
    """
    statuses = [dg.DagsterRunStatus.SUCCESS, *UNFINISHED]
    if instance.get_run_records(dg.RunsFilter(job_name=QUALITY_JOB, statuses=statuses), limit=1):
        return None
    request = dg.RunRequest(job_name=QUALITY_JOB, tags={TRIGGER_TAG: "cli", REASON_TAG: "the first quality check"})
    return enqueue(instance, load_location().get_repository_def(), request, {USER_TAG: caller()})


def wait_for_runs(
    instance: dg.DagsterInstance,
    run_ids: Sequence[str],
    *,
    timeout: timedelta | None = None,
    on_look: Callable[[Mapping[str, dg.DagsterRunStatus]], None] | None = None,
) -> dict[str, dg.DagsterRunStatus]:
    """Wait until all runs are finished and return how each ended.

    Args:
        instance: Dagster's storage.
        run_ids: the runs.
        timeout: give up then and return the statuses as they are.
        on_look: called with all statuses about twice a second, for a display; an exception from it ends the wait.
    """
    deadline = time.monotonic() + timeout.total_seconds() if timeout else None
    while True:
        records = instance.get_run_records(dg.RunsFilter(run_ids=list(run_ids))) if run_ids else []
        statuses = {record.dagster_run.run_id: record.dagster_run.status for record in records}
        if on_look:
            on_look(statuses)
        if not any(status in UNFINISHED for status in statuses.values()):
            return statuses
        if deadline is not None and time.monotonic() > deadline:
            return statuses
        time.sleep(_POLL_SECONDS)
