"""Counts and checksums of tables, and of each series by month, by which a restored database is compared with a backup.

A checksum is the sum of a 64-bit hash of each row, so the order of rows does not matter. PostgreSQL computes it from
the values, not from their text, and equally on every version since 14. It finds damage and loss, not forgery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from market_data_pipeline.store.feature_values import CODES, FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg

RECORDS: Final = "records"
FEATURES: Final = "features"
# Tables before migration 0050, views of records since.
MOVED: Final = ("bars", FEATURES)
# Summed up by series and month besides: what a table of a hundred million rows lacks has to be found.
BY_MONTH: Final = (*MOVED, RECORDS)
# What is made of records again where it lacks; backups leave it out.
PACKED: Final = "packed_records"
# Neither counted nor compared, because newer code changes them: the calendar, and which migrations there are.
DERIVED: Final = ("sessions", "schema_migrations", PACKED)
# What can be computed again from the bars, and what says how much of it is held.
OF_FEATURES: Final = {
    RECORDS: (*FLOATS, CODES, "features_after", "extra"),
    "series_state": ("feature_version", "feature_count", "features_computed_at"),
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a table, or a part of one, holds."""

    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class TableContent:
    """What a table holds.

    Attributes:
        columns: those in the checksums; a table may have gained others since.
        months: the parts of it by series (`AAPL|5m`) and month (`2026-11`, UTC); empty unless it holds series.
    """

    name: str
    columns: tuple[str, ...]
    total: Content
    months: dict[str, dict[str, Content]]


_TABLES: Final = """
select c.relname, array_agg(a.attname order by a.attnum)
from pg_catalog.pg_class as c
inner join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = to_regnamespace(quote_ident(%s)) and not c.relispartition
and (c.relkind in ('r', 'p') or c.relkind = 'v' and c.relname = any(%s::text[]))
group by c.relname
order by c.relname
"""
_PARTITIONS: Final = """
select c.relname
from pg_catalog.pg_class as p
cross join lateral pg_partition_tree(p.oid) as i
inner join pg_catalog.pg_class as c on i.relid = c.oid
where p.relnamespace = to_regnamespace(quote_ident(%s)) and p.relname = %s and i.isleaf
order by 1
"""
_TOTAL: Final = """
select count(*), coalesce(sum(hash_record_extended(row({columns}), 0)), 0)::text from {table} as t
"""
# Hash aggregation over a few thousand groups, in parallel.
_MONTHS: Final = """
select
    t.symbol || '|' || t.timeframe, to_char(date_trunc('month', t.ts), 'YYYY-MM'), count(*),
    sum(hash_record_extended(row({columns}), 0))::text
from {table} as t
group by t.symbol, t.timeframe, date_trunc('month', t.ts)
order by 1, 2
"""
_MONTHS_OF_RECORDS: Final = """
select s.symbol || '|' || s.timeframe, to_char(g.month, 'YYYY-MM'), g.rows, g.checksum
from (
    select
        t.series, date_trunc('month', t.ts) as month, count(*) as rows,
        sum(hash_record_extended(row({columns}), 0))::text as checksum
    from {table} as t
    group by t.series, date_trunc('month', t.ts)
) as g
inner join market_data.series as s on s.id = g.series
order by 1, 2
"""
_ROUNDED: Final = """
select distinct s.symbol || '|' || s.timeframe, to_char(date_trunc('month', r.ts), 'YYYY-MM')
from market_data.records as r
inner join market_data.series as s on s.id = r.series
where r.features_after <> 0
"""
_GRANTEES: Final = """
select distinct r.rolname
from pg_catalog.pg_namespace as n
cross join lateral (
    select n.nspacl as acl
    union all select c.relacl from pg_catalog.pg_class as c where c.relnamespace = n.oid
    union all
    select a.attacl from pg_catalog.pg_class as c
    inner join pg_catalog.pg_attribute as a on a.attrelid = c.oid
    where c.relnamespace = n.oid
    union all select p.proacl from pg_catalog.pg_proc as p where p.pronamespace = n.oid
) as granted
cross join lateral aclexplode(granted.acl) as one
inner join pg_catalog.pg_roles as r on r.oid = one.grantee
where n.nspname = %s and one.grantee <> n.nspowner and r.rolname <> current_user
order by 1
"""


def tables_of(
    connection: psycopg.Connection[Any], schema: str, *, views: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Return the columns of each table of a schema, and of the named views; partitions are part of their table."""
    return {name: tuple(columns) for name, columns in connection.execute(_TABLES, (schema, list(views)))}


def partitions_of(connection: psycopg.Connection[Any], schema: str, table: str) -> list[str]:
    """Return the partitions of a table that hold its rows."""
    return [name for (name,) in connection.execute(_PARTITIONS, (schema, table))]


def grantees_of(connection: psycopg.Connection[Any], schema: str) -> list[str]:
    """Return the roles, other than its owner, that have privileges in a schema: a restored one grants them again."""
    return [name for (name,) in connection.execute(_GRANTEES, (schema,))]


def rounded_months(connection: psycopg.Connection[Any]) -> set[tuple[str, str]]:
    """Return the series and months in which features were computed after their bars: since 0050 in whole seconds."""
    return set(connection.execute(_ROUNDED))


def contents(
    connection: psycopg.Connection[Any], schema: str, tables: Mapping[str, Sequence[str]]
) -> Iterator[TableContent]:
    """Yield what tables hold, by the named columns, as the connection's transaction sees them."""
    for name, columns in tables.items():
        parts = {
            "table": sql.Identifier(schema, name),
            "columns": sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(column)) for column in columns),
        }
        months: dict[str, dict[str, Content]] = {}
        if schema == "market_data" and name in BY_MONTH:
            statement = _MONTHS_OF_RECORDS if name == RECORDS else _MONTHS
            for series, month, rows, checksum in connection.execute(sql.SQL(statement).format(**parts)):
                months.setdefault(series, {})[month] = Content(rows, checksum)
            total = _sum([part for of_series in months.values() for part in of_series.values()])
        else:
            row = connection.execute(sql.SQL(_TOTAL).format(**parts)).fetchone()
            assert row is not None  # noqa: S101 - an aggregate has a row
            total = Content(*row)
        yield TableContent(name, tuple(columns), total, months)


def _sum(parts: list[Content]) -> Content:
    return Content(sum(part.rows for part in parts), str(sum(int(part.checksum) for part in parts)))
