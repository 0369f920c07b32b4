"""The storage of bars as Dagster sees it: an asset whose materialization puts settled partitions in order, every night.

The work itself is in `store.partitions` and `store.packing`. The checks say whether a partition that should be in order
is not, and whether what is packed is what its rows say.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.errors import PipelineError, TransientError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.metadata import stopped, table_schema
from market_data_pipeline.orchestration.partitions import bars_key
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import run_executor

if TYPE_CHECKING:
    from market_data_pipeline.orchestration.dagster_internals import AssetJob
    from market_data_pipeline.store.copy import StoreConnection

RECORDS: Final = dg.AssetKey(["storage", "records"])
SETTLE_JOB: Final = "settle"
CHECK: Final = "settled_partitions_are_in_order"
PACKED_CHECK: Final = "packed_records_equal_their_rows"
# What a night may leave to the next: years of a whole market are put in order over several.
_AT_ONCE: Final = 24
# The same for what is packed: some minutes of a processor.
_ROWS_AT_ONCE: Final = 100_000_000
# Compared with their rows each night: about a second of a processor.
_COMPARED: Final = 50

_PARTITIONS: Final = table_schema({"partition": "string", "rows": "int", "megabytes": "float"})


@dg.asset(
    key=RECORDS,
    deps=[bars_key(tier) for tier in Tier],
    group_name="storage",
    owners=["team:market-data"],
    kinds={"python", "postgres"},
    description=(
        "The table `market_data.records`, in which a bar and its features are one row. Materializing it makes the "
        "partitions of the next weeks, writes those whose time is over again in the order in which they are read, and "
        "packs their rows for readers."
    ),
    check_specs=[
        dg.AssetCheckSpec(
            CHECK, asset=RECORDS, description="Partitions that ended two weeks ago hold their rows by series and time."
        ),
        dg.AssetCheckSpec(
            PACKED_CHECK, asset=RECORDS, description="What readers take instead of rows is what the rows say: a sample."
        ),
    ],
)
def settled_records(
    context: dg.AssetExecutionContext, pipeline: PipelineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Settle what waits for it, the newest first; a partition that is in use stays for the next night."""
    from market_data_pipeline.store.connection import Role
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.packing import packed_size, remove_differing
    from market_data_pipeline.store.partitions import make_ahead, partitions, to_settle

    settings = pipeline.settings()
    try:
        with StoreConnection(settings.database_url, settings.as_of) as connection:
            now = settings.clock()
            make_ahead(connection, now)
            waiting = to_settle(connection, now)
            done, busy = _settled(context, connection, [each.name for each in waiting[:_AT_ONCE]])
            packed_now, not_packed = _packed(context, connection, on=settings.packed == "on")
            busy += [name for name in not_packed if name not in busy]
            with StoreConnection(settings.database_url, settings.as_of, Role.READER) as snapshot:
                snapshot.read_only_snapshots()
                wrong = remove_differing(connection, snapshot, _COMPARED)
            left = to_settle(connection, now)
            held = partitions(connection)
            packed = packed_size(connection)
    except PipelineError as error:
        raise stopped(error) from error
    yield dg.MaterializeResult(
        metadata={
            "partitions": len(held),
            "megabytes": round(sum(each.bytes for each in held) / 1e6, 1),
            "settled": dg.TableMetadataValue(
                [dg.TableRecord({"partition": name, "rows": rows, "megabytes": size}) for name, rows, size in done],
                _PARTITIONS,
            ),
            "left_for_the_next_night": len(left),
            "packed_rows": packed.rows,
            "packed_megabytes": round(packed.bytes / 1e6, 1),
            "rows_packed_now": packed_now,
        }
    )
    yield dg.AssetCheckResult(
        check_name=CHECK,
        passed=not busy,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{', '.join(busy)} could not be put in order, as other statements held it all the while: "
            "pg_stat_activity shows which. The next night tries again."
            if busy
            else "Every partition that has settled is in order, or is going to be in the next nights."
        ),
        metadata={"waiting": [each.name for each in left]},
    )
    yield dg.AssetCheckResult(
        check_name=PACKED_CHECK,
        passed=not wrong,
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"Was not what its rows say, and is removed: {', '.join(wrong)}. Readers may have had old values of them: "
            "something changed rows with the triggers of their partition switched off."
            if wrong
            else f"{_COMPARED} series' partitions, chosen at random, are as their rows say."
        ),
    )


def _packed(context: dg.AssetExecutionContext, connection: "StoreConnection", *, on: bool) -> tuple[int, list[str]]:
    """Pack what has settled, or remove all that is packed; return how many rows, and the partitions in use."""
    from market_data_pipeline.store.packing import (
        forget_removed_partitions,
        pack_partition,
        to_pack,
        unpack_everything,
    )

    if not on:
        unpack_everything(connection)
        return 0, []
    forget_removed_partitions(connection)
    rows, busy = 0, []
    for name in to_pack(connection):
        if rows >= _ROWS_AT_ONCE:
            break
        try:
            rows += pack_partition(connection, name, _ROWS_AT_ONCE - rows)
        except TransientError as error:
            connection.rollback()
            context.log.warning(f"{name} is not packed whole: {error}")
            busy.append(name)
    return rows, busy


def _settled(
    context: dg.AssetExecutionContext, connection: "StoreConnection", names: list[str]
) -> tuple[list[tuple[str, int, float]], list[str]]:
    """Settle partitions; return those that are, with rows and megabytes, and those that were in use."""
    from market_data_pipeline.store.partitions import partitions, settle

    done: list[tuple[str, int, float]] = []
    busy: list[str] = []
    for each in partitions(connection):
        if each.name not in names:
            continue
        try:
            rows = settle(connection, each)
        except TransientError as error:
            connection.rollback()
            context.log.warning(f"{each.name} stays as it is: {error}")
            busy.append(each.name)
        else:
            done.append((each.name, rows, round(each.bytes / 1e6, 1)))
    return done, busy


def settle_job() -> "AssetJob":
    """Return the job that puts settled partitions in order and packs them."""
    return dg.define_asset_job(
        SETTLE_JOB,
        selection=dg.AssetSelection.assets(RECORDS),
        description=(
            "Makes the next partitions of bars, and puts those that have settled in order and packs them for readers."
        ),
        executor_def=run_executor,
    )
