"""The quality of what is stored: the rules of `reports.quality` as asset checks, in the `quality` job.

Asset checks (https://docs.dagster.io/guides/test/asset-checks), one per rule, tier and table. Every rule is evaluated
over the whole history, inside PostgreSQL: for 25 symbols and a year, 1.7 million bars and as many rows of features,
that takes 52 s on two processors, including the start of the process. A refresh never waits for it, and Great
Expectations is imported inside the step only. A rule that is broken fails its check with the number of rows and a
sample of them; the job itself fails only when a rule could not be evaluated.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.jobs.refresh import QUALITY_JOB
from market_data_pipeline.orchestration.metadata import stopped
from market_data_pipeline.orchestration.partitions import bars_key, features_key
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import run_executor
from market_data_pipeline.reports.quality import Rule, Severity
from market_data_pipeline.reports.quality_splits import RULES

if TYPE_CHECKING:
    from market_data_pipeline.orchestration.checks.expectations import Verdict
    from market_data_pipeline.orchestration.dagster_internals import AssetJob


class Suite(NamedTuple):
    """The rules about one table of one tier."""

    asset_key: dg.AssetKey
    tier: Tier
    table: str
    rules: tuple[Rule, ...]


SUITES: Final = tuple(
    suite
    for tier in Tier
    for suite in (
        Suite(bars_key(tier), tier, "bars", RULES["bars"]),
        Suite(features_key(tier), tier, "features", RULES["features"]),
    )
)

_SEVERITIES: Final = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def quality_checks() -> dg.AssetChecksDefinition:
    """Return all checks of all tiers as one step, so that Great Expectations is imported once."""
    specs = [
        dg.AssetCheckSpec(rule.name, asset=suite.asset_key, description=rule.description)
        for suite in SUITES
        for rule in suite.rules
    ]

    @dg.multi_asset_check(specs=specs, name="quality_checks", can_subset=True)
    def run_checks(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[dg.AssetCheckResult]:
        try:
            yield from _checked(pipeline, context.selected_asset_check_keys)
        except PipelineError as error:
            raise stopped(error) from error

    return run_checks


def quality_job() -> "AssetJob":
    """Return the job that runs all quality checks."""
    return dg.define_asset_job(
        QUALITY_JOB,
        selection=dg.AssetSelection.checks(
            *(dg.AssetCheckKey(suite.asset_key, rule.name) for suite in SUITES for rule in suite.rules)
        ),
        description="Checks all stored bars and features against the rules, inside PostgreSQL.",
        executor_def=run_executor,
    )


def _checked(pipeline: PipelineResource, selected: set[dg.AssetCheckKey]) -> Iterator[dg.AssetCheckResult]:
    from market_data_pipeline.orchestration.checks.expectations import Inspector
    from market_data_pipeline.reports.completeness import held
    from market_data_pipeline.store.calendar import sync_sessions

    settings, failed = pipeline.settings(), list[str]()
    with pipeline.database() as engine:
        sync_sessions(engine)
        rows = held(engine)
    inspector = Inspector(settings.database_url, settings.as_of)
    for suite in SUITES:
        rules = [rule for rule in suite.rules if dg.AssetCheckKey(suite.asset_key, rule.name) in selected]
        for verdict in inspector.inspect(suite.tier, suite.table, rules) if rules else ():
            if verdict.error:
                failed.append(f"{verdict.rule.name} of {suite.asset_key.to_user_string()}: {verdict.error}")
            else:
                chart = _chart(pipeline, suite.tier, verdict.rule)
                yield _result(suite, verdict, getattr(rows.get(suite.tier), suite.table, 0), chart)
    if failed:  # a statement that fails says nothing about the values
        raise dg.Failure("Not everything could be checked.\n" + "\n".join(failed), allow_retries=False)


def _chart(pipeline: PipelineResource, tier: Tier, rule: Rule) -> dict[str, dg.MarkdownMetadataValue]:
    """Return the chart that is shown with a rule's check."""
    from market_data_pipeline.orchestration.checks import charts

    chart = {"coverage_counts_its_bars": charts.coverage, "every_bar_has_features": charts.prices}.get(rule.name)
    if chart is None:
        return {}
    with pipeline.database() as engine:
        drawn = chart(engine, tier)
    return {"chart": dg.MetadataValue.md(drawn)} if drawn else {}


def _result(suite: Suite, verdict: "Verdict", rows: int, chart: Mapping[str, Any]) -> dg.AssetCheckResult:
    rule, found = verdict.rule, verdict.broken_by
    metadata: dict[str, Any] = {
        "bad_rows": found,
        "rows_held": rows,
        "severity": f"{rule.severity.value}: {rule.why}",
        **chart,
    }
    if verdict.sample:
        metadata["sample"] = dg.TableMetadataValue(*_table(verdict.sample))
    return dg.AssetCheckResult(
        passed=not found,
        asset_key=suite.asset_key,
        check_name=rule.name,
        severity=_SEVERITIES[rule.severity],
        description=f"{found:,} {rule.broken}." if found else f"{rule.holds} {rows:,} rows are held.",
        metadata=metadata,
    )


def _table(sample: list[dict[str, Any]]) -> tuple[list[dg.TableRecord], dg.TableSchema]:
    """Return the sample as a table; what is neither a number nor a Boolean is shown as text."""
    shown = [
        {name: value if isinstance(value, bool | int | float | None) else str(value) for name, value in row.items()}
        for row in sample
    ]
    kinds = {bool: "bool", int: "int", float: "float"}
    columns = [
        dg.TableColumn(
            name, next((kinds.get(type(row[name]), "string") for row in shown if row[name] is not None), "string")
        )
        for name in shown[0]
    ]
    return [dg.TableRecord(row) for row in shown], dg.TableSchema(columns)
