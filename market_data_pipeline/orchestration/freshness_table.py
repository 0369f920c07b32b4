"""The table of a tier's freshness, symbol by timeframe, as Markdown for the page of its standing check.

It goes into Dagster's event log with every verdict, so it shows at most so many symbols, the worst first: 2 kB. Keep
out: counting and judging (queries, checks).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.due import freshness
from market_data_pipeline.domain.objectives import Freshness
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.queries import STANDING, standing_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

SYMBOLS_SHOWN: Final = 25  # a critical shard; what fits on a screen

# A series that was never computed sorts first, fresh ones by their symbol.
_CELLS: Final = f"""
with {STANDING},
late as (
    select
        symbol, timeframe,
        case when due is not null then
            cast(extract(epoch from greatest((select market_data.clock()) - due, interval '0')) as double precision)
        end as staleness
    from standing where tier = :tier
),
shown as (
    select symbol, count(*) over () as symbols from late group by symbol
    order by max(coalesce(staleness, 'infinity')) desc, symbol limit :shown
)
select s.symbol, s.symbols, l.timeframe, l.staleness, st.last_ts, market_data.clock() as now
from (select *, row_number() over () as place from shown) as s
join late as l on l.symbol = s.symbol
left join market_data.series_state as st on st.symbol = l.symbol and st.timeframe = l.timeframe
order by s.place
"""  # noqa: S608 - all parts are ours


def freshness_table(engine: Engine, tier: Tier) -> str | None:
    """Return the table; None for a tier without symbols.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    import sqlalchemy as sa

    with engine.connect() as connection:
        values = standing_values() | {"tier": tier.value, "shown": SYMBOLS_SHOWN}
        rows = connection.execute(sa.text(_CELLS), values).all()
    if not rows:
        return None
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row.symbol, {})[row.timeframe] = _cell(row)
    more = rows[0].symbols - len(cells)
    return "\n".join(
        [
            f"Start of the last bar held, UTC, on {rows[0].now.astimezone(UTC):%Y-%m-%d at %H:%M}. Bold: not fresh.",
            "",
            f"| symbol | {' | '.join(Timeframe)} |",
            "|---" * (len(Timeframe) + 1) + "|",
            *(_line(symbol, of_symbol) for symbol, of_symbol in cells.items()),
            *(["", f"… and {more} more symbols, none staler than these."] if more > 0 else []),
        ]
    )


def _line(symbol: str, cells: Mapping[str, str]) -> str:
    return f"| {symbol} | {' | '.join(cells.get(timeframe, '') for timeframe in Timeframe)} |"


def _cell(row: Any) -> str:
    status = freshness(row.staleness)
    if status is Freshness.MISSING:
        return "**missing**"
    last = _short(row.last_ts, row.now, Timeframe(row.timeframe)) if row.last_ts else "none"
    return last if status is Freshness.FRESH else f"{last} **{status.name.lower()} {row.staleness / 3600:.1f} h**"


def _short(ts: datetime, now: datetime, timeframe: Timeframe) -> str:
    """Return a bar's start as briefly as it can be told: its time today, else with its day; day bars by the day."""
    start = ts.astimezone(UTC)
    day = f"{start:%b} {start.day}"
    if timeframe is Timeframe.D1:
        return day
    return f"{start:%H:%M}" if start.date() == now.astimezone(UTC).date() else f"{day} {start:%H:%M}"
