"""One consistent look at the database.

Everything that is read inside `snapshot` belongs to the same instant, and nothing is changed by it.
Keep out: statements.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.domain.failures import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_MIGRATED: Final = {"42P01", "42703", "3F000"}  # undefined table, column, schema


@contextmanager
def snapshot(source: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection inside one read-only, repeatable-read transaction.

    Raises:
        DatabaseUnavailableError: the database cannot be reached or has no market data schema, or a statement took
            longer than the session allows.
    """
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with unavailable_when_lost(), source.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def unavailable_when_lost() -> Iterator[None]:
    """Turn what SQLAlchemy raises for an unusable database into `DatabaseUnavailableError`."""
    try:
        yield
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", "") in _NOT_MIGRATED:
            raise DatabaseUnavailableError("The schema is missing or old; run market-data migrate.") from error
        raise
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        raise DatabaseUnavailableError(f"PostgreSQL did not answer: {type(cause).__name__}.") from error
