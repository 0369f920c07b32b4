"""A tier's light in the Dagster UI: has it been refreshed lately?

Dagster looks only at the asset's LAST materialization, so one fresh symbol turns the light green. The truth per series
is in `series_state` and shown by the `series_freshness` check (checks).

The table of a tier's freshness, symbol by timeframe, as Markdown for the page of its standing check.

It goes into Dagster's event log with every verdict, so it shows at most so many symbols, the worst first: 2 kB. Keep
out: counting and judging (queries, checks).

The standing check of each tier: `series_freshness` on `<tier>/features` says which series are late NOW.

Dagster's freshness policies see an asset's last materialization only; this check sees every series, from
`series_state`, in one query: how many are aging, stale and missing, how many are beyond their tier's RPO, and the worst
20 with the reason of each. A table by symbol and timeframe goes with it. The staleness sensor and every refresh write
its verdict; it can also be run by itself. Keep out: checks of values (quality).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.partitions import features_key
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.results import WORST_SHOWN, table_schema
from market_data_pipeline.reports.freshness import instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from market_data_pipeline.reports.freshness import LaggingSeries, TierFreshness
    from market_data_pipeline.reports.models import SeriesFreshness


def freshness_policy(tier: Tier) -> dg.FreshnessPolicy:
    """Return the policy of a tier's assets; the windows and their reasons are in `domain.objectives`."""
    objective = TIER_OBJECTIVES[tier]
    return dg.FreshnessPolicy.time_window(fail_window=objective.fail_after, warn_window=objective.warn_after)


SYMBOLS_SHOWN: Final = 25  # a critical shard; what fits on a screen


def freshness_table(engine: Engine, tier: Tier) -> str | None:
    """Return the table; None for a tier without symbols.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    from market_data_pipeline.reports.freshness import worst_symbols

    with engine.connect() as connection:
        worst = worst_symbols(connection, tier, SYMBOLS_SHOWN)
    if worst is None:
        return None
    cells: dict[str, dict[str, str]] = {}
    for one in worst.series:
        cells.setdefault(one.symbol, {})[one.timeframe] = _cell(one, worst.now)
    more = worst.symbols - len(cells)
    return "\n".join(
        [
            f"Start of the last bar held, UTC, on {worst.now.astimezone(UTC):%Y-%m-%d at %H:%M}. Bold: not fresh.",
            "",
            f"| symbol | {' | '.join(Timeframe)} |",
            "|---" * (len(Timeframe) + 1) + "|",
            *(_line(symbol, of_symbol) for symbol, of_symbol in cells.items()),
            *(["", f"… and {more} more symbols, none staler than these."] if more > 0 else []),
        ]
    )


def _line(symbol: str, cells: Mapping[str, str]) -> str:
    return f"| {symbol} | {' | '.join(cells.get(timeframe, '') for timeframe in Timeframe)} |"


def _cell(one: SeriesFreshness, now: datetime) -> str:
    if one.staleness_seconds is None:
        return "**missing**"
    last = _short(one.last_ts, now, Timeframe(one.timeframe)) if one.last_ts else "none"
    return last if one.status == "FRESH" else f"{last} **{one.status.lower()} {one.staleness_seconds / 3600:.1f} h**"


def _short(ts: datetime, now: datetime, timeframe: Timeframe) -> str:
    """Return a bar's start as briefly as it can be told: its time today, else with its day; day bars by the day."""
    start = ts.astimezone(UTC)
    day = f"{start:%b} {start.day}"
    if timeframe is Timeframe.D1:
        return day
    return f"{start:%H:%M}" if start.date() == now.astimezone(UTC).date() else f"{day} {start:%H:%M}"


CHECK: Final = "series_freshness"


def read_freshness(pipeline: PipelineResource, tier: Tier) -> tuple[TierFreshness, str | None]:
    """Return how a tier stands now, and the table of it."""
    from market_data_pipeline.orchestration.checks.freshness import freshness_table
    from market_data_pipeline.reports.freshness import tier_freshness

    with pipeline.database() as engine:
        return tier_freshness(engine)[tier], freshness_table(engine, tier)


def freshness_check(tier: Tier) -> dg.AssetChecksDefinition:
    """Return the check of a tier."""

    @dg.asset_check(
        asset=features_key(tier),
        name=CHECK,
        description=f"No series of the {tier} tier is staler than {spoken(TIER_OBJECTIVES[tier].rpo)}.",
    )
    def series_freshness(pipeline: PipelineResource) -> dg.AssetCheckResult:
        standing, table = read_freshness(pipeline, tier)
        return dg.AssetCheckResult(
            passed=not standing.late,
            severity=_severity(tier),
            description=_sentence(tier, standing),
            metadata=_metadata(tier, standing, table),
        )

    return series_freshness


def evaluation(tier: Tier, standing: TierFreshness, table: str | None) -> dg.AssetCheckEvaluation:
    """Return the check's verdict as an event that can be logged without running the check."""
    return dg.AssetCheckEvaluation(
        asset_key=features_key(tier),
        check_name=CHECK,
        passed=not standing.late,
        severity=_severity(tier),
        description=_sentence(tier, standing),
        metadata=_metadata(tier, standing, table),
    )


def _severity(tier: Tier) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if tier is Tier.CRITICAL else dg.AssetCheckSeverity.WARN


def _sentence(tier: Tier, standing: TierFreshness) -> str:
    rpo = spoken(TIER_OBJECTIVES[tier].rpo)
    counts = f"{standing.aging} aging, {standing.stale} stale, {standing.missing} never computed"
    if not standing.late:
        return f"All {standing.series} series are within {rpo}: {counts}."
    return f"{standing.late} of {standing.series} series are staler than {rpo}: {counts}."


def _metadata(tier: Tier, standing: TierFreshness, table: str | None) -> dict[str, Any]:
    shown = {"freshness": dg.MetadataValue.md(table)} if table else {}
    return {
        **shown,
        "series": standing.series,
        "late": standing.late,
        "aging": standing.aging,
        "stale": standing.stale,
        "missing": standing.missing,
        "rpo_seconds": TIER_OBJECTIVES[tier].rpo.total_seconds(),
        "worst": dg.TableMetadataValue([_record(lagging) for lagging in standing.worst[:WORST_SHOWN]], _WORST),
    }


def _record(lagging: LaggingSeries) -> dg.TableRecord:
    staleness = lagging.staleness_seconds
    return dg.TableRecord(
        {
            "series": lagging.series.partition_key,
            "state": lagging.status,
            "staleness_hours": None if staleness is None else round(staleness / 3600, 2),
            "reason": lagging.reason,
            "last_bar": instant(lagging.last_ts) if lagging.last_ts else "",
            "due_since": instant(lagging.next_due_at) if lagging.next_due_at else "",
        }
    )


def spoken(span: timedelta) -> str:
    """Return a span of time in hours, as a sentence has it."""
    hours = span / timedelta(hours=1)
    return f"{hours:g} hour{'' if hours == 1 else 's'}"


_WORST: Final = table_schema(
    {
        "series": "string",
        "state": "string",
        "staleness_hours": "float",
        "reason": "string",
        "last_bar": "string",
        "due_since": "string",
    }
)
