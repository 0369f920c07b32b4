"""The lake as Dagster sees it: an asset for each of its tables, downstream of the tiers, and the job that syncs them.

One step syncs whichever of them a run selects, all from one snapshot of the database, and compares what it wrote with
the database (check `equals_database`). The work itself is in `lake`.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.lake.tables import DESCRIPTIONS, NAMES, TABLES, Kind
from market_data_pipeline.orchestration.metadata import stopped, table_schema
from market_data_pipeline.orchestration.partitions import bars_key, features_key
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import run_executor

if TYPE_CHECKING:
    from market_data_pipeline.lake.tables import LakeTable, SyncedTable
    from market_data_pipeline.lake.verify import VerifiedTable
    from market_data_pipeline.orchestration.dagster_internals import AssetJob

GROUP: Final = "lake"
LAKE_JOB: Final = "lake"
CHECK: Final = "equals_database"

# A sync a day, with half a day for one that is queued behind others, and a missed one.
_FRESHNESS: Final = dg.FreshnessPolicy.time_window(warn_window=timedelta(hours=36), fail_window=timedelta(hours=60))
_SAMPLE: Final = table_schema({"symbol": "string", "month": "string", "rows_lake": "int", "rows_database": "int"})


def lake_key(name: str) -> dg.AssetKey:
    """Return the key of a table of the lake."""
    return dg.AssetKey([GROUP, name])


def lake_assets() -> dg.AssetsDefinition:
    """Return the assets of all tables as one step."""
    tables = {table.name: table for table in TABLES}

    @dg.multi_asset(
        specs=[_spec(name, tables.get(name)) for name in NAMES],
        check_specs=[
            dg.AssetCheckSpec(CHECK, asset=lake_key(name), description="What was written equals the database.")
            for name in tables
        ],
        name="sync_lake",
        can_subset=True,
    )
    def lake(
        context: dg.AssetExecutionContext, pipeline: PipelineResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        chosen = {key.path[-1] for key in context.selected_asset_keys}
        try:
            yield from _synced(context, pipeline, chosen, [tables[name] for name in tables if name in chosen])
        except PipelineError as error:
            raise stopped(error) from error

    return lake


def lake_job() -> "AssetJob":
    """Return the job that syncs all tables up to the last settled day."""
    return dg.define_asset_job(
        LAKE_JOB,
        selection=dg.AssetSelection.groups(GROUP),
        description="Brings the lake up to date with the database, and compares what was written.",
        executor_def=run_executor,
    )


def _spec(name: str, table: "LakeTable | None") -> dg.AssetSpec:
    features = table is not None and table.kind is Kind.FEATURES
    columns: dict[str, Any] = {}
    if table is not None:
        schema = [dg.TableColumn("symbol", "string"), *(_column(c.name, c.kind) for c in table.relation.columns)]
        columns = {"dagster/column_schema": dg.TableSchema([*schema, dg.TableColumn("month", "string")])}
    return dg.AssetSpec(
        lake_key(name),
        deps=[features_key(tier) if features else bars_key(tier) for tier in Tier],
        description=DESCRIPTIONS[name] if table is None else table.description,
        group_name=GROUP,
        owners=["team:market-data"],
        kinds={"python", "deltalake"},
        metadata=columns,
        freshness_policy=_FRESHNESS,
    )


def _column(name: str, kind: str) -> dg.TableColumn:
    types = {"instant": "timestamp", "float": "double", "integer": "bigint", "bool": "boolean"}
    return dg.TableColumn(name, types.get(kind, "string"))


def _synced(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, chosen: set[str], tables: "list[LakeTable]"
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.sync import sync
    from market_data_pipeline.lake.verify import verify

    settings = pipeline.settings()
    url = Lake.of(settings)
    done = sync(settings, tables=tables, synced=lambda one: context.log.info(f"Synced {one.name}."))
    written = {one.name: one for one in done}
    for name in NAMES:
        if name in chosen:
            yield dg.MaterializeResult(lake_key(name), metadata=_metadata(written[name], url.table_url(name)))
    # Of what was written before, a month in turn: each comes up again within as many days as there are months.
    turn = settings.clock().toordinal()
    for table in tables:
        (found,) = verify(settings, tables=(table,), months=written[table.name].months, turn=turn)
        if dg.AssetCheckKey(lake_key(table.name), CHECK) in context.selected_asset_check_keys:
            yield _result(found)


def _metadata(one: "SyncedTable", url: str) -> dict[str, Any]:
    return {
        "dagster/row_count": one.rows,
        "dagster/uri": url,
        "series_written": one.series,
        "rows_written": one.rows_written,
        "files": one.files,
        "bytes": one.bytes,
        "delta_version": one.version,
        **({"holds_bars_before": one.until.isoformat()} if one.until else {}),
        **({"months_written": ", ".join(one.months)} if one.months else {}),
        "seconds": round(one.seconds, 3),
    }


def _result(found: "VerifiedTable") -> dg.AssetCheckResult:
    sample = [dg.TableRecord(difference._asdict()) for difference in found.sample]
    return dg.AssetCheckResult(
        asset_key=lake_key(found.name),
        check_name=CHECK,
        passed=found.equal,
        description=(
            f"{found.rows:,} rows of {found.months} months are the same as in the database."
            if found.equal
            else f"{found.different} months of series differ: `market-data lake sync --full` writes the lake again."
        ),
        metadata={
            "rows_compared": found.rows,
            "months_compared": found.months,
            "series_behind": found.behind,
            **({"different": dg.TableMetadataValue(sample, _SAMPLE)} if sample else {}),
        },
    )
