"""Compare a database with what a backup held, table by table, and series by month.

A backup of before migration 0050 has tables of bars and features, which have become views: these are compared with it.
The move gave `features_computed_at` in whole seconds after the bar was stored, rounded up. Features that were computed
with their bar are not affected; of a month with others, only the number of rows is compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from market_data_pipeline.backup.manifest import Dump, Rows, Table
from market_data_pipeline.store.checksums import (
    DERIVED,
    FEATURES,
    MOVED,
    RECORDS,
    contents,
    rounded_months,
    tables_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg


def differences(
    connection: psycopg.Connection[Any], schema: str, dump: Dump, of: Callable[[str], bool] = lambda _: True
) -> Iterator[str]:
    """Yield a sentence for each table, or each series and month, in which a database differs from a backup.

    Args:
        connection: to the database.
        schema: the schema in which its tables are.
        dump: what the backup held.
        of: which tables are compared, by their names; all if omitted.
    """
    present = tables_of(connection, schema, views=MOVED)
    held_then = [table for table in dump.tables if table.name not in DERIVED and of(table.name)]
    there = {}
    for table in held_then:
        if lost := [column for column in table.columns if column not in present.get(table.name, ())]:
            what = f"columns {', '.join(lost)}" if table.name in present else "table"
            yield f"{schema}.{table.name}: the {what} of the backup is missing."
        else:
            there[table.name] = table.columns
    held = {content.name: Table.of(content) for content in contents(connection, schema, there)}
    rounded = rounded_of(connection, schema, dump) if FEATURES in held else set()
    for table in held_then:
        if table.name in held and held[table.name].total != table.total:
            yield from _of_table(schema, table, held[table.name], rounded if table.name == FEATURES else set())


def rounded_of(connection: psycopg.Connection[Any], schema: str, dump: Dump) -> set[tuple[str, str]]:
    """Return the series and months of a backup's features of which only the number of rows can be compared."""
    if any(table.name == FEATURES for table in dump.tables) and RECORDS in tables_of(connection, schema):
        return rounded_months(connection)
    return set()


def _of_table(schema: str, then: Table, now: Table, rounded: set[tuple[str, str]]) -> Iterator[str]:
    if not then.months and not now.months:
        yield f"{schema}.{then.name} {_difference(then.total, now.total)}."
    for series in sorted(then.months.keys() | now.months.keys()):
        before, after = then.months.get(series, {}), now.months.get(series, {})
        for month in sorted(before.keys() | after.keys()):
            nothing = (0, "0")
            was, found = before.get(month, nothing), after.get(month, nothing)
            if was[0] != found[0] or (was != found and (series, month) not in rounded):
                yield f"{schema}.{then.name} {series} {month} {_difference(was, found)}."


def _difference(was: Rows, found: Rows) -> str:
    if was[0] != found[0]:
        return f"holds {found[0]} rows, and the backup {was[0]}"
    return f"holds {was[0]} rows as the backup does, but with other values"
