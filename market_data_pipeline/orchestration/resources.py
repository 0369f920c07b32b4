"""The resource of runs, checks and sensors: settings, database and pipeline.

A Dagster resource (https://docs.dagster.io/guides/build/external-resources): everything is built when it is first used
inside a run or a tick, never at import. Tests and `definitions` pass a subclass as `build_defs(resource_overrides=…)`.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import ExceptionContext

    from market_data_pipeline.domain.series import Tier
    from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.source import Vendor
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.universe import TrackedSymbol


# Dagster gives up on a sensor's tick after 60 s and shows no reason. No transaction begins later than this into a tick;
# the last one has up to three statements.
TICK_SECONDS: Final = 30.0
STATEMENT_SECONDS: Final = 8.0  # the slowest statement takes a seventh of a second at 50,000 series


class OverdueTickError(PipelineError):
    """The database answers, but too slowly for a tick to finish."""


class PipelineResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Dagster's access to the pipeline; it holds no state and is cheap to construct."""

    def settings(self) -> Settings:
        """Return the settings that the environment gives.

        Raises:
            ConfigurationError: a value is wrong.
        """
        from market_data_pipeline.settings import load_settings

        return load_settings()

    def vendor(self, settings: Settings) -> Vendor:
        """Return the source of bars: the vendor that the settings name; `definitions` adds the sandbox.

        Raises:
            ConfigurationError: they name none, or one on another machine without a key.
        """
        from market_data_pipeline.ingest.source import named_vendor

        return named_vendor(settings)

    @contextmanager
    def database(self) -> Iterator[Engine]:
        """Lend an engine on the market data; its connections are closed at the end.

        Raises:
            DatabaseUnavailableError: from the first statement, when PostgreSQL cannot be reached.
        """
        from market_data_pipeline.store.connection import engine

        settings = self.settings()
        lent = engine(settings.database_url, as_of=settings.as_of, application_name="market-data-dagster", pool_size=1)
        try:
            yield lent
        finally:
            lent.dispose()

    @contextmanager
    def tick_database(self) -> Iterator[Engine]:
        """Lend an engine for a tick, whose work through it ends within `TICK_SECONDS`.

        Raises:
            OverdueTickError: the tick, or one of its statements, takes too long.
            DatabaseUnavailableError: as `database`.
        """
        with self.database() as engine:
            bound(engine)
            yield engine

    def tracked(self, engine: Engine) -> Sequence[TrackedSymbol]:
        """Return the universe; the universe file is loaded first when there is none yet."""
        from market_data_pipeline.store.universe import ensure_universe, tracked

        ensure_universe(self.settings(), engine)
        return tracked(engine)

    def symbols(self, tier: Tier) -> list[str]:
        """Return the active symbols of a tier."""
        with self.database() as engine:
            return [entry.symbol for entry in self.tracked(engine) if entry.active and entry.tier == tier]

    @contextmanager
    def pipeline(self, history_days: int | None = None, *, by_file: bool = False) -> Iterator[Pipeline]:
        """Lend the pipeline: vendor, database, clock and plan; `history_days` replaces the configured number.

        With `by_file`, the bars of settled days come from the vendor's flat files.

        Raises:
            ConfigurationError: the settings contradict themselves.
        """
        from market_data_pipeline.ingest.pipeline import build_pipeline

        settings = self.settings()
        vendor = self.vendor(settings)
        with build_pipeline(settings, vendor, history_days=history_days, by_file=by_file) as pipeline:
            yield pipeline

    def refresh(
        self,
        requests: Sequence[SymbolRequest],
        *,
        run_id: str,
        history_days: int | None = None,
        full: bool = False,
        by_file: bool = False,
    ) -> Iterator[SeriesOutcome]:
        """Refresh symbols and yield each series' outcome when it is committed.

        Args:
            requests: which symbols and which of their timeframes.
            run_id: the run that the audit rows name.
            history_days: calendar days of history to hold instead of the configured ones.
            full: fetch and compare everything again.
            by_file: take the bars of settled days from the vendor's flat files.

        Raises:
            PipelineError: a failure that every symbol shares, for example a refused key.
        """
        from market_data_pipeline.ingest.shard import refresh_shard

        with self.pipeline(history_days, by_file=by_file) as pipeline:
            yield from refresh_shard(requests, pipeline=pipeline, run_id=run_id, full=full)


def bound(engine: Engine, seconds: float = TICK_SECONDS, each: float = STATEMENT_SECONDS) -> None:
    """Bound the work through an engine: it ends within `seconds` from now, and no statement takes longer than `each`.

    What takes longer raises OverdueTickError.
    """
    import psycopg
    import sqlalchemy as sa

    over = time.monotonic() + seconds

    def begin(connection: Connection) -> None:
        left = over - time.monotonic()
        if left <= 0:
            raise OverdueTickError(
                f"The database is too slow: a tick took more than {seconds:g} s. The next tick tries again."
            )
        limit = f"{max(int(min(left, each) * 1000), 1)}ms"
        connection.execute(sa.text("select set_config('statement_timeout', :limit, true)"), {"limit": limit})

    def ended(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, psycopg.errors.QueryCanceled):
            raise OverdueTickError(
                f"The database is too slow: a statement was cancelled after at most {each:g} s. The next tick tries "
                "again; pg_stat_activity shows what blocks it."
            ) from context.original_exception

    sa.event.listen(engine, "begin", begin)
    sa.event.listen(engine, "handle_error", ended)
