"""The standing check of each tier: `series_freshness` on `<tier>/features` says which series are late NOW.

Dagster's freshness policies see an asset's last materialization only; this check sees every series, from
`series_state`, in one query: exact counts and the worst 20. The staleness sensor and every refresh write its verdict;
it can also be run by itself. Keep out: checks of values (quality).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.partitions import features_key
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.results import WORST_SHOWN, table_schema

if TYPE_CHECKING:
    from market_data_pipeline.orchestration.queries import LateSeries, TierFreshness

CHECK: Final = "series_freshness"


def read_freshness(pipeline: PipelineResource) -> dict[Tier, TierFreshness]:
    """Return how every tier stands now."""
    from market_data_pipeline.orchestration.queries import tier_freshness

    with pipeline.database() as engine:
        return tier_freshness(engine)


def freshness_check(tier: Tier) -> dg.AssetChecksDefinition:
    """Return the check of a tier."""

    @dg.asset_check(
        asset=features_key(tier),
        name=CHECK,
        description=f"No series of the {tier} tier is staler than {_hours(TIER_OBJECTIVES[tier].rpo)}.",
    )
    def series_freshness(pipeline: PipelineResource) -> dg.AssetCheckResult:
        standing = read_freshness(pipeline)[tier]
        return dg.AssetCheckResult(
            passed=not standing.late,
            severity=_severity(tier),
            description=_sentence(tier, standing),
            metadata=_metadata(tier, standing),
        )

    return series_freshness


def evaluation(tier: Tier, standing: TierFreshness) -> dg.AssetCheckEvaluation:
    """Return the check's verdict as an event that can be logged without running the check."""
    return dg.AssetCheckEvaluation(
        asset_key=features_key(tier),
        check_name=CHECK,
        passed=not standing.late,
        severity=_severity(tier),
        description=_sentence(tier, standing),
        metadata=_metadata(tier, standing),
    )


def _severity(tier: Tier) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if tier is Tier.CRITICAL else dg.AssetCheckSeverity.WARN


def _sentence(tier: Tier, standing: TierFreshness) -> str:
    rpo = _hours(TIER_OBJECTIVES[tier].rpo)
    if not standing.late:
        return f"All {standing.series} series are within {rpo}."
    return (
        f"{standing.late} of {standing.series} series are staler than {rpo}, {standing.missing} of them never computed."
    )


def _metadata(tier: Tier, standing: TierFreshness) -> dict[str, Any]:
    return {
        "series": standing.series,
        "late": standing.late,
        "missing": standing.missing,
        "rpo_seconds": TIER_OBJECTIVES[tier].rpo.total_seconds(),
        "worst": dg.TableMetadataValue([_record(late) for late in standing.worst[:WORST_SHOWN]], _WORST),
    }


def _record(late: LateSeries) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "series": late.series.partition_key,
            "staleness_hours": None if late.staleness_seconds is None else round(late.staleness_seconds / 3600, 2),
            "last_bar": late.last_ts.isoformat() if late.last_ts else "",
            "due_since": late.next_due_at.isoformat() if late.next_due_at else "",
            "consecutive_failures": late.consecutive_failures,
            "last_error": late.last_error or "",
        }
    )


def _hours(span: timedelta) -> str:
    hours = span / timedelta(hours=1)
    return f"{hours:g} hour{'' if hours == 1 else 's'}"


_WORST: Final = table_schema(
    {
        "series": "string",
        "staleness_hours": "float",
        "last_bar": "string",
        "due_since": "string",
        "consecutive_failures": "int",
        "last_error": "string",
    }
)
