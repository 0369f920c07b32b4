"""Freshness as Dagster shows it: each tier's policy, and the check `series_freshness` on `<tier>/features`.

Dagster's freshness policies (https://docs.dagster.io/guides/observe/asset-freshness-policies) look only at an asset's
LAST materialization: one fresh symbol makes them pass. The asset check
(https://docs.dagster.io/guides/test/asset-checks) sees every series: how many are aging, stale and missing, how many
are beyond their tier's RPO, the worst 20 with the reason of each, and a table by symbol and timeframe. The staleness
sensor and every refresh write its verdict; the check can also be run on its own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.metadata import WORST_SHOWN, table_schema
from market_data_pipeline.orchestration.partitions import features_key
from market_data_pipeline.orchestration.resources import PipelineResource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from market_data_pipeline.reports.freshness import LaggingSeries, TierFreshness
    from market_data_pipeline.reports.models import SeriesFreshness


def freshness_policy(tier: Tier) -> dg.FreshnessPolicy:
    """Return the policy of a tier's assets; the windows and their reasons are in `domain.objectives`."""
    objective = TIER_OBJECTIVES[tier]
    return dg.FreshnessPolicy.time_window(fail_window=objective.fail_after, warn_window=objective.warn_after)


# A table goes into the event log with every verdict: 2 kB for a critical shard, which is also what fits on a screen.
SYMBOLS_SHOWN: Final = 25


def table_of(engine: Engine, tier: Tier) -> str | None:
    """Return a tier's freshness by symbol and timeframe as Markdown; None for a tier without symbols.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    from market_data_pipeline.reports.freshness import worst_symbols

    with engine.connect() as connection:
        worst = worst_symbols(connection, tier, SYMBOLS_SHOWN)
    if worst is None:
        return None
    rows: dict[str, dict[str, str]] = {}
    for one in worst.series:
        rows.setdefault(one.symbol, {})[one.timeframe] = _cell(one, worst.now)
    more = worst.symbols - len(rows)
    return "\n".join(
        [
            f"Start of the last bar held, UTC, on {worst.now.astimezone(UTC):%Y-%m-%d at %H:%M}. Bold: not fresh.",
            "",
            f"| symbol | {' | '.join(Timeframe)} |",
            "|---" * (len(Timeframe) + 1) + "|",
            *(_line(symbol, cells) for symbol, cells in rows.items()),
            *(["", f"… and {more} more symbols, none staler than these."] if more > 0 else []),
        ]
    )


def _line(symbol: str, cells: Mapping[str, str]) -> str:
    return f"| {symbol} | {' | '.join(cells.get(timeframe, '') for timeframe in Timeframe)} |"


def _cell(one: SeriesFreshness, now: datetime) -> str:
    life = Life(one.life)
    if one.staleness_seconds is None:
        return "**missing**" if life.expects_bars else str(life)
    last = _short(one.last_ts, now, Timeframe(one.timeframe)) if one.last_ts else "none"
    if not life.expects_bars:
        return f"{last}, {life}"  # nothing is overdue
    return last if one.status == "FRESH" else f"{last} **{one.status.lower()} {one.staleness_seconds / 3600:.1f} h**"


def _short(ts: datetime, now: datetime, timeframe: Timeframe) -> str:
    """Return a bar's start in short: the time if it is today, else day and time; only the day for day bars."""
    start = ts.astimezone(UTC)
    day = f"{start:%b} {start.day}"
    if timeframe is Timeframe.D1:
        return day
    return f"{start:%H:%M}" if start.date() == now.astimezone(UTC).date() else f"{day} {start:%H:%M}"


CHECK: Final = "series_freshness"


def read_freshness(pipeline: PipelineResource, tier: Tier) -> tuple[TierFreshness, str | None]:
    """Return a tier's freshness now, and its table."""
    from market_data_pipeline.reports.freshness import tier_freshness

    with pipeline.database() as engine:
        return tier_freshness(engine)[tier], table_of(engine, tier)


def freshness_check(tier: Tier) -> dg.AssetChecksDefinition:
    """Return the check of a tier."""

    @dg.asset_check(
        asset=features_key(tier),
        name=CHECK,
        description=f"No series of the {tier} tier is staler than {in_hours(TIER_OBJECTIVES[tier].rpo)}.",
    )
    def series_freshness(pipeline: PipelineResource) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(**_verdict(tier, *read_freshness(pipeline, tier)))

    return series_freshness


def evaluation(tier: Tier, current: TierFreshness, table: str | None) -> dg.AssetCheckEvaluation:
    """Return the check's verdict as an event, to be logged without running the check."""
    verdict = _verdict(tier, current, table)
    return dg.AssetCheckEvaluation(asset_key=features_key(tier), check_name=CHECK, **verdict)


def _verdict(tier: Tier, current: TierFreshness, table: str | None) -> dict[str, Any]:
    rpo = TIER_OBJECTIVES[tier].rpo
    counts = f"{current.aging} aging, {current.stale} stale, {current.missing} never computed"
    if current.not_expected:
        counts += f"; no bars are expected of {current.not_expected} more, which are halted, delisted or unknown"
    within = f"All {current.series} series are within {in_hours(rpo)}: {counts}."
    beyond = f"{current.late} of {current.series} series are staler than {in_hours(rpo)}: {counts}."
    return {
        "passed": not current.late,
        "severity": dg.AssetCheckSeverity.ERROR if tier is Tier.CRITICAL else dg.AssetCheckSeverity.WARN,
        "description": beyond if current.late else within,
        "metadata": {
            **({"freshness": dg.MetadataValue.md(table)} if table else {}),
            "series": current.series,
            "late": current.late,
            "aging": current.aging,
            "stale": current.stale,
            "missing": current.missing,
            "silent": current.silent,
            "not_expected": current.not_expected,
            "rpo_seconds": rpo.total_seconds(),
            "worst": dg.TableMetadataValue([_record(lagging) for lagging in current.worst[:WORST_SHOWN]], _WORST),
        },
    }


def _record(lagging: LaggingSeries) -> dg.TableRecord:
    from market_data_pipeline.reports.freshness import instant

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


def in_hours(span: timedelta) -> str:
    """Return a span of time in hours, for a sentence."""
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
