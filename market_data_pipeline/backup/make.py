"""Make a backup: one snapshot of each database, dumped and counted, which appears under its name once it is whole.

A snapshot cannot span two databases. Dagster's is taken first, and that of the market data milliseconds later: it holds
all that Dagster's records of finished runs speak of.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

from market_data_pipeline import __version__
from market_data_pipeline.backup.folder import FolderBackup
from market_data_pipeline.backup.manifest import BarsOf, Dump, Manifest, Table
from market_data_pipeline.backup.place import Backup, Place, Writer, writer_at
from market_data_pipeline.backup.plain_bars import FILE, packed_bars
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import project
from market_data_pipeline.store.backups import record_backup
from market_data_pipeline.store.checksums import (
    DERIVED,
    FEATURES,
    OF_FEATURES,
    PACKED,
    RECORDS,
    contents,
    grantees_of,
    partitions_of,
    tables_of,
)
from market_data_pipeline.store.connection import LOCK_RECORDS, describe, inherited_settings, libpq_url, open_connection
from market_data_pipeline.store.migrations import newest_migration
from market_data_pipeline.store.postgres_tools import tools_for
from market_data_pipeline.store.record_move import is_moving
from market_data_pipeline.store.source import recorded_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.settings import Settings

MARKET_DATA: Final = "market_data"  # the schema
_COMPRESSION: Final = 1  # of gzip, the only method that every build has: level 6 takes three times as long for a tenth
_LOCK_WAIT: Final = "60s"  # a migration that runs meanwhile locks tables for seconds


class Part(NamedTuple):
    """One of the two databases: where it is, and the schema of its tables."""

    url: str
    schema: str
    known_by: str  # a table that is there if anything is
    embedded: bool


@dataclass(frozen=True, slots=True)
class Made:
    """A finished backup."""

    backup: Backup
    manifest: Manifest
    removed: tuple[str, ...]  # the names of older ones that went

    @property
    def folder(self) -> Path:
        """Its folder on this machine.

        Raises:
            ConfigurationError: it is in an object store.
        """
        if isinstance(self.backup, FolderBackup):
            return self.backup.folder
        raise ConfigurationError(f"{self.backup} is not on this machine.")


def parts_of(settings: Settings) -> dict[str, Part]:
    """Return the databases of a project by the names of their dumps, in the order of the snapshots.

    Raises:
        DatabaseUnavailableError: Dagster's storage cannot be reached.
    """
    storage = libpq_url(settings.dagster_postgres_url)
    schema = inherited_settings(storage).schema or "public"
    return {
        "dagster": Part(storage, schema, "runs", project.is_local(storage, settings.state_dir)),
        "market_data": Part(settings.owner_url, MARKET_DATA, "symbols", settings.embedded_database),
    }


def make_backup(
    settings: Settings,
    place: Place,
    *,
    keep: int | None,
    next_within: timedelta | None = None,
    features: bool = True,
) -> Made:
    """Back up both databases into a place beside earlier backups; refreshes go on meanwhile.

    Args:
        settings: of the project.
        place: where backups lie: a folder, created if there is none, or the URL of an object store.
        keep: how many finished backups to leave there, this one included; None for all.
        next_within: the time within which the next backup is due; None when none is scheduled.
        features: whether they are backed up; if not, the first refresh after a restore computes them again.

    Raises:
        BackupError: another backup into the folder is under way, or a dump failed; nothing new is left there.
        ConfigurationError: the programs of the server's version are missing, or the schema is, or the place cannot be
            used.
        DatabaseUnavailableError: a database cannot be reached.
    """
    parts = parts_of(settings)
    with writer_at(place, settings) as writer, ExitStack() as stack:
        snapshots = {name: stack.enter_context(_snapshot(part)) for name, part in parts.items()}
        taken_at = snapshots["market_data"].taken_at
        _refuse_halves(snapshots["market_data"].connection)
        writer.begin(taken_at)
        dumps = {name: _dump(name, part, snapshots[name], writer, features=features) for name, part in parts.items()}
        if (market_data := dumps["market_data"]) is None:
            raise ConfigurationError(
                f"{describe(settings.owner_url)} holds no market data: there is nothing to back up."
            )
        connection = snapshots["market_data"].connection
        held = recorded_source(connection)
        manifest = Manifest(
            format=1,
            taken_at=taken_at,
            version=__version__,
            migration=newest_migration(connection),
            source=None if held is None else BarsOf(kind=held.kind, host=held.host, plan=held.plan),
            market_data=market_data,
            dagster=dumps["dagster"],
            features=features,
        )
        backup = writer.finish(manifest)
        record_backup(
            settings.owner_url,
            taken_at=taken_at,
            location=backup.location,
            size=manifest.size,
            next_within=next_within,
        )
        removed = writer.leave(keep) if keep else []
    return Made(backup, manifest, tuple(removed))


class _Snapshot(NamedTuple):
    connection: psycopg.Connection[Any]  # in the transaction of the snapshot
    name: str  # by which others see the same
    taken_at: datetime  # all that was committed before is in it


@contextmanager
def _snapshot(part: Part) -> Iterator[_Snapshot]:
    with open_connection(part.url) as connection:
        has_records = connection.execute("select to_regclass('market_data.records') is not null").fetchone() == (True,)
        connection.rollback()
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        if has_records:
            connection.execute(LOCK_RECORDS)
        row = connection.execute("select pg_export_snapshot(), now()").fetchone()
        assert row is not None  # noqa: S101 - a query without a condition has a row
        yield _Snapshot(connection, *row)
        connection.rollback()


def _refuse_halves(connection: psycopg.Connection[Any]) -> None:
    """Refuse a database whose bars are in two tables: what a backup of it held could be compared with nothing later.

    Raises:
        ConfigurationError: says how to end that.
    """
    if is_moving(connection):
        raise ConfigurationError(
            "Bars are being moved to a new table, and no backup is made meanwhile: `market-data migrate` goes on with "
            "it, and then a backup can be made."
        )


def _dump(name: str, part: Part, snapshot: _Snapshot, writer: Writer, *, features: bool) -> Dump | None:
    """Dump the schema of a part as a snapshot sees it, perhaps without features; return None where it has none."""
    connection = snapshot.connection
    tables = tables_of(connection, part.schema)
    if part.known_by not in tables:
        return None
    server = connection.info.server_version // 10_000
    tools = tools_for(server, embedded=part.embedded)
    quoted = part.schema.replace('"', '""')
    arguments = (
        f"--compress={_COMPRESSION}",
        f'--schema="{quoted}"',
        f"--snapshot={snapshot.name}",
        f"--lock-wait-timeout={_LOCK_WAIT}",
        "--no-password",
        f'--exclude-table-data="{quoted}".{PACKED}',
        *(
            f'--exclude-table-data="{quoted}".{partition}'
            for table in (() if features else (FEATURES, RECORDS))
            for partition in partitions_of(connection, part.schema, table)
        ),
    )
    of_features = {} if features else OF_FEATURES
    counted = {
        table: tuple(column for column in columns if column not in of_features.get(table, ()))
        for table, columns in tables.items()
        if table not in DERIVED and (features or table != FEATURES)
    }
    files = writer.dump(name, tools, arguments, part.url)
    if not features and part.schema == MARKET_DATA and RECORDS in counted:
        files += writer.add(name, FILE, packed_bars(connection, part.schema, counted[RECORDS]))
    return Dump(
        schema_name=part.schema,
        server=server,
        tools=tools.version,
        grantees=grantees_of(connection, part.schema),
        files=files,
        tables=[Table.of(content) for content in contents(connection, part.schema, counted)],
    )
