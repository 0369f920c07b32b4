"""The page of one series: the frame of its chart, and everything else that is known of the series as tables.

The chart takes its bars and features from the read API, as any client does. Everyone sees what is held and what is
missing; error messages are shown only to those who may see the admin endpoints.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, asset_class_of
from market_data_pipeline.reports.gaps import Reason, table_rows
from market_data_pipeline.serving.pages.templates import UPDATE_EMPTY_EVERY, UPDATE_EVERY, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.reports.models import SeriesGaps
    from market_data_pipeline.reports.series import Day, SeriesReport

GAPS: Final = 100  # rows of the table, the newest; the totals above it are exact
_PITCH: Final = 13  # pixels from one day of the coverage calendar to the next
_MONTHS_HEIGHT: Final = 16  # pixels above the days for the months' names
_WEEK: Final = 7
_WEEKS: Final = 20  # of one piece of the calendar: 260 pixels, which fit a screen of 320

# The coverage of a day, in the words of the table.
STATUS_WORDS: Final = {
    "complete": "settled and stored",
    "provisional": "stored, read again until it settles",
    "empty_confirmed": "the vendor has no bars",
    "clamped": "before the plan's history",
    "failed": "the last attempt failed",
    "never_asked": "not requested yet",
    "not_due": "not served by the plan yet",
}


class Square(NamedTuple):
    """One day of the coverage calendar."""

    x: int
    y: int
    status: str
    title: str


class Weeks(NamedTuple):
    """A piece of the coverage calendar: its first and last day, and where the names of its months are."""

    first: date
    last: date
    width: int
    squares: list[Square]
    months: list[tuple[int, str]]


class Run(NamedTuple):
    """Consecutive days with the same status."""

    first: date
    last: date
    status: str
    days: int
    rows: int


def render_series(
    report: SeriesReport,
    now: datetime,
    *,
    root: str,
    for_operator: bool,
    own: Sequence[Feature] = (),
    dagster_url: str | None = None,
    offer: str = "",
) -> str:
    """Return the page of a series at `now`, aware UTC.

    Args:
        report: what is known of it.
        now: the pipeline's now.
        root: the relative path to the status page.
        for_operator: whether error messages are shown.
        own: the project's own features.
        dagster_url: where Dagster's UI is, without a trailing slash; None shows no links to runs.
        offer: whether the reader may sign `in` or `out`; else empty.
    """
    series, timeframe = report.series, report.series.timeframe
    fresh = next(one for one in report.freshness if one.timeframe == timeframe)
    days = [(day, _status(day)) for day in report.days]
    gaps = _gap_rows(series.symbol, report.gaps, for_operator=for_operator)
    source = "features" if fresh.features_computed_at else "bars" if report.held.get("bar_count") else ""
    return render(
        "series.html",
        root=root,
        now=now,
        every=UPDATE_EVERY if source else UPDATE_EMPTY_EVERY,
        symbol=series.symbol,
        timeframe=str(timeframe),
        base=str(timeframe.base),
        zone=str(calendar_for(asset_class_of(series.symbol)).tz),
        report=report,
        fresh=fresh,
        tier=fresh.tier.replace("_", " "),
        objective=TIER_OBJECTIVES[Tier(fresh.tier)],
        source=source,
        features=FEATURES,
        own=own,
        calendar=_calendar(days),
        height=_MONTHS_HEIGHT + _WEEK * _PITCH,
        runs=_runs(days),
        day_counts={name: sum(status == name for _, status in days) for name in STATUS_WORDS},
        status_words=STATUS_WORDS,
        gaps=gaps[:GAPS],
        gap_count=len(gaps),
        for_operator=for_operator,
        dagster_url=dagster_url,
        offer=offer,
    )


def _status(day: Day) -> str:
    return str(day.status) if day.status else "never_asked" if day.is_due else "not_due"


def _calendar(days: Sequence[tuple[Day, str]]) -> list[Weeks]:
    """Return the days as squares: a column is a week from Monday on, like a calendar on its side."""
    if not days:
        return []
    begins = days[0][0].session_date
    begins -= timedelta(days=begins.weekday())
    found = []
    for number, group in groupby(days, key=lambda each: (each[0].session_date - begins).days // (_WEEK * _WEEKS)):
        members = list(group)
        monday = begins + timedelta(weeks=number * _WEEKS)
        squares = [_square(day, status, monday) for day, status in members]
        dates = [day.session_date for day, _ in members]
        width = max(square.x for square in squares) + _PITCH
        found.append(Weeks(dates[0], dates[-1], width, squares, _months(dates, monday)))
    return found


def _square(day: Day, status: str, monday: date) -> Square:
    week, weekday = divmod((day.session_date - monday).days, _WEEK)
    title = f"{day.session_date:%a %Y-%m-%d}: {status.replace('_', ' ')}, {day.rows} bars"
    return Square(week * _PITCH, _MONTHS_HEIGHT + weekday * _PITCH, status, title)


def _months(dates: Sequence[date], monday: date) -> list[tuple[int, str]]:
    """Return the position of each month's name above the squares."""
    firsts = [next(members) for _, members in groupby(dates, key=lambda day: day.replace(day=1))]
    places = [((day - monday).days // _WEEK * _PITCH, f"{day:%b}") for day in firsts]
    # The first month may have only a few days; the next month's name would then cover its own.
    return places[1:] if len(places) > 1 and places[1][0] - places[0][0] < 2 * _PITCH else places


def _runs(days: Iterable[tuple[Day, str]]) -> list[Run]:
    """Return runs of days with the same status, the newest first."""
    found = []
    for status, group in groupby(days, key=lambda each: each[1]):
        members = [day for day, _ in group]
        rows = sum(day.rows for day in members)
        found.append(Run(members[0].session_date, members[-1].session_date, status, len(members), rows))
    return found[::-1]


def _gap_rows(symbol: str, gaps: SeriesGaps, *, for_operator: bool) -> list[tuple[str, str, str, int, str]]:
    """Return the gaps as `table_rows` does, the newest first; errors are for operators only."""
    if not for_operator:
        shown = [
            gap.model_copy(update={"explanation": "failed"}) if gap.reason == Reason.FAILED else gap
            for gap in gaps.stretches
        ]
        gaps = gaps.model_copy(update={"stretches": shown})
    return table_rows(symbol, [gaps])[::-1]
