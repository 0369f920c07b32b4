"""A load through Dagster: whether anything is missing, the runs that fetch it, and their result.

Keep out: starting and ending processes (up, daemon) and how a load looks on the screen (progress).
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError, UsageError
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.domain.ways_in import BackfillSource
from market_data_pipeline.orchestration.dagster_internals import failure_of
from market_data_pipeline.reports.completeness import (
    failed_series,
    held,
    incomplete_series,
    run_progress,
    symbols_with_gaps,
)
from market_data_pipeline.runtime.console import print_error
from market_data_pipeline.settings import process_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import dagster as dg
    from rich.console import Console

    from market_data_pipeline.reports.completeness import FailedSeries, TierProgress
    from market_data_pipeline.settings import Settings

_CANCEL_SECONDS: Final = 10.0  # a cancelled run stops at once, unless it waits for the vendor or the database
_MOST_NAMES: Final = 5  # symbols listed in a sentence


@dataclass(frozen=True, slots=True)
class Load:
    """What to load; empty means all.

    Attributes:
        symbols: tracked symbols.
        timeframes: a resampled one includes `5m`.
        days: calendar days of history, instead of the settings'.
        full: fetch again what is held.
        source: where the bars of settled days come from.
    """

    symbols: Sequence[str] = ()
    timeframes: Sequence[Timeframe] = ()
    days: int | None = None
    full: bool = False
    source: BackfillSource = BackfillSource.REST


@contextmanager
def dagster_instance(settings: Settings, engine: sa.Engine) -> Iterator[dg.DagsterInstance]:
    """Yield Dagster's instance, with its tables created and its partitions equal to the universe."""
    import dagster as dg

    from market_data_pipeline.orchestration.partitions import sync_partitions

    os.environ.update(process_environment(settings))
    # Dagster logs several lines at each attempt, before it raises the error that we report.
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("Retrying failed database connection"))
    with dg.DagsterInstance.get() as instance:
        sync_partitions(instance, engine)
        yield instance


def nothing_is_missing(settings: Settings, engine: sa.Engine, instance: dg.DagsterInstance) -> bool:
    """Return whether a load of everything would request nothing, compute nothing and show nothing new in Dagster."""
    from market_data_pipeline.ingest.own_features import load_own_features
    from market_data_pipeline.orchestration.partitions import all_materialized
    from market_data_pipeline.reports.estimate import estimate_backfill

    own = load_own_features(settings)
    if own.problems:
        return False  # the load reports them
    if incomplete_series(engine, own.digest):
        return False
    return all_materialized(instance) and estimate_backfill(engine, settings).is_empty


def with_source(settings: Settings, engine: sa.Engine, console: Console, request: Load) -> Load:
    """Return the load with one of the two ways in decided on; unless it is the usual one, print which and why.

    Raises:
        ConfigurationError: files are requested, and the settings name none.
    """
    if request.source is BackfillSource.REST:
        return request
    from market_data_pipeline.reports.estimate import estimate_backfill

    if request.source is BackfillSource.AUTO:
        estimate = estimate_backfill(
            engine, settings, request.symbols, request.timeframes, request.days, full=request.full
        )
        console.print(f"Source    {estimate.ways_in.why}", markup=False)
        return replace(request, source=BackfillSource(estimate.ways_in.cheaper))
    from market_data_pipeline.ingest.source import file_access, no_files
    from market_data_pipeline.runtime.sandbox import vendor_access

    access = file_access(settings, vendor_access(settings))
    if access is None:
        raise no_files()
    console.print(f"Source    flat files at {access}; days without a file by REST", markup=False)
    return request


def load(
    engine: sa.Engine,
    instance: dg.DagsterInstance,
    console: Console,
    request: Load,
    check: Callable[[], None],
) -> int:
    """Refresh through Dagster, show the progress, print the result, and return the exit code: 0 if all is complete.

    Args:
        engine: on the market database.
        instance: Dagster's.
        console: where to print.
        request: what to load.
        check: called first and then repeatedly; starts the daemon if there is none, and raises when a process that is
            needed has ended.

    Raises:
        UsageError: nothing is tracked.
        DatabaseUnavailableError: the connection to PostgreSQL was lost.
    """
    began = time.monotonic()
    expected = expected_series(engine, request)
    check()  # the daemon starts while definitions are loaded and runs are queued
    from dagster_postgres.utils import DagsterPostgresException

    from market_data_pipeline.orchestration.runs import submit_refresh, wait_for_runs
    from market_data_pipeline.runtime.progress import BackfillProgress

    run_ids = submit_refresh(
        instance,
        symbols=request.symbols,
        timeframes=request.timeframes,
        history_days=request.days,
        full=request.full,
        by_file=request.source is BackfillSource.FILES,
        trigger="backfill",
    )
    console.print(f"Backfill  {sum(expected.values())} series in {len(run_ids)} Dagster runs")
    with BackfillProgress(console, expected).shown() as progress:

        def look(known: Mapping[str, dg.DagsterRunStatus]) -> None:
            check()
            run_ids.extend(known.keys() - set(run_ids))  # retries of runs whose process was lost
            progress.update(run_progress(engine, run_ids))

        try:
            statuses = wait_for_runs(instance, run_ids, on_look=look)
        except DatabaseUnavailableError:
            raise
        except (sa.exc.DBAPIError, DagsterPostgresException):
            raise DatabaseUnavailableError(
                "The connection to Dagster's storage was lost: is PostgreSQL running? What was committed is kept."
            ) from None
        except BaseException as error:  # above all Ctrl-C: a later start must not continue these runs
            if isinstance(error, PipelineError):
                engine.connect().close()  # raises, and so reports the database if that is why a process ended
            cancel(instance, run_ids)
            raise
    totals, failures = summarise(engine, console, expected, run_ids, time.monotonic() - began)
    done = sum(known.done for known in totals.values())
    if failures:
        reason, count = Counter(failed.error for failed in failures).most_common(1)[0]
        others = f" The other {len(failures) - count} failed for other reasons." if count < len(failures) else ""
        print_error(f"{len(failures)} of {sum(expected.values())} series failed: {reason}{others}")
    with_gaps = sum(known.with_gaps for known in totals.values())
    if with_gaps:
        symbols = symbols_with_gaps(engine, run_ids)
        names = ", ".join(symbols[:_MOST_NAMES]) + (", ..." if len(symbols) > _MOST_NAMES else "")
        print_error(
            f"{with_gaps} series have gaps: the vendor did not return usable bars that were due ({names}). "
            f"`market-data gaps {symbols[0]}` explains them."
        )
    if not_started := sum(expected.values()) - done - with_gaps - len(failures):
        reasons = [why for run_id in statuses if (why := failure_of(instance, run_id))]
        ended = ", ".join(f"{count} {status}" for status, count in Counter(s.value for s in statuses.values()).items())
        why = f": {reasons[0]}" if reasons else "."
        print_error(f"{not_started} series were not started; their runs ended as {ended}{why}")
    return 0 if done == sum(expected.values()) else 1


def cancel(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Cancel the runs that are not finished, and wait for their processes to end."""
    import dagster as dg
    from dagster_postgres.utils import DagsterPostgresException

    from market_data_pipeline.orchestration.runs import UNFINISHED

    if not run_ids:
        return
    # If cancelling fails, the caller ends the processes and Dagster's monitoring finds the runs lost.
    with suppress(dg.DagsterError, DagsterPostgresException, sa.exc.SQLAlchemyError):
        ours = dg.RunsFilter(run_ids=list(run_ids), statuses=list(UNFINISHED))
        for record in instance.get_run_records(ours):
            with suppress(dg.DagsterError):  # the code server is gone
                instance.run_coordinator.cancel_run(record.dagster_run.run_id)
        deadline = time.monotonic() + _CANCEL_SECONDS
        while left := instance.get_run_records(ours):
            if time.monotonic() > deadline:
                for record in left:
                    instance.report_run_canceled(record.dagster_run)
                return
            time.sleep(0.1)


def cancel_begun(instance: dg.DagsterInstance) -> None:
    """Cancel all runs that a daemon has begun, whatever requested them; queued runs stay in the queue.

    Those that workers of other hosts carry go on: they need no daemon.
    """
    import dagster as dg
    from dagster_postgres.utils import DagsterPostgresException

    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return
    with suppress(DagsterPostgresException, sa.exc.SQLAlchemyError):
        cancel(instance, _begun(instance))


def end_runs(instance: dg.DagsterInstance) -> None:
    """Kill the processes of runs that have ended, for example because they did not react to being cancelled."""
    from dagster_postgres.utils import DagsterPostgresException

    from market_data_pipeline.orchestration.run_liveness import end_leftovers

    with suppress(DagsterPostgresException, sa.exc.SQLAlchemyError, DatabaseUnavailableError):
        end_leftovers(instance, patience=timedelta(0))


def forget_heartbeats(instance: dg.DagsterInstance) -> None:
    """Remove the heartbeats of a daemon that was stopped; the next command would take them for a living one's."""
    from dagster_postgres.utils import DagsterPostgresException

    with suppress(DagsterPostgresException, sa.exc.SQLAlchemyError):
        instance.wipe_daemon_heartbeats()


def has_begun(instance: dg.DagsterInstance) -> bool:
    """Return whether a run that a daemon has begun may still be going; True when Dagster's storage does not answer."""
    from dagster_postgres.utils import DagsterPostgresException

    with suppress(DagsterPostgresException, sa.exc.SQLAlchemyError):
        return bool(_begun(instance))
    return True


def _begun(instance: dg.DagsterInstance) -> list[str]:
    import dagster as dg

    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    return [record.dagster_run.run_id for record in instance.get_run_records(dg.RunsFilter(statuses=statuses))]


def summarise(
    engine: sa.Engine, console: Console, expected: dict[Tier, int], run_ids: Sequence[str], seconds: float | None
) -> tuple[dict[str, TierProgress], list[FailedSeries]]:
    """Print what was done in `seconds`, what is held and what failed; return the progress by tier and the failures."""
    from market_data_pipeline.runtime.progress import failures_table, summary_table

    totals, failures = run_progress(engine, run_ids), failed_series(engine, run_ids)
    console.print()
    console.print(summary_table(expected, totals, held(engine), seconds), soft_wrap=False)
    if failures:
        console.print(failures_table(failures), soft_wrap=False)
    return totals, failures


def expected_series(engine: sa.Engine, request: Load) -> dict[Tier, int]:
    """Return how many series of each tier a load covers.

    Raises:
        UsageError: it covers none.
    """
    from market_data_pipeline.store.universe import tracked

    # A resampled series is made of 5m bars, which the run refreshes and counts as well.
    spans = {span for timeframe in request.timeframes or Timeframe for span in (timeframe, timeframe.base)}
    counts = Counter(
        Tier(entry.tier)
        for entry in tracked(engine)
        if entry.active and (not request.symbols or entry.symbol in request.symbols)
    )
    if not counts:
        raise UsageError("No symbol is tracked; add one with: market-data universe add AAPL --tier critical")
    return {tier: counts[tier] * len(spans) for tier in Tier if counts[tier]}
