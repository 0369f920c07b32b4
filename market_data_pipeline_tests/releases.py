"""Databases as earlier versions left them, with data, and what must read the same from them after an upgrade.

The files are in data/releases; its README says how each was made.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql

FOLDER: Final = Path(__file__).parent / "data" / "releases"
# By the newest migration that each has, oldest first.
RELEASES: Final = tuple(sorted(path.name.removesuffix(".sql.xz") for path in FOLDER.glob("*.sql.xz")))
NOT_READ: Final = {"schema_migrations"}  # what an upgrade is there to change

Held: TypeAlias = dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]

# A partition is read with its table, or not at all once the table is a view.
_RELATIONS: Final = """
select c.relname, array_agg(a.attname::text order by a.attnum)
from pg_catalog.pg_class as c
inner join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'market_data'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
group by c.relname order by c.relname
"""
_AS_OF: Final = """
select t.*
from (select distinct symbol, timeframe from market_data.series_state) as s
cross join lateral market_data.bars_as_of(s.symbol, s.timeframe, timestamptz '2025-03-14 16:15Z') as t
"""


def load_release(url: str, release: str) -> None:
    """Make an empty database one of a release; the roles that its privileges name must exist.

    Any migration on the server makes them, for example that of the fixture `migrated_template`.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set check_function_bodies to off")  # pg_dump writes functions before what they read
        connection.execute(lzma.decompress((FOLDER / f"{release}.sql.xz").read_bytes()))


def held(url: str, only: Held | None = None) -> Held:
    """Return the columns and the sorted rows of each table and view, and of bars as of an instant between corrections.

    Args:
        url: of the database.
        only: what another database held: the same relations and columns are read. None for all there are.
    """
    found: Held = {}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set timezone to 'UTC'")
        if only is None:
            there = {name: tuple(columns) for name, columns in connection.execute(_RELATIONS) if name not in NOT_READ}
            there["bars_as_of()"] = there["bars"]
        else:
            there = {name: columns for name, (columns, _) in only.items()}
        for name, columns in there.items():
            source = sql.SQL(_AS_OF) if name == "bars_as_of()" else sql.SQL("table {}").format(_of_schema(name))
            statement = sql.SQL("select {} from ({}) as t").format(_listed(columns), source)
            found[name] = (columns, sorted(connection.execute(statement).fetchall(), key=repr))
    return found


def _of_schema(name: str) -> sql.Identifier:
    return sql.Identifier("market_data", name)


def _listed(columns: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
