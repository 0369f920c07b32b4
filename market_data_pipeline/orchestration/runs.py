"""Which runs a refresh needs, and how to submit them from outside Dagster's daemon.

Runs wait in Dagster's queue by priority (https://docs.dagster.io/guides/operate/managing-concurrency). Add here: how
work is cut into runs. When they start is in schedules and sensors.
"""

from __future__ import annotations

import time
from datetime import UTC, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.cadences import MAX_RUNTIME_TAG
from market_data_pipeline.orchestration.dagster_internals import enqueue, load_location
from market_data_pipeline.orchestration.jobs.refresh import QUALITY_JOB, job_name, op_name, run_tags
from market_data_pipeline.orchestration.partitions import RANGE_END, RANGE_START, symbols_of
from market_data_pipeline.orchestration.provenance import (
    REASON_TAG,
    SCHEDULED_FOR_TAG,
    SHARD_TAG,
    TRIGGER_TAG,
    USER_TAG,
    caller,
)
from market_data_pipeline.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

# A run takes a second of processor time to queue and to start, and a tick starts this many of a tier at most: of 2,000
# critical symbols every 15 minutes 16 runs of 125, where runs of 25 would be 7,680 a day.
MOST_SHARDS: Final = 16
LEAST_SHARED: Final = 5  # symbols; a smaller shard of a first load takes less time than its run's start

_RUN_KEY: Final = "dagster/run_key"
_PARTITION: Final = "dagster/partition"

NARROW_TAG: Final = "market_data/narrow"  # on runs for some series only; a tier's schedule does not wait for them

UNFINISHED: Final = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)

# Dagster's, on runs whose process was lost and on their retries.
_WILL_RETRY_TAG: Final = "dagster/will_retry"
_PARENT_TAG: Final = "dagster/parent_run_id"
_ROOT_TAG: Final = "dagster/root_run_id"
_RETRIED_WITHIN: Final = timedelta(minutes=2)  # the daemon does it within seconds, unless it was restarted meanwhile

_POLL_SECONDS: Final = 0.5  # a query costs 10 ms of the database and the shortest run takes 2 s


def shards(symbols: Sequence[str], max_symbols: int) -> list[Sequence[str]]:
    """Return `symbols` cut into contiguous pieces of nearly equal size, none larger than `max_symbols`."""
    count = -(-len(symbols) // max_symbols)
    edges = [len(symbols) * piece // count for piece in range(count + 1)] if count else []
    return [symbols[start:end] for start, end in pairwise(edges)]


def shard_symbols(tier: Tier, symbols: int, configured: int | None = None, slots: int = 0) -> int:
    """Return how many symbols of a tier one run refreshes.

    Args:
        tier: the tier.
        symbols: how many it has.
        configured: MARKET_DATA_SHARD_SYMBOLS; by default the tier's objective, or more where the tier would then be cut
            into more than `MOST_SHARDS`.
        slots: how many runs the workers of all hosts carry at once: by default each has as many shards as the others,
            unless those would be smaller than `LEAST_SHARED`.
    """
    if configured:
        return configured
    size = max(TIER_OBJECTIVES[tier].shard_symbols, -(-symbols // MOST_SHARDS))
    if not slots or not symbols:
        return size
    pieces = -(-symbols // size)
    even = -(-pieces // slots) * slots
    return min(size, max(LEAST_SHARED, -(-symbols // even)))


def tier_run_requests(
    symbols: Sequence[str],
    tier: Tier,
    max_symbols: int | None = None,
    *,
    leave_out: Collection[str] = (),
    trigger: str = "schedule",
    run_config: Mapping[str, Any] | None = None,
    max_runtime: int | None = None,
) -> list[dg.RunRequest]:
    """Return the runs that refresh a tier, one per shard of its symbols.

    The symbols of a shard are in the run's config rather than in partition tags: for these, Dagster writes an event of
    every partition and asset as it queues the run. A tier of one shard needs no config: it is the whole tier.

    Args:
        symbols: all symbols of the tier in the order of `symbols_of`, so that shards are the same at every tick.
        tier: the tier.
        max_symbols: symbols of one run at most; by default as `shard_symbols` has it.
        leave_out: symbols that need no run; a shard of nothing else has none.
        trigger: what starts the runs, for their tags.
        run_config: goes to every run.
        max_runtime: seconds after which Dagster ends a run; by default those of dagster.yaml.
    """
    limit = {MAX_RUNTIME_TAG: str(max_runtime)} if max_runtime else {}
    pieces = shards(symbols, max_symbols or shard_symbols(tier, len(symbols)))
    requests = []
    for shard in pieces:
        kept = [symbol for symbol in shard if symbol not in leave_out]
        if kept:
            whole = len(kept) == len(symbols)
            requests.append(
                dg.RunRequest(
                    run_key=f"{shard[0]}..{shard[-1]}",
                    job_name=job_name(tier),
                    run_config=(run_config or {}) if whole else _for_symbols(tier, run_config or {}, kept),
                    tags={
                        **run_tags(tier),
                        SHARD_TAG: f"{shard[0]} to {shard[-1]}",
                        TRIGGER_TAG: trigger,
                        **limit,
                    },
                )
            )
    return requests


def _for_symbols(tier: Tier, run_config: Mapping[str, Any], symbols: Sequence[str]) -> dict[str, Any]:
    config = run_config["ops"][op_name(tier)]["config"] if run_config else {}
    return {"ops": {op_name(tier): {"config": {**config, "symbols": list(symbols)}}}}


class Taken(NamedTuple):
    """What runs have taken of a tier when one of its schedule's ticks is evaluated."""

    symbols: set[str]  # of this tick's runs, and of other runs that have not finished
    by: str | None  # an unfinished run of another tick, or of none
    own: list[dg.RunRequest]  # the requests of this tick's runs, of an evaluation before that was cut off


def taken(instance: dg.DagsterInstance, tier: Tier, symbols: Sequence[str], at: datetime) -> Taken:
    """Return what is taken of a tier's `symbols` at the tick of the instant `at`.

    A tick whose process ends while it queues its runs is evaluated again: what it queued before counts as its own. The
    daemon recognizes these requests by their keys, queues a run that was only created, and leaves the others alone.
    """
    scheduled = at.astimezone(UTC).isoformat()
    of_tick = dg.RunsFilter(job_name=job_name(tier), tags={SCHEDULED_FOR_TAG: scheduled})
    found = {run.run_id: run for run in (record.dagster_run for record in reversed(instance.get_run_records(of_tick)))}
    own = {run.tags[_RUN_KEY]: run for run in found.values() if _RUN_KEY in run.tags}
    held, by = set[str](), None
    for run in found.values():
        held |= _symbols_of_run(run, symbols)
    for run in _unfinished(instance, tier):
        if run.run_id not in found:
            others = _symbols_of_run(run, symbols)
            held |= others
            by = run.run_id if others else by
    requests = [
        dg.RunRequest(run_key=key, job_name=run.job_name, run_config=run.run_config, tags=run.tags)
        for key, run in own.items()
    ]
    return Taken(held, by, requests)


def _unfinished(instance: dg.DagsterInstance, tier: Tier) -> list[dg.DagsterRun]:
    """Return the unfinished runs for a tier or a shard of it."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job_name(tier), statuses=list(UNFINISHED)))
    return [run for run in (record.dagster_run for record in records) if NARROW_TAG not in run.tags]


def _symbols_of_run(run: dg.DagsterRun, symbols: Sequence[str]) -> set[str]:
    """Return which of a tier's `symbols` a run of its job refreshes."""
    run_config: Mapping[str, Any] = run.run_config
    steps: list[Mapping[str, Any]] = list((run_config.get("ops") or {}).values())
    if steps and (named := (steps[0].get("config") or {}).get("symbols")):
        return set(named)
    if _PARTITION in run.tags:
        return {run.tags[_PARTITION].partition("|")[0]}
    ends = [run.tags.get(tag, "").partition("|")[0] for tag in (RANGE_START, RANGE_END)]
    if all(end in symbols for end in ends):
        return set(symbols[symbols.index(ends[0]) : symbols.index(ends[1]) + 1])
    return set(symbols)


def narrowed(
    tier: Tier,
    *,
    symbols: Iterable[str] = (),
    timeframes: Iterable[Timeframe] = (),
    history_days: int | None = None,
    full: bool = False,
    by_file: bool = False,
) -> dict[str, Any]:
    """Return the run config of a refresh; empty when nothing is narrowed."""
    fields = {
        "symbols": list(symbols),
        "timeframes": [timeframe.value for timeframe in timeframes],
        "history_days": history_days,
        "full_refresh": full,
        "source": "files" if by_file else None,
    }
    config = {name: value for name, value in fields.items() if value}
    return {"ops": {op_name(tier): {"config": config}}} if config else {}


def unfinished_tier_run(instance: dg.DagsterInstance, tier: Tier) -> str | None:
    """Return the id of an unfinished run for the whole tier or a shard of it; None when there is none."""
    return next((run.run_id for run in _unfinished(instance, tier)), None)


def is_last_of_tier(instance: dg.DagsterInstance, tier: Tier, run_id: str) -> bool:
    """Return whether no other run for the whole tier or a shard of it is unfinished."""
    return all(run.run_id == run_id for run in _unfinished(instance, tier))


def submit_refresh(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions | None = None,
    *,
    symbols: Collection[str] = (),
    timeframes: Iterable[Timeframe] = (),
    history_days: int | None = None,
    full: bool = False,
    by_file: bool = False,
    trigger: str = "cli",
) -> list[str]:
    """Put refreshes into the queue and return their run ids, the most urgent tier first; the daemon starts them.

    The partitions must have been registered (`partitions.sync_partitions`).

    Args:
        instance: Dagster's storage.
        definitions: what `build_defs()` returned; by default the location is loaded by its name, as the daemon does.
        symbols: only these, in shards of the same size; by default all symbols of all tiers.
        timeframes: only these; by default all.
        history_days: calendar days of history to hold, instead of the configured ones.
        full: fetch everything again.
        by_file: take the bars of settled days from the vendor's flat files.
        trigger: what starts the runs, for their tags.

    Raises:
        UsageError: a symbol is in no tier.
        ConfigurationError: a setting is bad.
    """
    repository = (definitions or load_location()).get_repository_def()
    configured = load_settings().shard_symbols
    slots = getattr(instance.run_launcher, "slots", int)()  # where workers carry the runs
    chosen = set(symbols)
    members = {tier: symbols_of(instance, tier) for tier in Tier}
    known = {symbol for of_tier in members.values() for symbol in of_tier}
    if unknown := [symbol for symbol in symbols if symbol not in known]:
        raise UsageError(f"{', '.join(unknown)}: not tracked; `market-data universe add` tracks a symbol.")
    run_ids = []
    for tier, of_tier in members.items():
        kept = [symbol for symbol in of_tier if symbol in chosen] if chosen else of_tier
        size = shard_symbols(tier, len(kept), configured, slots)
        config = narrowed(tier, timeframes=timeframes, history_days=history_days, full=full, by_file=by_file)
        if chosen:
            tags = {**run_tags(tier), TRIGGER_TAG: trigger, NARROW_TAG: "symbols"}
            requests = [
                dg.RunRequest(job_name=job_name(tier), run_config=_for_symbols(tier, config, shard), tags=tags)
                for shard in shards(kept, size)
            ]
        else:
            requests = tier_run_requests(kept, tier, size, trigger=trigger, run_config=config)
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
    """Wait until all runs are finished, and the retries of those that failed; return how each ended.

    A run that was retried is left out of what is returned: its last retry stands for it.

    Args:
        instance: Dagster's storage.
        run_ids: the runs.
        timeout: give up then and return the statuses as they are.
        on_look: called about twice a second, for a display, with the statuses of all runs and retries; an exception
            from it ends the wait.
    """
    deadline = time.monotonic() + timeout.total_seconds() if timeout else None
    while True:
        records = _with_retries(instance, run_ids) if run_ids else []
        retried = {record.dagster_run.tags.get(_PARENT_TAG) for record in records}
        last = [record for record in records if record.dagster_run.run_id not in retried]
        if on_look:
            on_look({record.dagster_run.run_id: record.dagster_run.status for record in records})
        is_late = deadline is not None and time.monotonic() > deadline
        if is_late or not any(_goes_on(record) for record in last):
            return {record.dagster_run.run_id: record.dagster_run.status for record in last}
        time.sleep(_POLL_SECONDS)


def _with_retries(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> list[dg.RunRecord]:
    records = list(instance.get_run_records(dg.RunsFilter(run_ids=list(run_ids))))
    if any(_is_retried(record) for record in records):
        records += instance.get_run_records(dg.RunsFilter(tags={_ROOT_TAG: list(run_ids)}))
    return records


def _goes_on(record: dg.RunRecord) -> bool:
    """Return whether a run is not finished, or has failed so lately that the daemon may not have retried it yet."""
    if record.dagster_run.status in UNFINISHED:
        return True
    return _is_retried(record) and time.time() - (record.end_time or 0.0) < _RETRIED_WITHIN.total_seconds()


def _is_retried(record: dg.RunRecord) -> bool:
    run = record.dagster_run
    return run.status is dg.DagsterRunStatus.FAILURE and run.tags.get(_WILL_RETRY_TAG) == "true"
