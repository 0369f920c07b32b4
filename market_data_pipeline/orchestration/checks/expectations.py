"""The rules of `reports.quality` run as Great Expectations suites inside PostgreSQL.

A suite is the rules about one table of one tier; each rule is one statement, and only its sample leaves the database.
Importing this module imports Great Expectations (2.5 s), so quality imports it inside its step. Keep out: Dagster.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import; by default usage is reported to the makers

import great_expectations as gx
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.datasource.fluent.interfaces import GxDatasourceWarning
from great_expectations.expectations.core.unexpected_rows_expectation import UnexpectedRowsExpectation
from great_expectations.expectations.metadata_types import FailureSeverity

from market_data_pipeline.reports.quality import Rule, Severity, rule_statement, table_rows
from market_data_pipeline.store.connection import Role, open_connection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from great_expectations.datasource.fluent.sql_datasource import SQLDatasource

    from market_data_pipeline.domain.series import Tier

SAMPLE: Final = 20  # rows of a sample: what a person reads; the count is exact

_SEVERITIES: Final = {Severity.ERROR: FailureSeverity.CRITICAL, Severity.WARN: FailureSeverity.WARNING}


class NoRowBreaksTheRule(UnexpectedRowsExpectation):
    """No row breaks a rule; the statement counts the rows that do and fetches a sample, in one pass."""

    # Its parent runs the statement twice, once for the rows and once for their number.
    metric_dependencies: ClassVar[tuple[str, ...]] = ("unexpected_rows_query.table",)

    def _validate(
        self,
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any] | None = None,
        execution_engine: Any = None,
    ) -> dict[str, Any]:
        del runtime_configuration, execution_engine
        rows = metrics["unexpected_rows_query.table"]
        return {
            "success": not rows,
            "result": {
                "observed_value": rows[0]["rows_in_all"] if rows else 0,
                "details": {"unexpected_rows": [{k: v for k, v in row.items() if k != "rows_in_all"} for row in rows]},
            },
        }


class Verdict(NamedTuple):
    """What the statement of a rule found."""

    rule: Rule
    broken_by: int  # rows
    sample: list[dict[str, Any]]  # the first of them by key, as the statement selects them
    error: str  # why there is no verdict; empty when there is one


class Inspector:
    """Runs Great Expectations on one database."""

    def __init__(self, database_url: str, as_of: datetime | None = None) -> None:
        """Prepare the context; nothing is connected yet."""
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        with warnings.catch_warnings():
            # The library recommends its PostgreSQL source, which takes nothing but a URL.
            warnings.simplefilter("ignore", GxDatasourceWarning)
            self._source: SQLDatasource = context.data_sources.add_sql(  # type: ignore[call-arg]  # its stub lacks kwargs
                "market_data",
                connection_string="postgresql+psycopg://",
                kwargs={"creator": lambda: open_connection(database_url, Role.READER, as_of=as_of)},
            )

    def inspect(self, tier: Tier, table: str, rules: Sequence[Rule]) -> list[Verdict]:
        """Return the verdict on each rule about a tier's rows of `market_data.<table>`; call it once per table."""
        asset = self._source.add_query_asset(f"{tier}_{table}", query=table_rows(table))
        batch = asset.add_batch_definition_whole_table("all").get_batch()
        suite = gx.ExpectationSuite(name=f"{tier}_{table}", expectations=[_expectation(tier, rule) for rule in rules])
        results: list[Any] = batch.validate(suite, result_format="COMPLETE").results
        by_name = {result.expectation_config.meta["rule"]: result for result in results}
        return [_verdict(rule, by_name[rule.name]) for rule in rules]


def _expectation(tier: Tier, rule: Rule) -> NoRowBreaksTheRule:
    return NoRowBreaksTheRule(
        unexpected_rows_query=rule_statement(rule, tier, SAMPLE),
        description=rule.holds,
        severity=_SEVERITIES[rule.severity],
        meta={"rule": rule.name},
    )


def _verdict(rule: Rule, result: Any) -> Verdict:
    found = result.result
    if "observed_value" in found:
        return Verdict(rule, found["observed_value"], found["details"]["unexpected_rows"], "")
    return Verdict(rule, 0, [], _reason(result.exception_info))


def _reason(info: dict[str, Any]) -> str:
    """Return the first line of what went wrong, from one exception or from one for each metric."""
    message = next((m for m in (info, *info.values()) if isinstance(m, dict) and m.get("exception_message")), {})
    return str(message.get("exception_message", "no result")).strip().partition("\n")[0]
