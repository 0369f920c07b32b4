"""What a database holds bars of: `market_data.source`, which the first bar writes and later ones are checked against.

Keep out: what the settings name, and what to do when it is something else (ingest.source).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.store.connection import open_connection

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg

    from market_data_pipeline.settings.project import Kind


@dataclass(frozen=True, slots=True)
class Source:
    """Where bars come from; `host` is that of a vendor, None for the sandbox."""

    kind: Kind
    host: str | None
    plan: str

    @property
    def setting(self) -> str:
        """The value of `market_data.source` that a connection of this source has."""
        return json.dumps({"kind": self.kind, "host": self.host, "plan": self.plan})

    @property
    def statement(self) -> str:
        """The statement with which an administrator records this source by hand."""
        columns = "insert into market_data.source (kind, host, plan, since)"
        host = "null" if self.host is None else f"'{self.host}'"
        return f"{columns} values ('{self.kind}', {host}, '{self.plan}', now())"

    def __str__(self) -> str:
        return {
            "vendor": f"bars of {self.host}",
            "sandbox": "the sandbox's synthetic bars",
            "replay": "recorded bars of a replay",
        }[self.kind]


class Held(NamedTuple):
    """What a database holds: `source` is None when it is not recorded, `since` then too."""

    source: Source | None
    since: datetime | None
    has_bars: bool


_EXISTS: Final = "select to_regclass('market_data.source') is not null"
_HELD: Final = """
select s.kind, s.host, s.plan, s.since, exists (select from market_data.bars) as has_bars
from (select 1) as always
left join market_data.source as s on true
"""
_ADOPT: Final = """
insert into market_data.source (kind, host, plan, since) values (%s, %s, %s, market_data.clock()) on conflict do nothing
"""


def held_source(database_url: str) -> Held:
    """Return what a database holds; nothing where the schema is missing or older than the table.

    Raises:
        DatabaseUnavailableError: it cannot be reached.
    """
    with open_connection(database_url, autocommit=True) as connection:
        exists = connection.execute(_EXISTS).fetchone()
        row = connection.execute(_HELD).fetchone() if exists and exists[0] else None
    if row is None:
        return Held(None, None, has_bars=False)
    kind, host, plan, since, has_bars = row
    return Held(None if kind is None else Source(kind, host, plan), since, has_bars)


def recorded_source(connection: psycopg.Connection[Any]) -> Source | None:
    """Return the source that a database has recorded, as the connection's transaction sees it.

    None where there is none, as in a schema that is older than the table, before an upgrade.
    """
    if connection.execute("select to_regclass('market_data.source')").fetchone() == (None,):
        return None
    row = connection.execute("select kind, host, plan from market_data.source").fetchone()
    return None if row is None else Source(*row)


def adopt_source(database_url: str, source: Source) -> None:
    """Record the source of bars that were stored before sources were recorded.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
    """
    with open_connection(database_url, autocommit=True) as connection:
        connection.execute(_ADOPT, (source.kind, source.host, source.plan))
