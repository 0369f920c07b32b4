"""When a series' next bar falls due, given what is known of its days.

Add here: what coverage says about `domain.due`'s questions. Keep out: the rules themselves (domain.due).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain import due as rules
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.ledger import CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.sessions import Session
    from market_data_pipeline.ingest.demand import Timing
    from market_data_pipeline.store.ledger import Coverage

# Quiet stretches are judged by the last four weeks: long enough for a thin name's habits, short enough to follow them.
QUIET_MEMORY: Final = timedelta(days=28)


@dataclass(frozen=True, slots=True)
class Due:
    """One series' answers to `domain.due`.

    Attributes:
        timeframe: of the series.
        timing: calendar, plan and the instant it is now.
        sessions: the days that the series should hold, ascending.
        days: coverage of the fetched series behind it, as it is once the execution is committed.
    """

    timeframe: Timeframe
    timing: Timing
    sessions: tuple[Session, ...]
    days: Mapping[date, Coverage]

    @property
    def now(self) -> datetime:
        """The instant at which the execution asked what there is, aware UTC."""
        return self.timing.now

    def quiet_slots(self, bars: pd.DataFrame) -> int:
        """Return the longest usual run of empty slots, judged by the newest of `bars`."""
        ts = ts_us(bars)
        newest = int(ts[-1]) - QUIET_MEMORY // timedelta(microseconds=1)
        return rules.quiet_slots(self.timing.calendar, self.timeframe, ts[ts.searchsorted(newest) :])

    def next_due(self, last_ts: datetime | None, quiet_slots: int) -> datetime | None:
        """Return when the first bar that is missing falls, or fell, due; None when no day is wanted at all."""
        if not self.sessions:
            return None
        return rules.next_due(
            self.timing.calendar,
            self.timeframe,
            last_ts=last_ts,
            history_start=self.sessions[0].day_start,
            quiet_slots=quiet_slots,
            confirmed={day for day, known in self.days.items() if known.status.final},
            availability=self.timing.available_at,
            first_hole_ts=self._first_hole(last_ts),
        )

    def expected_last_ts(self) -> datetime:
        """Return the start of the last slot that is due now, whether or not anybody traded in it."""
        return rules.expected_last_ts(
            self.timing.calendar, self.timeframe, now=self.now, availability=self.timing.available_at
        )

    def settled_until(self) -> datetime | None:
        """Return the midnight that begins the first day not held for good, aware UTC; None when no day is wanted."""
        for session in self.sessions:
            known = self.days.get(session.date)
            if known is None or not known.status.final:
                return session.day_start
        return self.sessions[-1].day_end if self.sessions else None

    def _first_hole(self, last_ts: datetime | None) -> datetime | None:
        """Return the start of the earliest day before `last_ts` of which nothing is held or confirmed."""
        if last_ts is None:
            return None
        for session in self.sessions:
            if session.end > last_ts:
                return None
            known = self.days.get(session.date)
            if known is None or (not known.rows and not known.status.final) or known.status is CoverageStatus.FAILED:
                return session.day_start if self.timeframe is Timeframe.D1 else session.start
        return None
