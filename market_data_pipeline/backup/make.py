"""Make a backup: one snapshot of each database, dumped and counted, which appears under its name once it is whole.

A snapshot cannot span two databases. Dagster's is taken first, and that of the market data milliseconds later: it holds
all that Dagster's records of finished runs speak of.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

from market_data_pipeline import __version__
from market_data_pipeline.backup.manifest import (
    BarsOf,
    Dump,
    Manifest,
    Table,
    backups_in,
    files_of,
    new_place,
    remove_backup,
    sync_folder,
    unfinished_in,
    write_file,
    write_manifest,
)
from market_data_pipeline.backup.plain_bars import FILE, packed_bars
from market_data_pipeline.domain.errors import BackupError, ConfigurationError
from market_data_pipeline.settings import project
from market_data_pipeline.store.backups import record_backup
from market_data_pipeline.store.checksums import (
    DERIVED,
    FEATURES,
    OF_FEATURES,
    RECORDS,
    contents,
    grantees_of,
    partitions_of,
    tables_of,
)
from market_data_pipeline.store.connection import describe, inherited_settings, libpq_url, open_connection
from market_data_pipeline.store.migrations import newest_migration
from market_data_pipeline.store.postgres_tools import tools_for
from market_data_pipeline.store.record_move import is_moving
from market_data_pipeline.store.source import recorded_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.settings import Settings

MARKET_DATA: Final = "market_data"  # the schema
_JOBS: Final = 2  # tables dumped at the same time: more would take the processors from refreshes
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

    folder: Path
    manifest: Manifest
    removed: tuple[str, ...]  # the names of older ones that went


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
    folder: Path,
    *,
    keep: int | None,
    next_within: timedelta | None = None,
    features: bool = True,
) -> Made:
    """Back up both databases into a new folder within `folder`; refreshes go on meanwhile.

    Args:
        settings: of the project.
        folder: where backups lie; created if there is none.
        keep: how many finished backups to leave there, this one included; None for all.
        next_within: the time within which the next backup is due; None when none is scheduled.
        features: whether they are backed up; if not, the first refresh after a restore computes them again.

    Raises:
        BackupError: another backup into the folder is under way, or a dump failed; nothing new is left there.
        ConfigurationError: the programs of the server's version are missing, or the schema is.
        DatabaseUnavailableError: a database cannot be reached.
    """
    parts = parts_of(settings)
    with _only_one(folder) as lock, ExitStack() as stack:
        for left in unfinished_in(folder):
            shutil.rmtree(left)
        snapshots = {name: stack.enter_context(_snapshot(part)) for name, part in parts.items()}
        taken_at = snapshots["market_data"].taken_at
        place = new_place(folder, taken_at)
        draft = place.with_name(f".{place.name}")
        draft.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, draft, ignore_errors=True)
        _refuse_halves(snapshots["market_data"].connection)
        dumps = {
            name: _dump(part, snapshots[name], draft / name, lock, features=features) for name, part in parts.items()
        }
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
        write_manifest(draft, manifest)
        sync_folder(draft)
        finished = draft.rename(place)
        sync_folder(folder)
        record_backup(
            settings.owner_url,
            taken_at=taken_at,
            location=f"{socket.gethostname()}:{finished}",
            size=manifest.size,
            next_within=next_within,
        )
        old = backups_in(folder)[:-keep] if keep else []
        for each in old:
            remove_backup(each)
    return Made(finished, manifest, tuple(each.name for each in old))


class _Snapshot(NamedTuple):
    connection: psycopg.Connection[Any]  # in the transaction of the snapshot
    name: str  # by which others see the same
    taken_at: datetime  # all that was committed before is in it


@contextmanager
def _snapshot(part: Part) -> Iterator[_Snapshot]:
    with open_connection(part.url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
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


def _dump(part: Part, snapshot: _Snapshot, folder: Path, lock: int, *, features: bool) -> Dump | None:
    """Dump the schema of a part as a snapshot sees it, perhaps without features; return None where it has none."""
    connection = snapshot.connection
    tables = tables_of(connection, part.schema)
    if part.known_by not in tables:
        return None
    server = connection.info.server_version // 10_000
    tools = tools_for(server, embedded=part.embedded)
    quoted = part.schema.replace('"', '""')
    arguments = (
        "--format=directory",
        f"--file={folder}",
        f"--jobs={_JOBS}",
        f"--compress={_COMPRESSION}",
        f'--schema="{quoted}"',
        f"--snapshot={snapshot.name}",
        f"--lock-wait-timeout={_LOCK_WAIT}",
        "--no-password",
        *(
            f'--exclude-table-data="{quoted}".{partition}'
            for name in (() if features else (FEATURES, RECORDS))
            for partition in partitions_of(connection, part.schema, name)
        ),
    )
    of_features = {} if features else OF_FEATURES
    counted = {
        name: tuple(column for column in columns if column not in of_features.get(name, ()))
        for name, columns in tables.items()
        if name not in DERIVED and (features or name != FEATURES)
    }
    tools.run("pg_dump", arguments, part.url, inherits=(lock,))
    folder.chmod(0o700)
    if not features and part.schema == MARKET_DATA and RECORDS in counted:
        write_file(folder / FILE, packed_bars(connection, part.schema, counted[RECORDS]))
    return Dump(
        schema_name=part.schema,
        server=server,
        tools=tools.version,
        grantees=grantees_of(connection, part.schema),
        files=files_of(folder),
        tables=[Table.of(content) for content in contents(connection, part.schema, counted)],
    )


@contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Hold the folder's lock and yield its descriptor; the kernel releases it when all who have it open have ended.

    Raises:
        BackupError: another backup has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"Another backup into {folder} is under way: wait for it to end.") from None
        yield descriptor
    finally:
        os.close(descriptor)
