"""Where the wall-clock seconds of an execution go.

Add here: a stage that a person asks about. Keep out: instants (the injected clock has those).

What goes into a refresh and what comes out of it.

Add here: a fact of an execution that the audit log, the run page or an alert shows. Keep out: how it is come by.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.series import Series, Tier, Timeframe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from market_data_pipeline.domain.errors import FailureKind, PipelineError
    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.usage import Usage
    from market_data_pipeline.ingest.compare import BarChange
    from market_data_pipeline.store.series_state import SeriesState


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent waiting for the vendor, in PostgreSQL, and computing."""

    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Count the block as time in PostgreSQL."""
        started = perf_counter()
        try:
            yield
        finally:
            self.store_seconds += perf_counter() - started

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the block as time resampling and computing features."""
        started = perf_counter()
        try:
            yield
        finally:
            self.compute_seconds += perf_counter() - started


@dataclass(frozen=True, slots=True)
class SymbolRequest:
    """A symbol to refresh, and which of its timeframes.

    A resampled timeframe brings its base along: asking for `1h` alone also refreshes `5m`. An audit also asks again for
    settled days that an ordinary refresh leaves be (ingest.recheck).
    """

    symbol: str
    tier: Tier
    timeframes: tuple[Timeframe, ...] = tuple(Timeframe)
    audit: bool = False


@dataclass(frozen=True, slots=True)
class SeriesOutcome:
    """One execution of one series, as it was committed: `ok` with changes, `unchanged`, or `failed`.

    Instants are aware UTC, times are seconds of wall clock. A failed series keeps what it held before. `rows_filled`
    are those inserted before the last bar that was held; `changes` is a sample of them and of the updated ones.
    `warning` says what went wrong without failing the series; `own_features` are the columns stored beside the 17.
    """

    series: Series
    tier: Tier
    status: str
    rows_fetched: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_filled: int = 0
    features_written: int = 0
    requests: int = 0
    rate_limited: int = 0
    bytes: int = 0
    pages: int = 0
    bar_count: int = 0
    feature_count: int = 0
    first_ts: datetime | None = None
    last_ts: datetime | None = None
    expected_last_ts: datetime | None = None
    verified_at: datetime | None = None
    next_due_at: datetime | None = None
    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0
    kind: FailureKind | None = None
    error_class: str | None = None
    error: str | None = None
    changes: tuple[BarChange, ...] = ()
    warning: str | None = None
    own_features: tuple[Feature, ...] = ()

    def after(self, earlier: SeriesOutcome | None) -> SeriesOutcome:
        """Return the outcome of two commits of one execution, of which this is the later: a long history takes many."""
        if earlier is None:
            return self
        totals = {name: getattr(earlier, name) + getattr(self, name) for name in _TOTALS}
        status = "ok" if self.status == "unchanged" and earlier.status == "ok" else self.status
        return replace(self, status=status, warning=self.warning or earlier.warning, **totals)

    @property
    def failed(self) -> bool:
        """True when nothing of this execution was stored but its audit row."""
        return self.status == "failed"


_HELD: Final = ("bar_count", "feature_count", "first_ts", "last_ts", "verified_at", "next_due_at")  # of a series' state

_COST: Final = ("requests", "rate_limited", "bytes", "pages")  # of its usage

_TIMES: Final = ("fetch_seconds", "store_seconds", "compute_seconds")  # of its stopwatch

_TOTALS: Final = (
    *("rows_fetched", "rows_inserted", "rows_updated", "rows_filled", "changes", "features_written"),
    *(*_COST, *_TIMES),
)


def failed_outcome(
    series: Series,
    tier: Tier,
    failure: PipelineError,
    *,
    state: SeriesState | None = None,
    usage: Usage | None = None,
    watch: Stopwatch | None = None,
) -> SeriesOutcome:
    """Return the outcome of a series that failed.

    Args:
        series: the series.
        tier: its tier.
        failure: what it failed of.
        state: what it holds, which stays as it is; None when that was not read.
        usage: what its requests cost until then.
        watch: where the time went until then.
    """
    known = {name: getattr(state, name) for name in _HELD} if state is not None else {}
    if usage is not None:
        known |= {name: getattr(usage, name) for name in _COST}
    if watch is not None:
        known |= {name: getattr(watch, name) for name in _TIMES}
    return SeriesOutcome(
        series, tier, "failed", kind=failure.kind, error_class=type(failure).__name__, error=str(failure), **known
    )
