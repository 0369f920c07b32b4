"""Fetch what a symbol's base series lacks: plan, ask, and say which days the answer covers.

Add here: the way from coverage to a validated frame. Keep out: storing it (commit).

Ask the vendor for all that one symbol lacks, before anything of it is stored.

Add here: the order in which a symbol's fetched series are asked for. Keep out: which days and in which requests
(harvest), and what becomes of the answers (refresh).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.counters import Counters
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, Series, Timeframe
from market_data_pipeline.ingest.coverage import covering, start_of
from market_data_pipeline.ingest.fetch_plan import reach, wanted, with_witnesses
from market_data_pipeline.ingest.market_days import from_market_days
from market_data_pipeline.ingest.reverify import opened_for_audit
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.polygon.request_windows import PART_BASE_BARS, parts, windows
from market_data_pipeline.store.coverage import Coverage, CoverageStatus, read_coverage
from market_data_pipeline.store.series_state import state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.ingest.market_days import MarketDay
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.polygon.request_windows import Window
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.series_state import SeriesState


@dataclass(frozen=True, slots=True)
class Harvest:
    """The vendor's answer for one base series.

    Attributes:
        base: the fetched series.
        bars: a bar frame, in full for every session of `spans`.
        spans: the stretches that the answer covers, each of whole sessions up to the newest served bar; doubted days
            (covering) are not among them.
        coverage: what is known of the covered days now, and of days before the plan's history.
        usage: requests, refusals and time it took.
        held: the coverage that was known before.
        doubts: a sentence for each day of which bars are held and the answer has none.
        complete: nothing is left to ask for; else this is the first part of a long history.
    """

    base: Series
    bars: pd.DataFrame
    spans: tuple[Interval, ...]
    coverage: tuple[Coverage, ...]
    usage: Counters
    sessions: tuple[Session, ...]
    held: Mapping[date, Coverage] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    complete: bool = True

    def days(self) -> dict[date, Coverage]:
        """Return the coverage as it will be once this harvest is stored."""
        return {**self.held, **{day.session_date: day for day in self.coverage}}


class HarvestError(Exception):
    """A harvest that failed: what it failed of, what it had cost by then, and the days that were asked for."""

    def __init__(self, cause: PipelineError, usage: Counters, days: tuple[date, ...]) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.usage = usage
        self.days = days


def harvest(
    base: Series,
    client: PolygonClient,
    timing: Timing,
    held: Mapping[date, Coverage],
    *,
    last_ts: datetime | None,
    history_days: int,
    history_limit: timedelta | None,
    priority: int,
    market_days: Mapping[date, MarketDay] | None = None,
    full: bool = False,
) -> Harvest:
    """Ask the vendor for what the base series lacks, up to a year of it; ask nothing when it can lack nothing.

    Args:
        base: a fetched series: `5m` or `1d`.
        client: the vendor.
        timing: when bars can be had, and now.
        held: coverage by session date.
        last_ts: start of the last bar held, None when none is. A history that goes on after it is taken in part by
            part; one that begins before it is not, because each part would have all features after it computed again.
        history_days: calendar days of history that the series should hold.
        history_limit: how far back the plan reaches, or None for all.
        priority: whose requests go first when runs compete.
        market_days: whole-market answers at hand; when they tell all that is wanted, nothing is asked.
        full: ask for everything again.

    Raises:
        HarvestError: a request failed; nothing of the whole answer is to be stored then.
    """
    sessions, beyond = reach(timing, history_days, history_limit)
    clamped = [
        Coverage(session.date, CoverageStatus.CLAMPED, 0, timing.now) for session in beyond if session.date not in held
    ]
    missing = wanted(sessions, held, base.timeframe, timing, full=full)
    told = from_market_days(base, missing, held, market_days, timing) if market_days and not full else None
    if told is not None:
        whole_days = tuple(Interval(session.day_start, session.day_end) for session in missing)
        return Harvest(base, told.bars, whole_days, (*clamped, *told.coverage), Counters(), sessions, dict(held))
    usage, frames, days = Counters(), [], clamped
    spans: list[Interval] = []
    doubts: list[str] = []
    asked = served_windows(with_witnesses(missing, sessions, held, base.timeframe, timing), base.timeframe, timing)
    in_parts = not full and asked and (last_ts is None or asked[0].interval.start > last_ts)
    now_asked = _first_part(asked) if in_parts else asked
    for window in now_asked:
        span = window.interval
        covered = tuple(session for session in sessions if span.start <= start_of(session, base) < span.end)
        try:
            fetched = client.bars(base.symbol, base.timeframe, span, priority=priority)
            usage += fetched.usage
            told_of = covering(covered, span, fetched.bars, base, held, timing)
        except PipelineError as error:
            spent = usage + getattr(error, "usage", Counters())
            raise HarvestError(error, spent, tuple(s.date for s in missing)) from error
        frames.append(fetched.bars)
        spans += told_of.spans
        days += told_of.coverage
        doubts += told_of.doubts
    return Harvest(
        base,
        _joined(frames),
        tuple(spans),
        tuple(days),
        usage,
        sessions,
        dict(held),
        doubts=tuple(doubts),
        complete=len(now_asked) == len(asked),
    )


def _first_part(asked: tuple[Window, ...]) -> tuple[Window, ...]:
    """Return the first windows, together no more than a part; at least one if there is any."""
    total = 0
    for at, window in enumerate(asked):
        total += window.base_bars
        if at and total > PART_BASE_BARS:
            return asked[:at]
    return asked


def served_windows(missing: Sequence[Session], base: Timeframe, timing: Timing) -> tuple[Window, ...]:
    """Return the requests for the `missing` sessions of a fetched timeframe, up to the newest bar that is served now.

    Only the last session can still be in progress; each of them must have a bar to give.
    """
    made = tuple(part for window in windows(missing, base) for part in _parts(window, timing))
    served = timing.served_until(missing[-1], base) if missing else None
    if served is None or served >= (last := made[-1]).interval.end:
        return made
    unserved = (last.interval.end - served) // timedelta(minutes=1)
    return (
        *made[:-1],
        last._replace(interval=Interval(last.interval.start, served), base_bars=last.base_bars - unserved),
    )


def _parts(window: Window, timing: Timing) -> tuple[Window, ...]:
    if window.base_bars <= PART_BASE_BARS:
        return (window,)
    first, end = (timing.calendar.session_date(instant) for instant in window.interval)
    return parts(window, timing.calendar.sessions(first, end + timedelta(days=1)), PART_BASE_BARS)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    if not frames:
        return bar_frames.empty()
    if len(frames) == 1:
        return frames[0]
    import pandas as pd

    return pd.concat(frames, ignore_index=True)


class Family(NamedTuple):
    """A base series, those to be made of it, and what the vendor answered: a part of it, all, or a failure."""

    series: Series
    resampled: list[Timeframe]
    started_at: datetime
    answer: Harvest | HarvestError

    @property
    def nothing_more(self) -> bool:
        """Whether nothing more is asked for it, nor is the run to stop."""
        if isinstance(self.answer, HarvestError):
            return not self.answer.cause.stops_run
        return self.answer.complete


class Asking(NamedTuple):
    """What is asked for one symbol, and of whom.

    Attributes:
        pipeline: vendor, clock and plan.
        request: symbol, tier and timeframes.
        timing: when bars can be had, and now.
        states: of the symbol's series; kept up by who commits.
        splits_digest: the symbol's splits in force now.
        market_days: whole-market answers at hand.
        full: ask for everything again.
    """

    pipeline: Pipeline
    request: SymbolRequest
    timing: Timing
    states: Mapping[Timeframe, SeriesState]
    splits_digest: str
    market_days: Mapping[date, MarketDay]
    full: bool

    def families(self, connection: StoreConnection) -> list[Family]:
        """Ask for what the symbol lacks; what fails is kept, and nothing is asked after what stops the run.

        Raises:
            PipelineError: the database refused before anything was asked.
        """
        families: list[Family] = []
        for base in BASE_TIMEFRAMES:
            wanted = [each for each in Timeframe if each.base is base and each in self.request.timeframes]
            if not wanted:
                continue
            resampled = [timeframe for timeframe in wanted if timeframe is not base]
            series, started_at = Series(self.request.symbol, base), self.pipeline.clock()
            answer: Harvest | HarvestError
            try:
                answer = self.ask(series, self._coverage(connection, series))
            except PipelineError as error:  # of the database
                if not families:
                    raise
                answer = HarvestError(error, Counters(), ())
            families.append(Family(series, resampled, started_at, answer))
            if isinstance(answer, HarvestError) and answer.cause.stops_run:
                break
        return families

    def ask(self, series: Series, held: Mapping[date, Coverage]) -> Harvest | HarvestError:
        """Return the answer for a base series of which `held` is known."""
        try:
            return harvest(
                series,
                self.pipeline.client,
                self.timing,
                held,
                last_ts=state_of(self.states, series.timeframe, self.request.tier).last_ts,
                history_days=self.pipeline.history_days,
                history_limit=self.pipeline.plan.history,
                priority=PRIORITIES[self.request.tier],
                market_days=self.market_days,
                full=self.full,
            )
        except HarvestError as error:
            return error

    def _coverage(self, connection: StoreConnection, series: Series) -> Mapping[date, Coverage]:
        held: Mapping[date, Coverage] = read_coverage(connection, series)
        if self.request.audit:
            state = state_of(self.states, series.timeframe, self.request.tier)
            held = opened_for_audit(connection, series, held, state, self.splits_digest, self.timing, self.pipeline)
        connection.commit()  # no transaction stays open while the vendor is asked
        return held
