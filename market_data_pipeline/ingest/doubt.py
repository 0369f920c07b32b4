"""Which days of an answer are doubted, because it takes away, changes or adds much.

The vendor withdraws, corrects and adds bars, and its answers lose some or have those of another symbol. One answer does
not show which it is, so what is stored stays until a second look says the same, at least a quarter of an hour after the
first and, like it, after the day settled. Doubted are

- a day of which the answer has no bar at all;
- a day that is over, if the answer lacks or changes more than a few percent of its stored bars;
- a day on which any price becomes more than twice or less than half of what is stored;
- a day that gets more bars than the symbol has on any other.

Changes and additions count once the day has settled: before that, they are the vendor's routine. A hole that is filled
is not doubted: the day then has as many bars as others. A day of which the
answer has no bar becomes empty only if its window has bars of another day: a ticker that the vendor lost must not empty
our history. Where the vendor's plan ends, a stored day that the answer lacks is kept as clamped.

Pure: an answer and the stored bars in, the answer as far as it is believed out. Keep out: rows that cannot be used
(polygon.bad_rows).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.bars import PRICES, VALUES, array, ts_us
from market_data_pipeline.domain.calendar import slot_start, to_us
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval, normalise, subtract
from market_data_pipeline.domain.objectives import SETTLE_AFTER
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.coverage import doubted_since
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    import numpy as np
    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.ingest.fetch import Answer
    from market_data_pipeline.ingest.fetch_plan import FetchPlan

# Of a day's bars. Corrections touch a few bars of a day: 5 % are ten of the 192 of a US equity.
FEW: Final = 0.05

# Of the bars of a symbol's busiest day: one that gets more may have those of another symbol. Symbols with bars on fewer
# days show no habits, and a few bars are added to any day.
MANY: Final = 1.5
_FEWEST_DAYS: Final = 5
_FEWEST_ADDED: Final = 5

# A price that moves by less is a correction of a trade or two, however many bars it touches; so is a volume within a
# factor of two. Bars of another symbol, or in another unit, are further away. The volume of a day bar does not count:
# the vendor corrects it for days.
_PRICE_TOLERANCE: Final = 0.01
_FACTOR: Final = 2.0

# The plan's history ends about where the calendar says: vendors count it in days of their own clock.
_PLANS_EDGE: Final = timedelta(days=7)


class _Day(NamedTuple):
    """What an answer does to the stored bars of one day."""

    session: Session
    stored: int
    rows: int  # in the answer
    lost: int
    changed: int
    absurd: bool
    part: slice  # of the answer's bars

    @property
    def added(self) -> int:
        return self.rows - (self.stored - self.lost)


def weighed(answer: Answer, stored: pd.DataFrame) -> Answer:
    """Return the answer without its doubted days, whose coverage says so.

    Args:
        answer: of the vendor.
        stored: a bar frame of what is stored within its spans.
    """
    plan = answer.plan
    if not answer.spans or not any(known.rows for known in plan.coverage.values()):
        return answer
    decided: dict[date, Coverage] = {}
    doubted: list[_Day] = []
    days = _days(answer, stored)
    others = {session.date for session in plan.replaced}  # the stored bars are another security's
    for day in days:
        if day.session.date in others:
            continue
        known = plan.coverage.get(day.session.date)
        if not day.rows and _is_clamped(answer, day.session):
            decided[day.session.date] = Coverage(
                day.session.date, CoverageStatus.CLAMPED, day.stored, plan.timing.now, ticker=plan.asked_as(day.session)
            )
        elif _is_doubted(answer, day, known):
            digest = digest_of(answer.bars[day.part])
            if _is_confirmed(answer, day, known, digest):
                continue
            earlier = known if known is not None and not known.refused else None
            decided[day.session.date] = Coverage(
                day.session.date,
                CoverageStatus.PROVISIONAL,
                day.stored,
                plan.timing.now,
                doubted_at=doubted_since(day.session, earlier, plan.timing.now),
                answer_digest=digest,
                ticker=plan.asked_as(day.session),
            )
            if known is None or known.answer_digest != digest:
                doubted.append(day)
    if not decided:
        return answer
    base = plan.series.timeframe
    kept = [day.session for day in days if day.session.date in decided]
    intervals = [Interval(slot_start(base, session, 0), session.day_end) for session in kept]
    spans = subtract(answer.spans, normalise(intervals))
    return replace(
        answer,
        bars=within(answer.bars, spans),
        spans=spans,
        coverage=tuple(decided.get(day.session_date, day) for day in answer.coverage),
        known={**answer.known, **decided},
        warnings=(*answer.warnings, *_warning(answer, doubted)),
    )


def within(bars: pd.DataFrame, spans: Sequence[Interval]) -> pd.DataFrame:
    """Return the bars that start within the spans, as a bar frame."""
    import numpy as np

    starts = ts_us(bars)
    kept = np.zeros(len(starts), dtype=bool)
    for span in spans:
        kept[starts.searchsorted(to_us(span.start)) : starts.searchsorted(to_us(span.end))] = True
    return bars if kept.all() else bars[kept].reset_index(drop=True)


def _days(answer: Answer, stored: pd.DataFrame) -> list[_Day]:
    """Return what the answer does to each of its days that has stored bars, or had settled without any, ascending."""
    import numpy as np

    calendar = answer.plan.timing.calendar
    dates = {day.session_date for day in answer.coverage if not day.refused}
    old, new = ts_us(stored), ts_us(answer.bars)
    first, last = (calendar.session_date(instant) for instant in (answer.spans[0].start, answer.spans[-1].end))
    sessions = [session for session in calendar.sessions(first, last + timedelta(days=1)) if session.date in dates]
    bounds = np.array([(to_us(session.day_start), to_us(session.day_end)) for session in sessions], dtype="int64").T
    old_low, old_high = old.searchsorted(bounds)
    new_low, new_high = new.searchsorted(bounds)
    daily = answer.plan.series.timeframe is Timeframe.D1
    lost, changed, absurd = (_sums(mask) for mask in _differing(stored, answer.bars, daily=daily))
    return [
        _Day(
            session,
            int(old_high[at] - old_low[at]),
            int(new_high[at] - new_low[at]),
            int(lost[old_high[at]] - lost[old_low[at]]),
            int(changed[old_high[at]] - changed[old_low[at]]),
            bool(absurd[old_high[at]] > absurd[old_low[at]]),
            slice(new_low[at], new_high[at]),
        )
        for at, session in enumerate(sessions)
        if old_high[at] > old_low[at] or (new_high[at] > new_low[at] and _had_settled(session, answer.plan))
    ]


def _had_settled(session: Session, plan: FetchPlan) -> bool:
    """Return whether an answer about the day was taken in once it had settled."""
    known = plan.coverage.get(session.date)
    return known is not None and known.status is not CoverageStatus.FAILED and known.fetched_at >= settled_at(session)


def _sums(mask: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate(([0], mask.cumsum()))


def _differing(stored: pd.DataFrame, answer: pd.DataFrame, *, daily: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks over the stored bars: those that the answer lacks, changes by much, and changes beyond reason."""
    import numpy as np

    old, new = ts_us(stored), ts_us(answer)
    lost = ~np.isin(old, new, assume_unique=True)
    far, absurd = np.zeros(len(old), dtype=bool), np.zeros(len(old), dtype=bool)
    if len(new):
        at = np.minimum(new.searchsorted(old), len(new) - 1)
        for name in PRICES:
            before, after = array(stored, name), array(answer, name)[at]
            far |= abs(after - before) > _PRICE_TOLERANCE * before
            absurd |= (after > _FACTOR * before) | (_FACTOR * after < before)
        if not daily:
            before, after = array(stored, "volume"), array(answer, "volume")[at]
            far |= (after > _FACTOR * before) | (_FACTOR * after < before)
    return lost, far & ~lost, absurd & ~lost


def digest_of(bars: pd.DataFrame) -> str:
    """Return a digest of what an answer says about one day: a frame with the columns of a bar frame."""
    digest = blake2b(ts_us(bars).tobytes(), digest_size=8)
    for name in VALUES:
        digest.update(array(bars, name).tobytes())
    return digest.hexdigest()


def _is_doubted(answer: Answer, day: _Day, known: Coverage | None) -> bool:
    timing, base = answer.plan.timing, answer.plan.series.timeframe
    if not day.rows:
        return True
    if timing.available_at(timing.last_end(day.session, base)) > timing.now:
        return False
    if not _had_settled(day.session, answer.plan):
        return day.lost > FEW * day.stored
    return day.absurd or day.lost + day.changed > FEW * day.stored or _adds_too_many(answer, day)


def _adds_too_many(answer: Answer, day: _Day) -> bool:
    """Return whether the answer adds more than a few bars to a day, and it then has far more than any other day."""
    if answer.plan.series.timeframe is Timeframe.D1 or day.added <= max(FEW * day.stored, _FEWEST_ADDED):
        return False
    others = [known.rows for date, known in answer.plan.coverage.items() if date != day.session.date and known.rows]
    return len(others) >= _FEWEST_DAYS and day.rows > MANY * max(others)


def _is_confirmed(answer: Answer, day: _Day, known: Coverage | None, digest: str) -> bool:
    """Return whether an earlier look said the same, after the day had settled and long enough ago."""
    if known is None or known.doubted_at is None or known.answer_digest != digest:
        return False
    if not day.rows and day.session.date in answer.alone:
        return False
    # A day that `reconcile` opened counts as requested when it settled.
    first_look, now = max(known.fetched_at, known.doubted_at), answer.plan.timing.now
    return first_look >= settled_at(day.session) and now >= first_look + SETTLE_AFTER


def at_plans_edge(session: Session, plan: FetchPlan) -> bool:
    """Return whether the vendor's plan may no longer reach the day."""
    return plan.oldest is not None and session.date < plan.oldest + _PLANS_EDGE


def _is_clamped(answer: Answer, session: Session) -> bool:
    """Return whether the vendor's plan no longer reaches the day, of which the answer has no bar, nor of one before."""
    bars = ts_us(answer.bars)
    return at_plans_edge(session, answer.plan) and (not len(bars) or to_us(session.day_start) < int(bars[0]))


def _warning(answer: Answer, days: Sequence[_Day]) -> tuple[str, ...]:
    """Return a sentence about the days that are doubted now and were not, or for another reason."""
    if not days:
        return ()
    series, day = answer.plan.series, days[0]
    lost = f"lacks {day.lost} of the {day.stored} stored bars" if day.lost else ""
    changed = f"changes {day.changed} of the {day.stored} stored bars substantially" if day.changed else ""
    added = f"adds {day.added} bars to the {day.stored} stored" if day.added > FEW * day.stored else ""
    what = " and ".join(filter(None, (lost, changed, added))) or "has implausible prices"
    more = f", and of {len(days) - 1} more days up to {days[-1].session.date}" if len(days) > 1 else ""
    return (
        f"{series.symbol} {series.timeframe}: the vendor's answer {what} of {day.session.date}{more}. "
        "The stored bars are kept until a second answer says the same.",
    )
