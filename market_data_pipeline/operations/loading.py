"""Load the universe through Dagster: find out whether anything is missing, put runs into the queue, show what comes.

Add here: what `up` and `backfill` do with runs. Keep out: starting and ending processes (up) and how it looks
(progress).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.domain.failures import UsageError
from market_data_pipeline.domain.feature_definitions import FEATURE_VERSION
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.operations.executions import failed_series, held, lacking_symbols, tier_totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import dagster as dg
    from rich.console import Console

    from market_data_pipeline.settings import Settings

_MOST_NAMES: Final = 5  # what a person reads of a list in a sentence

# A series is whole when its last execution went well, nothing it should hold is due, and what is made of other rows is
# made of the ones that are there.
_NOT_WHOLE: Final = sa.text("""
    select count(*)
    from market_data.symbols as m
    cross join unnest(cast(:timeframes as text[])) as t (timeframe)
    left join market_data.series_state as s on s.symbol = m.symbol and s.timeframe = t.timeframe
    left join market_data.series_state as b on b.symbol = m.symbol and b.timeframe = '5m'
    where m.active and not coalesce(
        s.verified_at is not null
        and s.last_error is null
        and s.next_due_at > market_data.clock()
        and s.feature_version = :feature_version
        and (s.timeframe in ('5m', '1d') or s.base_revision = b.revision),
        false
    )
""")


@dataclass(frozen=True, slots=True)
class Load:
    """What to load: empty means all.

    Attributes:
        symbols: tracked symbols.
        timeframes: a resampled one brings `5m` along.
        days: calendar days of history, instead of the settings'.
        full: fetch again what is held.
    """

    symbols: Sequence[str] = ()
    timeframes: Sequence[Timeframe] = ()
    days: int | None = None
    full: bool = False


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables by which `dagster.yaml` and every process find this project."""
    return {
        "DAGSTER_HOME": str(settings.dagster_home),
        "DAGSTER_POSTGRES_URL": settings.dagster_postgres_url,
        "MARKET_DATA_PROJECT_ROOT": str(settings.project_root),
    }


@contextmanager
def dagster_instance(settings: Settings, engine: sa.Engine) -> Iterator[dg.DagsterInstance]:
    """Give Dagster's instance, its tables created and its partitions equal to the universe."""
    import dagster as dg

    from market_data_pipeline.orchestration.partitions import sync_partitions

    os.environ.update(environment(settings))
    with dg.DagsterInstance.get() as instance:
        sync_partitions(instance, engine)
        yield instance


def nothing_is_missing(settings: Settings, engine: sa.Engine, instance: dg.DagsterInstance) -> bool:
    """Return whether a load of everything would ask nothing, compute nothing and show nothing new in Dagster."""
    from market_data_pipeline.operations.plan import plan_backfill
    from market_data_pipeline.orchestration.partitions import all_materialized

    parameters = {"timeframes": [str(timeframe) for timeframe in Timeframe], "feature_version": FEATURE_VERSION}
    with engine.connect() as connection:
        if connection.execute(_NOT_WHOLE, parameters).scalar_one():
            return False
    return all_materialized(instance) and plan_backfill(settings).is_empty


def load(
    engine: sa.Engine,
    instance: dg.DagsterInstance,
    console: Console,
    wanted: Load,
    check: Callable[[], None],
) -> int:
    """Refresh through Dagster, show it, print what came of it, and return the exit code: 0 when all is complete.

    Args:
        engine: where market data lives.
        instance: Dagster's.
        console: where to print.
        wanted: what to load.
        check: called now and then; raises when a process that is needed has ended.

    Raises:
        UsageError: nothing is tracked.
    """
    from market_data_pipeline.definitions import defs
    from market_data_pipeline.operations.progress import BackfillProgress
    from market_data_pipeline.orchestration.runs import submit_refresh, wait_for_runs

    began = time.monotonic()
    expected = expected_series(engine, wanted)
    run_ids = submit_refresh(
        instance,
        defs,
        symbols=wanted.symbols,
        timeframes=wanted.timeframes,
        history_days=wanted.days,
        full=wanted.full,
        trigger="backfill",
    )
    console.print(f"Backfill  {sum(expected.values())} series in {len(run_ids)} Dagster runs")
    with BackfillProgress(console, expected).shown() as progress:

        def look(_: object) -> None:
            check()
            progress.update(tier_totals(engine, run_ids))

        statuses = wait_for_runs(instance, run_ids, on_look=look)
    summarise(engine, console, expected, run_ids, time.monotonic() - began)
    totals, failures = tier_totals(engine, run_ids), failed_series(engine, run_ids)
    done = sum(known.done for known in totals.values())
    lacking = sum(known.lacking for known in totals.values())
    if lacking:
        symbols = lacking_symbols(engine, run_ids)
        names = ", ".join(symbols[:_MOST_NAMES]) + (", ..." if len(symbols) > _MOST_NAMES else "")
        console.print(
            f"[yellow]{lacking} series lack bars that were due, the vendor gave none ({names}); "
            f"market-data gaps {symbols[0]} explains.[/yellow]"
        )
    if never_begun := sum(expected.values()) - done - lacking - len(failures):
        ended = Counter(status.value for status in statuses.values())
        runs = ", ".join(f"{count} {status}" for status, count in ended.items())
        console.print(f"[red]{never_begun} series were never begun (runs: {runs}); the Dagster UI shows why.[/red]")
    return 0 if done == sum(expected.values()) else 1


def summarise(
    engine: sa.Engine, console: Console, expected: dict[Tier, int], run_ids: Sequence[str], seconds: float
) -> None:
    """Print the table of what was done and is held, and the failures."""
    from market_data_pipeline.operations.progress import failures_table, summary_table

    console.print()
    console.print(
        summary_table(expected, tier_totals(engine, run_ids), held(engine), seconds if run_ids else None),
        soft_wrap=False,
    )
    if failures := failed_series(engine, run_ids):
        console.print(failures_table(failures), soft_wrap=False)


def expected_series(engine: sa.Engine, wanted: Load) -> dict[Tier, int]:
    """Return how many series of each tier a load is about.

    Raises:
        UsageError: none.
    """
    from market_data_pipeline.store.universe import tracked

    # A resampled series is made of 5m bars, which the run refreshes and counts as well.
    spans = {span for timeframe in wanted.timeframes or Timeframe for span in (timeframe, timeframe.base)}
    counts = Counter(
        Tier(entry.tier)
        for entry in tracked(engine)
        if entry.active and (not wanted.symbols or entry.symbol in wanted.symbols)
    )
    if not counts:
        raise UsageError("No symbol is tracked; add one with: market-data universe add AAPL --tier critical")
    return {tier: counts[tier] * len(spans) for tier in Tier if counts[tier]}
