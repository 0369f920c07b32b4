"""The database as a command needs it: running, at this version's schema, and with a universe.

Keep out: how the embedded server starts (postgres), migrations and changes of the universe (store).
"""

from __future__ import annotations

import sys
import sysconfig
from contextlib import suppress
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.settings import project

if TYPE_CHECKING:
    import sqlalchemy as sa

    from market_data_pipeline.settings import Settings


def migrate_database(settings: Settings) -> list[str]:
    """Start the embedded server if that is the database, apply pending migrations, and return their names.

    Where bars move to another table, which takes minutes, standard error shows how far that is.

    Raises:
        ConfigurationError: the embedded server cannot start, the schema is newer than this code, a connection pooler
            stands before the server in a mode that loses locks, or the environment is in a folder whose name Dagster
            cannot work with.
        DatabaseUnavailableError: the server cannot be reached.
    """
    from market_data_pipeline.store.connection import open_connection
    from market_data_pipeline.store.migrations import migrate

    _check_environment_folder()
    if settings.embedded_database:
        from market_data_pipeline.runtime.postgres import EmbeddedPostgres

        EmbeddedPostgres.of(settings).ensure_running()
    # A reader's environment may lack what shows it, and is told by now that it lacks the server.
    from market_data_pipeline.runtime.move_progress import shown_move

    with shown_move() as on_move:
        applied = migrate(settings, on_move)
    open_connection(settings.database_url).close()  # another login than the owner's may take another way to the server
    if not project.is_local(settings.dagster_postgres_url, settings.state_dir):
        with suppress(DatabaseUnavailableError, DatabaseBusyError):  # that is for those to say who need it now
            refuse_unusable_storage(settings.dagster_postgres_url)
    return applied


def ensure_server(settings: Settings) -> None:
    """Start the embedded server if a database is on it; its databases stay as they are.

    Raises:
        ConfigurationError, DatabaseUnavailableError: it cannot start.
    """
    if settings.embedded_database or project.is_local(settings.dagster_postgres_url, settings.state_dir):
        from market_data_pipeline.runtime.postgres import EmbeddedPostgres

        EmbeddedPostgres.of(settings).ensure_running()


def _check_environment_folder() -> None:
    """Refuse an environment in a folder with a `%`: alembic, which Dagster's storage uses, takes it for a reference.

    Raises:
        ConfigurationError: names the folder.
    """
    if "%" in sysconfig.get_path("purelib"):
        raise ConfigurationError(
            f"The name of {sys.prefix} contains '%', with which Dagster's storage cannot work: move the project, or "
            "its environment, to a folder without it."
        )


def refuse_unusable_storage(url: str) -> None:
    """Look at what Dagster's own connections to its storage are given, which say only their time zone and encoding.

    Raises:
        ConfigurationError: they could not create or change anything; the message says what to change.
        DatabaseUnavailableError, DatabaseBusyError: as `open_connection`.
    """
    from market_data_pipeline.store.connection import describe, inherited_settings

    given = inherited_settings(url)
    if given.read_only:
        remedy = f"alter role {given.login} in database {given.database} set default_transaction_read_only to off"
        raise ConfigurationError(
            f"{describe(url)} holds Dagster's storage and is read-only by default for this login; "
            f"`{remedy}` changes that."
        )
    if given.schema is None:
        remedy = f"alter role {given.login} in database {given.database} set search_path to public"
        raise ConfigurationError(
            f"{describe(url)} holds Dagster's storage, and the search_path of this login names no schema that exists; "
            f"`{remedy}` changes that."
        )


def reading_engine(settings: Settings, *, start: bool = True) -> sa.Engine:
    """Return a read-only engine; the schema of the user's own server is never changed.

    Args:
        settings: of the project.
        start: whether to start and migrate the embedded server, if that is the database.

    Raises:
        ConfigurationError, DatabaseUnavailableError: as `migrate_database`.
    """
    from market_data_pipeline.store.connection import Role, engine

    if start and settings.embedded_database:
        migrate_database(settings)
    return engine(settings.database_url, as_of=settings.as_of, role=Role.READER, pool_size=1)


def open_universe(settings: Settings) -> sa.Engine:
    """Return an engine on a database at this version's schema, with the universe file loaded if it had no symbols.

    Raises:
        ConfigurationError: the universe file, the schema or the embedded server is wrong.
        DatabaseUnavailableError: the server cannot be reached.
    """
    from market_data_pipeline.store.connection import engine
    from market_data_pipeline.store.universe import ensure_universe

    migrate_database(settings)
    made = engine(settings.database_url, as_of=settings.as_of, pool_size=1)
    ensure_universe(settings, made)
    return made
