"""The `reconcile` job: once a day it reverifies settled days and takes in what the vendor changed.

The vendor fills gaps and corrects bars up to weeks after a day settled, when refreshes no longer fetch it. So:

1. The market's day bars of one date are ONE request on every plan: those of the last sessions are compared with
   the held ones, and a day on which they differ is reopened. What the vendor said counts as a first look at it
   (`ingest.doubt`).
2. Every symbol is reverified: an ordinary refresh, which fetches newly settled and reopened days, and fetches again the
   settled days that `ingest.reverify` chooses.

Old values stay in `bar_revisions`, what derives from changed bars is computed again, and the run shows what changed. An
op job (https://docs.dagster.io/guides/build/jobs/op-jobs).
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import dagster as dg

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.series import AssetClass, Tier
from market_data_pipeline.orchestration.metadata import (
    ROWS_SHOWN,
    changed_bars,
    failure,
    materializations,
    stopped,
    summary,
    table_schema,
)
from market_data_pipeline.orchestration.provenance import of_run
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import run_executor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from sqlalchemy import Connection

    from market_data_pipeline.ingest.outcome import SeriesOutcome
    from market_data_pipeline.ingest.pipeline import Pipeline

# Two trading weeks of sessions: ten requests, two minutes at the slowest plan's 5 a minute.
SESSIONS: Final = 10

_RELATIVE: Final = 1e-6  # both sides are decimal texts of the same values; this allows only for their rounding


class Difference(NamedTuple):
    """A settled day for which the vendor now publishes a different bar."""

    day: "date"
    symbol: str
    column: str  # the first that differs; empty when one of the two has no bar
    held: float | None
    published: float | None


def differences(
    day: "date", held: "Mapping[str, Mapping[str, float] | None]", published: "Mapping[str, Mapping[str, float]]"
) -> list[Difference]:
    """Return where held day bars differ from the vendor's.

    Args:
        day: the session.
        held: the settled symbols' bars; None for a day that was confirmed empty.
        published: the vendor's bars by symbol. A symbol without one differs only if we hold one.
    """
    from market_data_pipeline.store.coverage import DAY_COLUMNS

    found = []
    for symbol, ours in sorted(held.items()):
        theirs = published.get(symbol)
        if ours is None or theirs is None:
            if ours is not theirs:
                found.append(Difference(day, symbol, "", (ours or {}).get("close"), (theirs or {}).get("close")))
            continue
        for name in DAY_COLUMNS:
            if abs(ours[name] - theirs[name]) > _RELATIVE * max(abs(ours[name]), abs(theirs[name])):
                found.append(Difference(day, symbol, name, ours[name], theirs[name]))
                break
    return found


def reconcile(pipeline: "Pipeline", connection: "Connection", sessions: int = SESSIONS) -> list[Difference]:
    """Compare the last settled sessions, reopen the days that differ, and return the differences.

    Raises:
        PipelineError: the vendor or the database did not answer; days that were already reopened stay reopened.
    """
    from market_data_pipeline.domain.freshness import settled_at
    from market_data_pipeline.ingest.doubt import digest_of
    from market_data_pipeline.store.coverage import DAY_COLUMNS, reopen_day, settled_day_bars

    timing = pipeline.timing(AssetClass.US_EQUITY)
    today = timing.calendar.session_date(timing.now)
    recent = timing.calendar.sessions(today - timedelta(days=2 * sessions + 10), today)
    settled = [session for session in recent if settled_at(session) <= timing.now][-sessions:]
    found: list[Difference] = []
    for session in settled:
        held = settled_day_bars(connection, session.date, session.day_start)
        if not held:
            continue
        market = pipeline.client.grouped_daily(session.date).bars
        ours = market[market["symbol"].isin(list(held))]
        published = {
            str(row.symbol): {name: float(getattr(row, name)) for name in DAY_COLUMNS} for row in ours.itertuples()
        }
        if of_day := differences(session.date, held, published):
            # Provisional as of its settling: the next refresh fetches it, however soon it comes.
            said = {one.symbol: digest_of(ours[ours["symbol"] == one.symbol]) for one in of_day}
            reopen_day(connection, session.date, said, settled_at(session), timing.now)
            connection.commit()
        found += of_day
    return found


@dg.op(pool="polygon", description="Compares settled day bars with the vendor's, and reverifies every symbol.")
def reverify_symbols(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Compare, reverify, and show what changed.

    Raises:
        dg.Failure: at least one series failed, while the others are stored; or the whole run had to stop.
    """
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.shard import refresh_shard
    from market_data_pipeline.store.audit_log import append_run

    found: list[Difference] = []
    outcomes: list[SeriesOutcome] = []
    stop: PipelineError | None = None
    try:
        with pipeline.pipeline() as built, pipeline.database() as engine:
            tracked = pipeline.tracked(engine)
            requests = [SymbolRequest(one.symbol, one.tier, reverify=True) for one in tracked if one.active]
            append_run(engine, context.run_id, context.job_name, **of_run(context.run)._asdict())
            before = built.client.usage
            try:
                with engine.connect() as connection:
                    found = reconcile(built, connection)
            except PipelineError as error:
                if error.stops_run:
                    raise
                stop = error  # the refresh works without the comparison; the run fails in the end
            spent = built.client.usage - before
            for outcome in refresh_shard(requests, pipeline=built, run_id=context.run_id, spent=spent):
                outcomes.append(outcome)
                if outcome.status == "ok":
                    for materialization in materializations(outcome):
                        context.log_event(materialization)
    except PipelineError as error:
        stop = error
    for tier in Tier:
        if of_tier := [outcome for outcome in outcomes if outcome.tier is tier]:
            context.log_event(summary(tier, of_tier))
    if stop is not None:
        raise stopped(stop) from stop
    if failed := failure(outcomes):
        raise failed
    records = [
        dg.TableRecord({**difference._asdict(), "day": difference.day.isoformat()}) for difference in found[:ROWS_SHOWN]
    ]
    context.add_output_metadata(
        {
            "differences": len(found),
            "days_reopened": dg.TableMetadataValue(records, _TABLE),
            "requests": sum(outcome.counters.requests for outcome in outcomes),
            **changed_bars(outcomes),
        }
    )


_TABLE: Final = table_schema(
    {"day": "string", "symbol": "string", "column": "string", "held": "float", "published": "float"}
)


@dg.job(name="reconcile", executor_def=run_executor, description="Reverifies settled days and takes in changes.")
def reconcile_job() -> None:
    """Compare the last sessions' day bars and reverify every symbol."""
    reverify_symbols()
