"""Answers of the vendor in which some rows are damaged, drawn at random, and the truth about each of their days.

A damage is HARMLESS if nothing about the day's bars is in doubt (a row listed twice in the same words, an optional
field that is absent), and otherwise spoils its day: no person could say what the bar was. Nothing here uses the code
under test, except for the calendar's sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from market_data_pipeline_tests.domain.strategies import EQUITIES

if TYPE_CHECKING:
    from market_data_pipeline.domain.calendar import Session

Row = dict[str, Any]
Damage = Callable[[Row], list[Row]]  # what the answer has in place of a row


def _without(*names: str) -> Damage:
    return lambda row: [{name: value for name, value in row.items() if name not in names}]


def _with(**values: Any) -> Damage:
    return lambda row: [row | values]


HARMLESS: Final[dict[str, Damage]] = {
    "listed twice": lambda row: [row, dict(row)],
    "listed three times": lambda row: [row, dict(row), dict(row)],
    "no vwap": _without("vw"),
    "null vwap": _with(vw=None),
    "no count": _without("n"),
    "null count": _with(n=None),
    "unknown key": _with(zz="?"),
    "unknown key without a number": _with(a=float("nan")),  # written as an unquoted NaN
}
# Those of HARMLESS after which a value of the row is unknown: which one.
UNKNOWN_AFTER: Final = {"no vwap": "vw", "null vwap": "vw", "no count": "n", "null count": "n"}
SPOILING: Final[dict[str, Damage]] = {
    "listed twice with two closes": lambda row: [row, row | {"c": row["l"], "v": row["v"] + 1}],
    "price of zero": _with(l=0.0),
    "negative price": _with(l=-1.0),
    "null price": _with(o=None),
    "no price": _without("c"),
    "price in words": _with(h="high"),
    "close above the high": lambda row: [row | {"c": row["h"] + 0.01}],
    "open below the low": lambda row: [row | {"o": row["l"] - 0.01}],
    "null volume": _with(v=None),
    "negative volume": _with(v=-1.0),
    "infinite price": _with(h=float("inf")),
    "price without a number": _with(c=float("nan")),
}


@dataclass(frozen=True)
class Answered:
    """An answer, and what is true of it.

    Attributes:
        sessions: the days that were requested, ascending.
        rows: as the answer lists them; NaN and infinities are for the test to write as the vendor does.
        truth: by date, the rows as they were before they were damaged; `vw` and `n` None where the answer lost them.
        spoiled: by date, the damages that spoil the day.
        harmless: by date, the damages that do not.
    """

    sessions: tuple[Session, ...]
    rows: tuple[Row, ...]
    truth: dict[date, tuple[Row, ...]]
    spoiled: dict[date, tuple[str, ...]]
    harmless: dict[date, tuple[str, ...]]

    @property
    def good(self) -> dict[date, tuple[Row, ...]]:
        """The rows of every day that is not spoiled."""
        return {day: rows for day, rows in self.truth.items() if day not in self.spoiled}


@st.composite
def answers(draw: st.DrawFn, *, days: int = 6, daily: bool = False, most: int = 4) -> Answered:
    """An answer of 5-minute bars, or day bars, of up to `days` sessions with at most `most` damaged rows.

    The first and the last row of a day and of the answer are damaged more often than chance would.
    """
    start = draw(st.dates(date(2023, 2, 1), date(2026, 11, 1)))
    sessions = EQUITIES.sessions(start, start + timedelta(days=20))[: draw(st.integers(1, days))]
    truth: dict[date, tuple[Row, ...]] = {}
    for session in sessions:
        slots = (session.end - session.start) // timedelta(minutes=5)
        chosen = [0] if daily else sorted(draw(st.sets(st.integers(0, slots - 1), min_size=1, max_size=5)))
        base = session.day_start if daily else session.start
        truth[session.date] = tuple(_row(draw, base + at * timedelta(minutes=5)) for at in chosen)
    places = [(day, at) for day, rows in truth.items() for at in range(len(rows))]
    edges = [places[0], places[-1], *((day, at) for day, rows in truth.items() for at in (0, len(rows) - 1))]
    damaged: dict[tuple[date, int], str] = {}
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.sampled_from(edges) | st.sampled_from(places))
        damaged[place] = draw(st.sampled_from(sorted(SPOILING)) | st.sampled_from(sorted(HARMLESS)))
    rows: list[Row] = []
    spoiled: dict[date, tuple[str, ...]] = {}
    harmless: dict[date, tuple[str, ...]] = {}
    for day, true in list(truth.items()):
        known = list(true)
        for at, row in enumerate(true):
            kind = damaged.get((day, at))
            if kind is None:
                rows.append(row)
                continue
            rows += (SPOILING | HARMLESS)[kind](row)
            found = spoiled if kind in SPOILING else harmless
            found[day] = (*found.get(day, ()), kind)
            if kind in UNKNOWN_AFTER:
                known[at] = row | {UNKNOWN_AFTER[kind]: None}
        truth[day] = tuple(known)
    return Answered(sessions, tuple(rows), truth, spoiled, harmless)


def _row(draw: st.DrawFn, start: Any) -> Row:
    low = draw(st.integers(100, 90_000)) / 100
    spread = draw(st.integers(0, 500)) / 100
    inside = st.integers(0, round(spread * 100)).map(lambda cents: round(low + cents / 100, 2))
    high = round(low + spread, 2)
    return {
        "v": float(draw(st.integers(0, 10**7))),
        "vw": draw(inside),
        "o": draw(inside),
        "c": draw(inside),
        "h": high,
        "l": low,
        "t": int(start.timestamp() * 1000),
        "n": draw(st.integers(1, 10**5)),
    }
