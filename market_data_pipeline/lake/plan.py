"""What to write so that a table of the lake holds what the database does: which months of which symbols.

Pure: what is held, what is stored and what changed in, the work out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.calendar import from_us, to_us
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.lake.state import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from market_data_pipeline.store.changes import StoredSeries

_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Work:
    """What to write.

    Attributes:
        months: by month (`2026-11`) and symbol, the interval within the month whose rows are replaced.
        replaced: symbols of which all rows that are held are to vanish first.
        held: what the table holds afterwards.
    """

    months: dict[str, dict[str, Interval]] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    held: dict[str, Held] = field(default_factory=dict)

    @property
    def series(self) -> int:
        """How many series are to be written."""
        return len(self.replaced.union(*self.months.values()))


def plan(
    held: Mapping[str, Held],
    stored: Mapping[str, StoredSeries],
    changes: Mapping[str, Sequence[Interval] | None],
    reach: Callable[[StoredSeries], datetime | None],
) -> Work:
    """Return what to write so that a table holds each series up to where it reaches, or further if it already does.

    Args:
        held: what the table holds, by symbol.
        stored: what the database holds of the table's timeframe, by symbol.
        changes: of what is held, where it changed since; None for anywhere.
        reach: until when bars of a series are to be held, None for none.
    """
    work = Work(replaced=set(held) - set(stored))
    for symbol, series in stored.items():
        known, until = held.get(symbol), reach(series)
        if known is not None:
            until = max(from_us(known.until_us), until or from_us(known.until_us))
        if until is None:
            continue
        work.held[symbol] = Held(series.position, to_us(until), series.revision)
        whole = known is None or changes.get(symbol, ()) is None
        if whole:
            work.replaced.add(symbol)
        if series.first_ts is None or series.last_ts is None:
            continue
        begin = series.first_ts if known is None or whole else from_us(known.until_us)
        to_write = [Interval(begin, min(until, series.last_ts + _INSTANT))]
        if not whole:
            to_write += [Interval(start, min(end, begin)) for start, end in changes.get(symbol) or ()]
        for month in months_of(to_write):
            bounds = month_bounds(month)
            parts = [Interval(max(start, bounds.start), min(end, bounds.end)) for start, end in to_write]
            parts = [part for part in parts if part.start < part.end]
            hull = Interval(min(part.start for part in parts), max(part.end for part in parts))
            work.months.setdefault(month, {})[symbol] = hull
    return work


def months_of(intervals: Iterable[Interval]) -> set[str]:
    """Return the months (UTC) that half-open intervals touch; an empty interval touches none."""
    found = set()
    for start, end in intervals:
        at = start
        while at < end:
            found.add(f"{at:%Y-%m}")
            at = month_bounds(f"{at:%Y-%m}").end
    return found


def month_bounds(month: str) -> Interval:
    """Return a month as a half-open interval of UTC."""
    year, number = map(int, month.split("-"))
    start = datetime(year, number, 1, tzinfo=UTC)
    return Interval(start, datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC))
