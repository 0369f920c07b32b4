"""Does what we hold still say what the vendor says? Each noon settled days are read again and changes taken in.

The vendor fills holes and corrects bars up to weeks after a day settled, when no refresh asks for it any more. So:

1. The market's day bars of one date are ONE request on every plan: those of the last days are compared with ours, and
   a day on which they differ is opened again.
2. Every symbol is audited: an ordinary refresh, which reads newly settled days and those that were opened, and asks
   again for the settled days that `ingest.reverify` chooses.

Old values stay in `bar_revisions`, what rests on changed bars is made anew, and the run shows what changed. Keep out:
which days are worth another look (ingest.reverify).
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.series import AssetClass, Tier
from market_data_pipeline.orchestration.provenance import of_run
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.results import (
    ROWS_SHOWN,
    changed_bars,
    failure,
    materializations,
    stopped,
    summary,
    table_schema,
)
from market_data_pipeline.orchestration.run_liveness import alive

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from sqlalchemy import Connection

    from market_data_pipeline.ingest.outcome import SeriesOutcome
    from market_data_pipeline.ingest.pipeline import Pipeline

# Two trading weeks of sessions: ten requests, two minutes at the slowest plan's 5 a minute.
SESSIONS: Final = 10

_COMPARED: Final = ("open", "high", "low", "close", "volume")
_RELATIVE: Final = 1e-6  # both answers are decimal texts of the same values; this forgives only their rounding

_HELD: Final = """
select c.symbol, b.open, b.high, b.low, b.close, b.volume
from market_data.coverage as c
join market_data.symbols as s on s.symbol = c.symbol and s.active and s.asset_class = 'us_equity'
left join market_data.bars as b on b.symbol = c.symbol and b.timeframe = '1d' and b.ts = :ts
where c.timeframe = '1d' and c.session_date = :day and c.status in ('complete', 'empty_confirmed')
"""
_REOPEN: Final = """
update market_data.coverage set status = 'provisional', fetched_at = :settled_at
where timeframe = '1d' and session_date = :day and symbol = any(:symbols)
"""


class Difference(NamedTuple):
    """A settled day that the vendor tells differently now."""

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
    found = []
    for symbol, ours in sorted(held.items()):
        theirs = published.get(symbol)
        if ours is None or theirs is None:
            if ours is not theirs:
                found.append(Difference(day, symbol, "", (ours or {}).get("close"), (theirs or {}).get("close")))
            continue
        for name in _COMPARED:
            if abs(ours[name] - theirs[name]) > _RELATIVE * max(abs(ours[name]), abs(theirs[name])):
                found.append(Difference(day, symbol, name, ours[name], theirs[name]))
                break
    return found


def reconcile(pipeline: "Pipeline", connection: "Connection", sessions: int = SESSIONS) -> list[Difference]:
    """Compare the last settled sessions, open the days that differ again, and return the differences.

    Raises:
        PipelineError: the vendor or the database did not answer; days compared before stay open.
    """
    import sqlalchemy as sa

    from market_data_pipeline.domain.freshness import settled_at

    timing = pipeline.timing(AssetClass.US_EQUITY)
    today = timing.calendar.session_date(timing.now)
    recent = timing.calendar.sessions(today - timedelta(days=2 * sessions + 10), today)
    settled = [session for session in recent if settled_at(session) <= timing.now][-sessions:]
    found: list[Difference] = []
    for session in settled:
        values = {"day": session.date, "ts": session.day_start}
        held = {row.symbol: _values(row) for row in connection.execute(sa.text(_HELD), values)}
        if not held:
            continue
        market = pipeline.client.grouped_daily(session.date).bars
        ours = market[market["symbol"].isin(list(held))]
        published = {str(row.symbol): _values(row) or {} for row in ours.itertuples()}
        of_day = differences(session.date, held, published)
        if of_day:
            symbols = [difference.symbol for difference in of_day]
            # As a settled day that wants its second look: the next refresh asks, however soon it comes.
            reopen = {"day": session.date, "symbols": symbols, "settled_at": settled_at(session)}
            connection.execute(sa.text(_REOPEN), reopen)
            connection.commit()
        found += of_day
    return found


def _values(row: Any) -> dict[str, float] | None:
    return None if row.close is None else {name: getattr(row, name) for name in _COMPARED}


@dg.op(pool="polygon", description="Compares settled day bars with the vendor's, and audits every symbol.")
def audit_symbols(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Compare, audit, and show what changed.

    Raises:
        dg.Failure: at least one series failed, or the run could not be done at all; the others are stored.
    """
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.shard import refresh_shard
    from market_data_pipeline.store.audit_log import append_run

    found: list[Difference] = []
    outcomes: list[SeriesOutcome] = []
    stop: PipelineError | None = None
    try:
        requests = [SymbolRequest(one.symbol, one.tier, reverify=True) for one in pipeline.tracked() if one.active]
        with (
            pipeline.pipeline() as built,
            pipeline.database() as engine,
            alive(context.instance, engine, context.run_id),
        ):
            append_run(engine, context.run_id, context.job_name, **of_run(context.run)._asdict())
            before = built.client.usage
            try:
                with engine.connect() as connection:
                    found = reconcile(built, connection)
            except PipelineError as error:
                if error.stops_run:
                    raise
                stop = error  # the audit does without; the run fails in the end
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
            "days_opened_again": dg.TableMetadataValue(records, _TABLE),
            "requests": sum(outcome.counters.requests for outcome in outcomes),
            **changed_bars(outcomes),
        }
    )


_TABLE: Final = table_schema(
    {"day": "string", "symbol": "string", "column": "string", "held": "float", "published": "float"}
)


@dg.job(
    name="reconcile", executor_def=dg.in_process_executor, description="Reads settled days again and takes in changes."
)
def reconcile_job() -> None:
    """Compare the last sessions' day bars and audit every symbol."""
    audit_symbols()
