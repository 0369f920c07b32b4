"""The status page: what a person wants to see first, in one HTML document without scripts or outside resources.

Everybody sees how fresh each series is; failures and executions, whose texts are for operators, only those who may see
the admin endpoints. Keep out: figures of its own (operations.reports has them).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.failures import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.operations.reports import execution_history, scheduler_health, series_freshness
from market_data_pipeline.operations.snapshot import snapshot
from market_data_pipeline.serving.standing import span

if TYPE_CHECKING:
    import jinja2
    import sqlalchemy as sa

    from market_data_pipeline.operations.dagster_state import DagsterState
    from market_data_pipeline.operations.report_documents import (
        ExecutionHistory,
        SchedulerHealth,
        SeriesFreshness,
    )

EXECUTIONS: Final = 10

# A letter and a word beside each colour: the matrix reads the same in black and white.
MARKS: Final = {"FRESH": "✓", "AGING": "◔", "STALE": "!", "MISSING": "?"}


@dataclass(frozen=True, slots=True)
class Status:
    """What the page shows."""

    now: datetime
    series: list[SeriesFreshness]
    health: SchedulerHealth | None  # None for those who may not see it
    history: ExecutionHistory | None  # None also when Dagster's storage cannot be read


def read_status(source: sa.Engine, dagster: DagsterState, now: datetime, *, for_operator: bool) -> Status:
    """Return what the page shows at `now`.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    with snapshot(source) as connection:
        series = series_freshness(connection)
    if not for_operator:
        return Status(now, series, None, None)
    try:
        history = execution_history(source, dagster, EXECUTIONS)
    except DatabaseUnavailableError:
        history = None
    return Status(now, series, scheduler_health(source, dagster), history)


def render(status: Status | None, now: datetime) -> str:
    """Return the page; `status` None says that the database cannot be reached."""
    return _template().render(
        status=status, now=now, tiers=_tiers(status.series if status else []), marks=MARKS, timeframes=list(Timeframe)
    )


def _tiers(series: list[SeriesFreshness]) -> list[dict[str, Any]]:
    found = []
    for tier in Tier:
        of_tier = [one for one in series if one["tier"] == tier]
        if not of_tier:
            continue
        rows: dict[str, dict[str, SeriesFreshness]] = {}
        for one in sorted(of_tier, key=lambda one: one["symbol"]):
            rows.setdefault(one["symbol"], {})[one["timeframe"]] = one
        found.append(
            {
                "name": tier.replace("_", " "),
                "objective": TIER_OBJECTIVES[tier].description,
                "within": sum(one["within_rpo"] for one in of_tier),
                "total": len(of_tier),
                "counts": {status: sum(one["status"] == status for one in of_tier) for status in MARKS},
                "rows": rows,
            }
        )
    return found


def late(seconds: float | None) -> str:
    """Return how far behind a series is, short enough for a cell."""
    if seconds is None:
        return "never"
    return f"{span(seconds)} late" if seconds >= 1 else "on time"


def clock_time(value: datetime | None) -> str:
    """Return an instant to the second, in UTC."""
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%SZ")


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("market_data_pipeline.serving", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(late=late, time=clock_time, span=span)
    return environment.get_template("status.html")
