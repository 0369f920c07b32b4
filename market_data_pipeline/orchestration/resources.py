"""What a run, a check or a sensor is handed: the settings, the database and the pipeline itself.

Everything is made when it is first used inside a run or a tick, never at import. Tests hand in a subclass through
`build_defs(resource_overrides=…)`. Keep out: any work of its own (ingest, store).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.domain.series import Tier
    from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline, Vendor
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.universe import TrackedSymbol


class PipelineResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The way from Dagster to the pipeline; it holds nothing and is cheap to make."""

    def settings(self) -> Settings:
        """Return what the environment says.

        Raises:
            ConfigurationError: a value is bad.
        """
        from market_data_pipeline.settings import load_settings

        return load_settings()

    def vendor(self, settings: Settings) -> Vendor:
        """Return where bars come from: the vendor that the settings name; `definitions` adds the sandbox.

        Raises:
            ConfigurationError: they name none, or one on another machine without a key.
        """
        from market_data_pipeline.ingest.pipeline import named_vendor

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

    def tracked(self, prepare: Callable[[Engine], None] = lambda _: None) -> Sequence[TrackedSymbol]:
        """Return the universe; the universe file is loaded first when there is none yet.

        Args:
            prepare: is given the engine before its first use.
        """
        from market_data_pipeline.store.universe import ensure_universe, tracked

        with self.database() as engine:
            prepare(engine)
            ensure_universe(self.settings(), engine)
            return tracked(engine)

    def symbols(self, tier: Tier) -> list[str]:
        """Return the active symbols of a tier."""
        return [entry.symbol for entry in self.tracked() if entry.active and entry.tier == tier]

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Lend the pipeline: vendor, database, clock and plan.

        Raises:
            ConfigurationError: the settings contradict themselves.
        """
        from market_data_pipeline.ingest.pipeline import build_pipeline

        settings = self.settings()
        with build_pipeline(settings, self.vendor(settings)) as pipeline:
            yield pipeline

    def refresh(
        self, requests: Sequence[SymbolRequest], *, run_id: str, history_days: int | None = None, full: bool = False
    ) -> Iterator[SeriesOutcome]:
        """Refresh symbols and yield each series' outcome when it is committed.

        Args:
            requests: which symbols and which of their timeframes.
            run_id: the run that the audit rows name.
            history_days: calendar days of history to hold instead of the configured ones.
            full: ask for and compare everything again.

        Raises:
            PipelineError: a failure that every symbol shares, for example a refused key.
        """
        from market_data_pipeline.ingest.pipeline import build_pipeline
        from market_data_pipeline.ingest.shard import refresh_shard

        settings = self.settings()
        with build_pipeline(settings, self.vendor(settings), history_days=history_days) as pipeline:
            yield from refresh_shard(requests, pipeline=pipeline, run_id=run_id, full=full)
