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


def ready_database(settings: Settings) -> sa.Engine:
    """Return an engine on the database, with the embedded server started and migrated.

    A server of the user's own is left as it is: `market-data migrate` and `up` change its schema, a report does not.

    Raises:
        ConfigurationError, DatabaseUnavailableError: as `migrate_database`.
    """
    from market_data_pipeline.store.database import engine

    if settings.embedded_database:
        migrate_database(settings)
    return engine(settings.database_url, as_of=settings.as_of, pool_size=1)
