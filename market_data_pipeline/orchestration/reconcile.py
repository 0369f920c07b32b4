"""Do our settled day bars still say what the vendor says? One request a day compares the whole universe.

The vendor fills holes and corrects day bars up to weeks after a day settled, when no refresh asks for it any more. The
market's day bars of one date are ONE request on every plan, so the last days are compared each noon, and a day on
which they differ is opened again: the next refresh reads it, and keeps the old values in `bar_revisions`. Keep out:
repairing.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg

from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.results import ROWS_SHOWN, table_schema

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from sqlalchemy import Connection

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
update market_data.coverage set status = 'provisional'
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

    from market_data_pipeline.domain.due import settled_at

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
            connection.execute(sa.text(_REOPEN), {"day": session.date, "symbols": symbols})
            connection.commit()
        found += of_day
    return found


def _values(row: Any) -> dict[str, float] | None:
    return None if row.close is None else {name: getattr(row, name) for name in _COMPARED}


@dg.op(pool="polygon", description="Compares settled day bars with the vendor's, and opens days that differ again.")
def compare_day_bars(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Reconcile and show the differences."""
    with pipeline.pipeline() as built, pipeline.database() as engine, engine.connect() as connection:
        found = reconcile(built, connection)
    records = [
        dg.TableRecord({**difference._asdict(), "day": difference.day.isoformat()}) for difference in found[:ROWS_SHOWN]
    ]
    context.add_output_metadata(
        {"differences": len(found), "days_opened_again": dg.TableMetadataValue(records, _TABLE)}
    )


_TABLE: Final = table_schema(
    {"day": "string", "symbol": "string", "column": "string", "held": "float", "published": "float"}
)


@dg.job(
    name="reconcile", executor_def=dg.in_process_executor, description="Compares settled day bars with the vendor's."
)
def reconcile_job() -> None:
    """Compare the last sessions' day bars."""
    compare_day_bars()
