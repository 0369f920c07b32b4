"""Restore a backup into empty databases: each in one transaction, compared with the backup before it counts.

Dagster's database comes first. When the second one fails, or the command is killed between the two, the next try finds
the first one equal to the backup and goes on with the second.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from market_data_pipeline.backup.compare import differences
from market_data_pipeline.backup.make import MARKET_DATA, Part, parts_of
from market_data_pipeline.backup.place import Backup, Place, backup_at
from market_data_pipeline.backup.plain_bars import FILE, lacks_bars, load_bars
from market_data_pipeline.domain.errors import BackupError, ConfigurationError
from market_data_pipeline.store.checksums import MOVED, RECORDS, tables_of
from market_data_pipeline.store.connection import Role, describe, open_connection
from market_data_pipeline.store.migrations import known_migrations, migrate
from market_data_pipeline.store.postgres_tools import Tools, tools_for
from market_data_pipeline.store.series_state import forget_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.backup.manifest import Dump, Manifest
    from market_data_pipeline.settings import Settings

_NAMED: Final = 3  # differences in one sentence
_UNKNOWN_ROLES: Final = "select name from unnest(%s::text[]) as name where to_regrole(quote_ident(name)) is null"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        backup: what was restored.
        manifest: what it holds.
        found: the databases that held it already.
        migrated: names of the migrations that this code has and the backup had not.
    """

    backup: Backup
    manifest: Manifest
    found: tuple[str, ...]
    migrated: tuple[str, ...]


def restore_backup(
    settings: Settings,
    place: Place,
    say: Callable[[str], None] = lambda _: None,
    on_move: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore the backup at `place`, or the newest one in it, into the project's databases, which must be empty.

    `say` is given a sentence for each step, and `on_move` the progress of a migration that moves bars, see `migrate`.

    Raises:
        BackupError: the backup is damaged, or what was restored is not what it held.
        ConfigurationError: a database holds something else, or its server or this code cannot take the backup.
        DatabaseUnavailableError: a database cannot be reached.
    """
    backup = backup_at(place, settings)
    manifest = backup.manifest()
    _check(settings, manifest)
    if damaged := backup.damaged(manifest):
        raise BackupError(f"{damaged[0]} Nothing was restored: use another backup.")
    parts = {name: part for name, part in parts_of(settings).items() if name in manifest.dumps}
    tools = {name: _prepare(part, manifest.dumps[name]) for name, part in parts.items()}
    found = [name for name, part in parts.items() if not _is_empty(part, manifest.dumps[name])]
    for name in found:
        _go_on(parts[name], name, backup, manifest)
        _refuse_another(parts[name], manifest.dumps[name])
        say(f"The database of {name} holds the backup already.")
    for name, part in parts.items():
        if name not in found:
            say(f"Restoring {name} into {describe(part.url)} ...")
            _restore(part, name, backup, manifest, tools[name])
    if not manifest.features:
        with open_connection(parts["market_data"].url, autocommit=True) as connection:
            forget_features(connection)
    migrated = migrate(settings, on_move)
    if migrated:
        _compare(parts["market_data"], manifest.market_data, of=MOVED.__contains__)
    return Restored(backup, manifest, tuple(found), tuple(migrated))


def _check(settings: Settings, manifest: Manifest) -> None:
    if manifest.migration not in known_migrations():
        raise ConfigurationError(
            f"The backup has migration {manifest.migration}, which this code does not have: it was made by version "
            f"{manifest.version}. Update the code, for example with `git pull && make install`."
        )
    source = manifest.source
    if source is not None and source.kind != settings.kind_of_bars:
        bars = f"bars of {source.host}" if source.host else f"bars of a {source.kind}"
        remedy = {
            "vendor": "set POLYGON_API_KEY",
            "sandbox": "unset POLYGON_API_KEY, POLYGON_BASE_URL and MARKET_DATA_SANDBOX_REPLAY",
            "replay": "set MARKET_DATA_SANDBOX_REPLAY",
        }[source.kind]
        raise ConfigurationError(
            f"The backup holds {bars}, and these settings are for those of a {settings.kind_of_bars}: {remedy}."
        )


def _prepare(part: Part, dump: Dump) -> Tools:
    """Return the programs for a database that can take a dump; the roles that it names exist then."""
    with open_connection(part.url, autocommit=True) as connection:
        server = connection.info.server_version // 10_000
        if server < dump.server:
            raise ConfigurationError(
                f"{describe(part.url)} is version {server}, and the backup is of version {dump.server}: restore it "
                f"into version {dump.server} or newer."
            )
        tools = tools_for(server, embedded=part.embedded)
        unknown = [name for (name,) in connection.execute(_UNKNOWN_ROLES, (dump.grantees,))]
        wanted = "; ".join(
            sql.SQL("create role {}").format(sql.Identifier(name)).as_string(connection) for name in unknown
        )
        try:
            if {*unknown} <= {role.value for role in Role}:
                for name in unknown:
                    connection.execute(sql.SQL("create role {}").format(sql.Identifier(name)))
                return tools
        except psycopg.errors.InsufficientPrivilege:
            pass
    raise ConfigurationError(
        f"The backup grants privileges to roles that {describe(part.url)} does not have: ask its administrator to run "
        f"`{wanted};`, then run the command again."
    )


def _is_empty(part: Part, dump: Dump) -> bool:
    """Return whether a database has no table of a dump, nor anything else where all tables would be ours."""
    with open_connection(part.url) as connection:
        present = tables_of(connection, part.schema)
    if part.schema == MARKET_DATA:
        return not present
    return not present.keys() & {table.name for table in dump.tables}


def _refuse_another(part: Part, dump: Dump) -> None:
    """Raise unless a database that is not empty holds exactly what a dump held.

    Raises:
        ConfigurationError: says how to empty it.
    """
    with open_connection(part.url) as connection:
        difference = next(iter(differences(connection, part.schema, dump)), None)
    if difference is None:
        return
    if part.embedded:
        remedy = "run `market-data down` and move the folder .market-data/postgres away"
    else:
        again = "; create schema public" if part.schema == "public" else ""
        remedy = f'name an empty database, or empty this one with `drop schema "{part.schema}" cascade{again}`'
    raise ConfigurationError(
        f"{describe(part.url)} is not empty, and a backup is never restored over anything: {remedy}. ({difference})"
    )


def _restore(part: Part, name: str, backup: Backup, manifest: Manifest, tools: Tools) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".list") as entries:
        entries.write(_entries(backup.entries(name, manifest, tools), existing=_schema_exists(part)))
        entries.flush()
        arguments = (
            "--single-transaction",  # all or nothing, also when it is killed
            "--exit-on-error",
            "--no-owner",  # it belongs to the login that restores it
            "--no-tablespaces",
            "--no-password",
            f"--use-list={entries.name}",
        )
        backup.restore(name, manifest, tools, arguments, part.url)
    _go_on(part, name, backup, manifest)
    with open_connection(part.url, autocommit=True) as connection:
        connection.execute("analyze")
    _compare(part, manifest.dumps[name])


def _go_on(part: Part, name: str, backup: Backup, manifest: Manifest) -> None:
    """Store the bars that lie beside a dump, where all that is in it is restored and nothing else is stored."""
    dump = manifest.dumps[name]
    with open_connection(part.url) as connection:
        if not lacks_bars(connection, dump):
            return
        others = differences(connection, part.schema, dump, of=lambda table: table != RECORDS)
        if next(others, None) is not None:
            return
    load_bars(part.url, dump, backup.added(name, FILE, manifest))


def _compare(part: Part, dump: Dump, of: Callable[[str], bool] = lambda _: True) -> None:
    """Compare what was restored with the backup.

    Raises:
        BackupError: it differs.
    """
    with open_connection(part.url) as connection:
        wrong = list(differences(connection, part.schema, dump, of))
    if wrong:
        more = f" (and {len(wrong) - _NAMED} more differences)" if len(wrong) > _NAMED else ""
        raise BackupError(
            f"What was restored into {describe(part.url)} is not what the backup held, so do not use it: "
            f"{' '.join(wrong[:_NAMED])}{more}"
        )


def _schema_exists(part: Part) -> bool:
    with open_connection(part.url) as connection:
        row = connection.execute("select to_regnamespace(quote_ident(%s)) is not null", (part.schema,)).fetchone()
    return row is not None and bool(row[0])


def _entries(listed: str, *, existing: bool) -> str:
    """Return the table of contents of a dump without what is not restored, for `pg_restore --use-list`.

    Default privileges name the owner, who may be another one here; `market-data migrate` grants them again. A schema
    that exists stays as it is.
    """
    kinds = ["DEFAULT ACL"]
    if existing:
        kinds += ["SCHEMA", "COMMENT - SCHEMA", "ACL - SCHEMA"]
    # A line is `number; catalogue oid KIND schema name owner`.
    return "".join(
        line
        for line in listed.splitlines(keepends=True)
        if line.startswith(";") or not line.split(" ", 3)[3].startswith(tuple(f"{kind} " for kind in kinds))
    )
