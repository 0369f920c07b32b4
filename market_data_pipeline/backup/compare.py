"""Compare a database with what a backup held, table by table, and series by month."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from market_data_pipeline.backup.manifest import Dump, Rows, Table
from market_data_pipeline.store.checksums import contents, tables_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg


def differences(connection: psycopg.Connection[Any], schema: str, dump: Dump) -> Iterator[str]:
    """Yield a sentence for each table, or each series and month, in which a database differs from a backup.

    Args:
        connection: to the database.
        schema: the schema in which its tables are.
        dump: what the backup held.
    """
    present = tables_of(connection, schema)
    there = {}
    for table in dump.tables:
        if lost := [column for column in table.columns if column not in present.get(table.name, ())]:
            what = f"columns {', '.join(lost)}" if table.name in present else "table"
            yield f"{schema}.{table.name}: the {what} of the backup is missing."
        else:
            there[table.name] = table.columns
    held = {content.name: Table.of(content) for content in contents(connection, schema, there)}
    for table in dump.tables:
        if table.name in held and held[table.name].total != table.total:
            yield from _of_table(schema, table, held[table.name])


def _of_table(schema: str, then: Table, now: Table) -> Iterator[str]:
    if not then.months and not now.months:
        yield f"{schema}.{then.name} {_difference(then.total, now.total)}."
    for series in sorted(then.months.keys() | now.months.keys()):
        before, after = then.months.get(series, {}), now.months.get(series, {})
        for month in sorted(before.keys() | after.keys()):
            nothing = (0, "0")
            if (was := before.get(month, nothing)) != (found := after.get(month, nothing)):
                yield f"{schema}.{then.name} {series} {month} {_difference(was, found)}."


def _difference(was: Rows, found: Rows) -> str:
    if was[0] != found[0]:
        return f"holds {found[0]} rows, and the backup {was[0]}"
    return f"holds {was[0]} rows as the backup does, but with other values"
