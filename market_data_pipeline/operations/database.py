"""The database as a command needs it: running and with this version's schema.

Keep out: how the embedded server starts (sandbox.postgres) and how migrations run (store.migrate).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy as sa

    from market_data_pipeline.settings import Settings


def migrate_database(settings: Settings) -> list[str]:
    """Start the embedded server if that is the database, apply what migrations it lacks, return their names.

    Raises:
        ConfigurationError: the embedded server cannot start, or the schema is newer than this code.
        DatabaseUnavailableError: the server cannot be reached.
    """
    from market_data_pipeline.store.migrate import migrate

    if settings.embedded_database:
        from market_data_pipeline.sandbox.postgres import EmbeddedPostgres

        EmbeddedPostgres.of(settings).ensure_running()
    return migrate(settings)


def reading_engine(settings: Settings, *, start: bool = True) -> sa.Engine:
    """Return an engine for a report: it changes no schema of a server that is the user's own.

    Args:
        settings: of the project.
        start: start and migrate the embedded server if that is the database and it does not run.

    Raises:
        ConfigurationError, DatabaseUnavailableError: as `migrate_database`.
    """
    from market_data_pipeline.store.database import engine
    from market_data_pipeline.store.roles import Role

    if start and settings.embedded_database:
        migrate_database(settings)
    return engine(settings.database_url, as_of=settings.as_of, role=Role.READER, pool_size=1)
