"""How long a sensor's tick may take: Dagster gives up on it after 60 s, and would show no reason.

Add here: what holds for all of a tick. Keep out: how often ticks are made (sensors).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import ExceptionContext

# No transaction begins later; the last one has as many statements as three.
TICK_SECONDS: Final = 30.0
# The slowest statement takes a seventh of a second at 50,000 series.
STATEMENT_SECONDS: Final = 8.0


class OverdueTickError(PipelineError):
    """The database answers, but too slowly for a tick to be finished."""


def bound(engine: Engine, seconds: float = TICK_SECONDS, each: float = STATEMENT_SECONDS) -> None:
    """Let what is done through the engine end: within `seconds` from now, no statement taking longer than `each`.

    Whatever takes longer raises OverdueTickError.
    """
    import psycopg
    import sqlalchemy as sa

    over = time.monotonic() + seconds

    def begin(connection: Connection) -> None:
        left = over - time.monotonic()
        if left <= 0:
            raise OverdueTickError(
                f"The database is too slow: a tick took more than {seconds:g} s of looking. The next one tries again."
            )
        limit = f"{max(int(min(left, each) * 1000), 1)}ms"
        connection.execute(sa.text("select set_config('statement_timeout', :limit, true)"), {"limit": limit})

    def ended(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, psycopg.errors.QueryCanceled):
            raise OverdueTickError(
                f"The database is too slow: a statement was ended after {each:g} s at most. The next tick tries again; "
                "pg_stat_activity shows what it waited for."
            ) from context.original_exception

    sa.event.listen(engine, "begin", begin)
    sa.event.listen(engine, "handle_error", ended)
