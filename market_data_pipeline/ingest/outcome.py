"""What goes into a refresh of a symbol, and what comes out of it for each of its series.

Add here: a fact of a refresh that the run page or an alert shows. A counter belongs in `domain.counters`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.counters import NOTHING, Counters
from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.series import Series, Tier, Timeframe

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.domain.errors import FailureKind, PipelineError
    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.ingest.compare import BarChange
    from market_data_pipeline.store.series_state import SeriesState


@dataclass(frozen=True, slots=True)
class SymbolRequest:
    """A symbol to refresh, and which of its timeframes.

    A resampled timeframe brings its base along: requesting `1h` alone also refreshes `5m`. `reverify` also reads some
    settled days again, which an ordinary refresh never does (ingest.reverify).
    """

    symbol: str
    tier: Tier
    timeframes: tuple[Timeframe, ...] = tuple(Timeframe)
    reverify: bool = False


@dataclass(frozen=True, slots=True)
class SeriesOutcome:
    """One execution of one series, as it was committed: `ok` with changes, `unchanged`, or `failed`.

    Instants are aware UTC. A failed series keeps its data. `rows_filled` counts the bars inserted before the last one
    that was stored; `changes` is a sample of them and of the updated ones. `warning` says what went wrong
    without failing the series; `own_features` are the columns stored with the 17; `life` says whether bars are to be
    expected.
    """

    series: Series
    tier: Tier
    status: str
    counters: Counters = NOTHING
    rows_filled: int = 0
    bar_count: int = 0
    feature_count: int = 0
    first_ts: datetime | None = None
    last_ts: datetime | None = None
    expected_last_ts: datetime | None = None
    verified_at: datetime | None = None
    next_due_at: datetime | None = None
    kind: FailureKind | None = None
    error_class: str | None = None
    error: str | None = None
    changes: tuple[BarChange, ...] = ()
    warning: str | None = None
    own_features: tuple[Feature, ...] = ()
    life: Life = Life.TRADING

    def after(self, earlier: SeriesOutcome | None) -> SeriesOutcome:
        """Return the joint outcome of two commits of one execution, this one the later; a long history takes many."""
        if earlier is None:
            return self
        return replace(
            self,
            status="ok" if self.status == "unchanged" and earlier.status == "ok" else self.status,
            counters=earlier.counters + self.counters,
            rows_filled=earlier.rows_filled + self.rows_filled,
            changes=earlier.changes + self.changes,
            warning=self.warning or earlier.warning,
        )

    @property
    def failed(self) -> bool:
        """True when the execution failed; of a long history, the parts committed before stay."""
        return self.status == "failed"


_HELD: Final = ("bar_count", "feature_count", "first_ts", "last_ts", "verified_at", "next_due_at")  # of a series' state


def failed_outcome(
    series: Series,
    tier: Tier,
    failure: PipelineError,
    *,
    state: SeriesState | None = None,
    counters: Counters = NOTHING,
) -> SeriesOutcome:
    """Return the outcome of a series that failed.

    Args:
        series: the series.
        tier: its tier.
        failure: why it failed.
        state: its state, which stays as it is; None when it was not read.
        counters: what was counted by then.
    """
    known = {name: getattr(state, name) for name in _HELD} if state is not None else {}
    return SeriesOutcome(
        series,
        tier,
        "failed",
        counters=counters,
        kind=failure.kind,
        error_class=type(failure).__name__,
        error=str(failure),
        **known,
    )


class Pending:
    """What the run has counted but not yet reported; its next series reports it. Threads may share the object."""

    def __init__(self, counters: Counters) -> None:
        self._lock = Lock()
        self._counters = counters
        self._warnings: tuple[str, ...] = ()

    def add(self, counters: Counters, warning: str | None = None) -> None:
        """Add counters, and a warning if there is one, to what the next series reports."""
        with self._lock:
            self._counters += counters
            self._warnings += (warning,) if warning else ()

    def take_counters(self) -> Counters:
        """Return what was counted, and start again at nothing."""
        with self._lock:
            counters, self._counters = self._counters, NOTHING
        return counters

    def take_warnings(self) -> tuple[str, ...]:
        """Return the warnings and forget them; the first series that commits reports them."""
        with self._lock:
            warnings, self._warnings = self._warnings, ()
        return warnings
