"""Writes `domain/exchange_days.py` from the installed exchange-calendars.

Run `python -m market_data_pipeline_tests.domain.exchange_days` after exchange-calendars was changed.
"""

from __future__ import annotations

import datetime as dt
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import exchange_calendars

from market_data_pipeline.domain import exchange_days
from market_data_pipeline.domain.calendar import END_DATE, FIRST_DATE

if TYPE_CHECKING:
    from collections.abc import Iterable

_DAY: Final = dt.timedelta(days=1)
_SATURDAY: Final = 5
_TEXT: Final = '''"""The days of New York's stock exchange as exchange-calendars knows them, made from it.

To compute them takes 0.7 s of each process that asks about a session; to read them takes a millisecond. `python -m
market_data_pipeline_tests.domain.exchange_days` writes this file after exchange-calendars was changed, and a test
compares both.
"""

from __future__ import annotations

from typing import Final

MADE_FROM: Final = "{version}"  # the version of exchange-calendars

# Monday to Friday without a session, a year a line, as month and day.
CLOSED: Final = """
{closed}
"""

# Sessions that close early.
EARLY: Final = """
{early}
"""
'''


def computed() -> tuple[tuple[dt.date, ...], frozenset[dt.date]]:
    """Return all session dates, ascending, and those among them that close early, by the library."""
    calendar = exchange_calendars.get_calendar("XNYS", start=FIRST_DATE.isoformat(), end=(END_DATE - _DAY).isoformat())
    return tuple(calendar.sessions.date), frozenset(calendar.early_closes.date)


def text() -> str:
    """Return what the file has to be for the installed version."""
    sessions, early = computed()
    known = set(sessions)
    days = (FIRST_DATE + number * _DAY for number in range((END_DATE - FIRST_DATE).days))
    closed = [day for day in days if day.weekday() < _SATURDAY and day not in known]
    assert all(day.weekday() < _SATURDAY for day in sessions)
    return _TEXT.format(version=version("exchange-calendars"), closed=_lines(closed), early=_lines(sorted(early)))


def _lines(days: Iterable[dt.date]) -> str:
    return "\n".join(
        " ".join([str(year), *(f"{day:%m%d}" for day in of_year)])
        for year, of_year in groupby(days, key=lambda day: day.year)
    )


if __name__ == "__main__":
    Path(exchange_days.__file__).write_text(text(), encoding="utf-8")
