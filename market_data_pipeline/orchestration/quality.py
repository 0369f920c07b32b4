"""Are the stored values sound? Great Expectations on SQL, in a job of its own.

Each expectation runs one query inside PostgreSQL; nothing is loaded. Importing Great Expectations takes 2.5 s, so it is
imported here inside the step, and a refresh never waits for it. Add here: an expectation. Keep out: freshness (checks),
and anything that the hot path guarantees by refusing bad bars.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.partitions import bars_key, features_key
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.results import WORST_SHOWN

if TYPE_CHECKING:
    from great_expectations.datasource.fluent.sql_datasource import SQLDatasource

    from market_data_pipeline.orchestration.jobs import AssetJob

# A whole-history scan of five timeframes and 25 symbols is 3 million rows; two weeks see every bar about ten times
# while it can still change.
_LOOKED_AT: Final = "b.ts >= market_data.clock() - interval '14 days'"

_BARS: Final = f"""
select b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close, b.volume
from market_data.bars as b join market_data.symbols as s on s.symbol = b.symbol
where s.tier = '{{tier}}' and s.active and {_LOOKED_AT}
"""  # noqa: S608 - the tier is one of ours
_UNMATCHED: Final = f"""
select b.symbol, b.timeframe, b.ts
from market_data.bars as b
join market_data.symbols as s on s.symbol = b.symbol
left join market_data.features as f on f.symbol = b.symbol and f.timeframe = b.timeframe and f.ts = b.ts
where s.tier = '{{tier}}' and s.active and {_LOOKED_AT} and f.ts is null
"""  # noqa: S608


class Expected(NamedTuple):
    """One check: which rows it reads, and which of those must not be."""

    name: str
    description: str
    rows: str  # SELECT with a place for the tier
    bad_rows: str  # condition on them; empty when every row that is read is bad


BAR_CHECKS: Final = (
    Expected(
        "prices_are_consistent",
        "low <= open, close <= high, and all above 0.",
        _BARS,
        "low <= 0 or low > least(open, close) or high < greatest(open, close)",
    ),
    Expected("volume_is_not_negative", "No bar has a negative volume.", _BARS, "volume < 0"),
    Expected("no_bar_from_the_future", "Every bar started before now.", _BARS, "ts > market_data.clock()"),
)
FEATURE_CHECKS: Final = (Expected("every_bar_has_features", "Every bar has its row of features.", _UNMATCHED, ""),)


def quality_checks() -> dg.AssetChecksDefinition:
    """Return all checks of all tiers as one step: Great Expectations is imported once."""
    checks = _all_checks()
    specs = [
        dg.AssetCheckSpec(expected.name, asset=key.asset_key, description=expected.description)
        for key, (_, expected) in checks.items()
    ]

    @dg.multi_asset_check(specs=specs, name="quality_checks", can_subset=True)
    def run_checks(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[dg.AssetCheckResult]:
        source = _source(pipeline)
        for key, (tier, expected) in checks.items():
            if key in context.selected_asset_check_keys:
                passed, metadata = _expect(source, tier, expected)
                yield dg.AssetCheckResult(
                    passed=passed, asset_key=key.asset_key, check_name=key.name, metadata=metadata
                )

    return run_checks


def quality_job() -> "AssetJob":
    """Return the job that runs all of them."""
    return dg.define_asset_job(
        "quality",
        selection=dg.AssetSelection.checks(*_all_checks()),
        description="Checks the values of the last two weeks' bars and features inside PostgreSQL.",
        executor_def=dg.in_process_executor,
    )


def _all_checks() -> dict[dg.AssetCheckKey, tuple[Tier, Expected]]:
    return {
        dg.AssetCheckKey(key(tier), expected.name): (tier, expected)
        for tier in Tier
        for key, group in ((bars_key, BAR_CHECKS), (features_key, FEATURE_CHECKS))
        for expected in group
    }


def _source(pipeline: PipelineResource) -> "SQLDatasource":
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # it would report its use to its makers
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from market_data_pipeline.store.database import libpq_url

    settings = pipeline.settings()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    url = libpq_url(settings.database_url, as_of=settings.as_of).replace("postgresql://", "postgresql+psycopg://", 1)
    # It would read a dollar sign as the beginning of a variable.
    return context.data_sources.add_sql("market_data", connection_string=url.replace("$", r"\$"))


def _expect(source: Any, tier: Tier, expected: Expected) -> tuple[bool, dict[str, Any]]:
    from great_expectations.expectations.core.unexpected_rows_expectation import UnexpectedRowsExpectation

    asset = source.add_query_asset(f"{tier}_{expected.name}", query=expected.rows.format(tier=tier.value))
    batch = asset.add_batch_definition_whole_table("all").get_batch()
    query = "select * from {batch}" + (f" where {expected.bad_rows}" if expected.bad_rows else "")  # noqa: S608
    result = batch.validate(UnexpectedRowsExpectation(unexpected_rows_query=query), result_format="COMPLETE")
    found = result.result
    if "observed_value" not in found:  # a query that fails is no verdict on the values
        raise dg.Failure(f"{expected.name} of the {tier} tier could not be checked: {result.exception_info}")
    rows = found.get("details", {}).get("unexpected_rows", [])[:WORST_SHOWN]
    return bool(result.success), {
        "bad_rows": found["observed_value"],
        "sample": dg.MetadataValue.md("\n".join(f"- {row}" for row in rows) or "none"),
    }
