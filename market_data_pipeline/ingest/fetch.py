"""Send the requests of a fetch plan, and return the vendor's answers once they are validated.

A session day with a bar that cannot be used is refused, with the reason, and the other days of the answer come in. Only
an execution that can take in nothing, although days after the last stored bar were requested, has failed.

Keep out: what to request (fetch_plan) and storing the answers (commit).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.calendar import slot_start
from market_data_pipeline.domain.counters import NOTHING, Counters, Tally
from market_data_pipeline.domain.errors import DataError, PipelineError, VendorRequestError
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval, normalise
from market_data_pipeline.ingest.coverage import before_first_bar, covered_days
from market_data_pipeline.ingest.doubt import at_plans_edge
from market_data_pipeline.ingest.market import served_days
from market_data_pipeline.ingest.window import fetch_window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch_plan import FetchPlan
    from market_data_pipeline.ingest.market import MarketDay, Served
    from market_data_pipeline.ingest.window import Believed
    from market_data_pipeline.polygon.client import BarSource
    from market_data_pipeline.polygon.request_windows import Window
    from market_data_pipeline.store.coverage import Coverage


@dataclass(frozen=True, slots=True)
class Answer:
    """The vendor's answer to a fetch plan, or to one part of it.

    Attributes:
        plan: what was requested.
        started_at: when it was requested, aware UTC.
        bars: a bar frame, complete for every session of `spans`.
        spans: what the answer covers, in whole sessions up to the newest served bar; refused days and doubted ones
            (ingest.doubt) are left out.
        coverage: of the covered days now, and of days before the plan's history.
        known: the series' coverage by session date, as it will be once this answer is stored.
        counters: what the answer cost.
        warnings: sentences about the refused and the doubted days, and about what else was odd.
        alone: session dates of windows without any bar, about which a bar of another day says nothing.
        outside: a bar frame of what lies in no session, which is not part of the series; None for nothing.
        is_last: no part of the plan is left to request.
    """

    plan: FetchPlan
    started_at: datetime
    bars: pd.DataFrame
    spans: Intervals
    coverage: tuple[Coverage, ...]
    known: Mapping[date, Coverage]
    counters: Counters = NOTHING
    warnings: tuple[str, ...] = ()
    alone: frozenset[date] = frozenset()
    outside: pd.DataFrame | None = None
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class FailedFetch:
    """A fetch that failed: nothing of this part is stored.

    Attributes:
        cause: why it failed.
        started_at: when it was requested, aware UTC.
        counters: what it had cost by then.
        days: the session days that were requested.
        coverage: of the days that were refused.
        lost: what was requested, if the failure may mean that the vendor no longer has the ticker.
    """

    cause: PipelineError
    started_at: datetime
    counters: Counters = NOTHING
    days: tuple[date, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    lost: FetchPlan | None = None

    def without_bars(self, counters: Counters) -> Answer:
        """Return the answer of a vendor that no longer has the ticker: it changes nothing, and tells why once."""
        assert self.lost is not None  # noqa: S101 - callers have checked; narrows the type
        plan, warning = self.lost, f"{self.cause} Its reference data do not list the ticker; what is stored is kept."
        return Answer(
            plan, self.started_at, bar_frames.empty(), (), (), plan.coverage, self.counters + counters, (warning,)
        )


def fetch(
    client: BarSource,
    plan: FetchPlan,
    market_days: Mapping[date, MarketDay],
    *,
    priority: int,
    clock: Callable[[], datetime],
) -> Iterator[Answer | FailedFetch]:
    """Yield the answers to a plan's parts, requesting each when the caller takes it; a failure is the last item.

    Args:
        client: the vendor.
        plan: what to request; when that is nothing, one answer without bars is yielded.
        market_days: day bars of the whole market. When they serve the plan, nothing is requested.
        priority: the place of the requests in the rate limit queue; the lowest goes first.
        clock: returns the current instant, aware UTC.
    """
    if (served := served_days(plan, market_days)) is not None:
        yield _from_market(plan, served, clock())
        return
    known, taken, base = plan.coverage, not plan.windows, plan.series.timeframe
    for number, part in enumerate(plan.parts):
        said = _Said(plan, known, clock())
        if number == 0:
            said.coverage = (*plan.clamped, *plan.others)
            said.spans = tuple(Interval(slot_start(base, day, 0), day.day_end) for day in plan.replaced)
        try:
            for window in part:
                said.add(window, fetch_window(client, plan, window, priority, said.tally))
        except PipelineError as error:
            yield said.failure(error, since=None if number == 0 else part[0].interval.start)
            return
        taken = taken or said.taken
        answer = said.answer(is_last=number + 1 == len(plan.parts), taken=taken)
        yield answer
        if isinstance(answer, FailedFetch):
            return
        known = answer.known


def _from_market(plan: FetchPlan, served: Served, now: datetime) -> Answer:
    """Return the answer to a plan that day bars of the whole market serve."""
    coverage = (*plan.clamped, *plan.others, *served.coverage)
    days = tuple(Interval(session.day_start, session.day_end) for session in plan.days)
    return Answer(plan, now, served.bars, days, coverage, _with(plan.coverage, coverage))


@dataclass(slots=True)
class _Said:
    """What the vendor has said about the windows of one part of a plan.

    `known` is the series' coverage before. `taken` is True once a day could be taken in. For the rest, see `Answer`.
    """

    plan: FetchPlan
    known: Mapping[date, Coverage]
    started_at: datetime
    coverage: tuple[Coverage, ...] = ()
    tally: Tally = field(default_factory=Tally)
    taken: bool = False
    frames: list[pd.DataFrame] = field(default_factory=list)
    outside: list[pd.DataFrame] = field(default_factory=list)
    spans: Intervals = ()
    warnings: tuple[str, ...] = ()
    refused: dict[date, str] = field(default_factory=dict)
    alone: frozenset[date] = frozenset()

    def add(self, window: Window, believed: Believed) -> None:
        """Add what was said about one window."""
        covered = covered_days(believed, window.interval, self.plan.series, self.known, self.plan.timing)
        self.taken = self.taken or len(believed.refused) < len(believed.sessions)
        self.frames.append(believed.bars)
        self.outside += [believed.outside] if believed.outside is not None else []
        self.spans += covered.spans
        ticker = self.plan.asked_as(believed.sessions[0]) if believed.sessions else None
        self.coverage += (
            covered.coverage
            if ticker is None and not believed.files
            else tuple(
                replace(day, ticker=ticker, file_id=believed.files.get(day.session_date)) for day in covered.coverage
            )
        )
        self.warnings += believed.warnings
        self.alone |= covered.alone
        self.refused |= believed.refused

    def failure(self, error: PipelineError, since: datetime | None) -> FailedFetch:
        """Return the failure of the part; `since` is where it begins, None for all of the plan."""
        plan, base = self.plan, self.plan.series.timeframe
        days = tuple(day.date for day in plan.days if since is None or slot_start(base, day, 0) >= since)
        lost = plan if isinstance(error, VendorRequestError) and error.not_found else None
        return FailedFetch(error, self.started_at, self.tally.counters, days, lost=lost)

    def answer(self, *, is_last: bool, taken: bool) -> Answer | FailedFetch:
        """Return the answer to the part, or why it is none.

        Args:
            is_last: no part of the plan is left to request.
            taken: a day of this part or of an earlier one could be taken in.
        """
        plan = self.plan
        self.tally.counters += Counters(days_refused=len(self.refused))
        if (lost := _lost_days(self.alone, plan)) and not any(map(len, self.frames)):
            cause = DataError(_loss(plan, lost))
            return FailedFetch(cause, self.started_at, self.tally.counters, tuple(sorted(self.alone)), lost=plan)
        # Each day once: a day before the first bar may be one of this answer's, or of an earlier part's.
        explained = before_first_bar(plan.sessions, _with(self.known, self.coverage))
        coverage = tuple(_with({}, self.coverage + explained).values())
        refused = (refusal(plan.series, self.refused),) if self.refused else ()
        if is_last and not taken and _are_missing(self.refused, plan):
            return FailedFetch(DataError(*refused), self.started_at, self.tally.counters, (), coverage)
        return Answer(
            plan,
            self.started_at,
            _joined(self.frames),
            normalise(self.spans) if plan.replaced else self.spans,
            coverage,
            _with(self.known, coverage),
            self.tally.counters,
            refused + self.warnings,
            self.alone,
            _joined(self.outside),
            is_last,
        )


def refusal(series: Series, refused: Mapping[date, str]) -> str:
    """Return a sentence about the days whose answer was refused."""
    days = sorted(refused)
    what = f"{days[0]}" if len(days) == 1 else f"{len(days)} days from {days[0]} to {days[-1]}"
    reason = refused[days[0]].rstrip(".")
    return (
        f"{series.symbol} {series.timeframe}: what the vendor sent for {what} is refused ({reason}). "
        "It is requested again automatically."
    )


def _lost_days(days: Collection[date], plan: FetchPlan) -> list[date]:
    """Return those of `days` that have settled with bars that are stored, and that the plan of the vendor reaches."""
    calendar = plan.timing.calendar
    return [
        day
        for day in sorted(days)
        if (known := plan.coverage.get(day)) is not None
        and known.rows
        and (session := calendar.session_on(day)) is not None
        and known.fetched_at >= settled_at(session)
        and not at_plans_edge(session, plan)
    ]


def _loss(plan: FetchPlan, lost: Sequence[date]) -> str:
    """Return a sentence about stored days of which an answer without any bar says nothing."""
    more = f" and {len(lost) - 1} more days" if len(lost) > 1 else ""
    return (
        f"The vendor sent no {plan.series.timeframe} bar of {plan.series.symbol} for {lost[0]}{more}, "
        f"for which it had sent {plan.coverage[lost[0]].rows} before; the stored ones are kept "
        "and the next run requests them again."
    )


def _are_missing(refused: Mapping[date, str], plan: FetchPlan) -> bool:
    """Return whether a refused day comes after the last stored bar, so that the series is not up to date without it."""
    held = None if plan.last_ts is None else plan.timing.calendar.session_date(plan.last_ts)
    return any(held is None or day > held for day in refused)


def _with(known: Mapping[date, Coverage], coverage: tuple[Coverage, ...]) -> Mapping[date, Coverage]:
    return {**known, **{day.session_date: day for day in coverage}}


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    if not frames:
        return bar_frames.empty()
    if len(frames) == 1:
        return frames[0]
    import pandas as pd

    return pd.concat(frames, ignore_index=True)
