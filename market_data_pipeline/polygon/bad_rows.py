"""Find the rows of a page that cannot be used, and the session days that they spoil; what is merely odd is taken in.

A page comes here only when decoding it as a whole, or a rule over all of its rows, has failed.

- A row whose stamp is in order belongs to the day of its stamp; whatever else is wrong with it spoils that day.
- A row without a usable stamp may belong to any day from the row before it to the row after it: these are spoiled. So
  is, for a stamp that is out of order, the day that it names.
- Two different rows with one start spoil their day. An exact repeat is left out.
- `vw` and `n` are optional: a value that cannot be read counts as unknown.
- A bar that lies in no session is not part of the series, whatever its values: it is set apart.

A page none of whose rows has a usable stamp is refused whole, and so is one that only repeats what came before.
"""

from __future__ import annotations

from bisect import bisect_left
from math import isnan, nan
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import numpy as np

from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.domain.series import asset_class_of
from market_data_pipeline.polygon.rows import (
    FIELDS,
    LATEST_MS,
    BadRow,
    Bar,
    IndexBar,
    Outside,
    Rows,
    in_words,
    odd_stamp,
    off_grid,
    optional_rules,
    price_rules,
    shown,
    when,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.domain.series import Timeframe

_B = TypeVar("_B", bound=Bar | IndexBar)
_OPTIONAL: Final = ("vw", "n")
_BEYOND: Final = 1e300  # stands for an integer too large for a float


def decoded(
    rows: Sequence[Any], where: str, kind: type[Bar] | type[IndexBar] = Bar
) -> tuple[np.ndarray, dict[int, str], list[str]]:
    """Return a row of the table of `wire` for each row, what is wrong with those that do not decode, and warnings.

    A stamp that cannot be read is NaN in the table.
    """
    table = np.full((len(rows), 1 + len(FIELDS)), nan)
    flaws: dict[int, str] = {}
    unknown: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        try:
            bar, unread = converted(row, kind)
        except msgspec.ValidationError as error:
            flaws[at] = f"{where}, bar {at}{in_words(str(error), 'bar')}."
            table[at, 0] = _stamp(row)
            continue
        table[at] = (_float(bar.t), bar.o, bar.h, bar.l, bar.c, bar.v, bar.vw, bar.n)
        for name in unread:
            unknown.setdefault(name, []).append(at)
    warnings = [
        f"{where}: {name} of {_bars(len(found))} cannot be read, first of bar {found[0]}; it is stored as unknown."
        for name, found in unknown.items()
    ]
    return table, flaws, warnings


def converted(row: Any, kind: type[_B]) -> tuple[_B, list[str]]:
    """Return a row as a bar, and the names of its optional fields that cannot be read and so count as unknown.

    Raises:
        msgspec.ValidationError: another field cannot be read.
    """
    unread: list[str] = []
    while True:
        try:
            return msgspec.convert(row, kind), unread
        except msgspec.ValidationError as error:
            name = str(error).rpartition("`$.")[2].rstrip("`")
            if name not in _OPTIONAL:
                raise
            unread.append(name)
            row = {key: value for key, value in row.items() if key != name}


def _bars(count: int) -> str:
    return "a bar" if count == 1 else f"{count} bars"


def _stamp(row: Any) -> float:
    stamp = row.get("t") if isinstance(row, dict) else None
    return _float(stamp) if isinstance(stamp, int) and not isinstance(stamp, bool) else nan


def _float(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return _BEYOND


def sifted(
    table: np.ndarray,
    flaws: dict[int, str],
    symbol: str,
    timeframe: Timeframe,
    interval: Interval,
    earlier: Sequence[Rows],
    where: str,
) -> Rows:
    """Return the usable rows of a page, and which of the others spoil which days.

    Args:
        table: a stamp in milliseconds and the values of each row, as `decoded` returns it.
        flaws: what is already known to be wrong, by row.
        symbol: whose bars they are.
        timeframe: of the bars.
        interval: what was requested.
        earlier: the pages before.
        where: names the page in messages.

    Raises:
        DataError: no row has a usable stamp that comes after the pages before.
    """
    sieve = _Sieve(table, flaws, interval, earlier, where)
    sieve.leave_out_repeats()
    sieve.find_order()
    sieve.judge_starts(symbol, timeframe)
    sieve.judge_values(has_volume=asset_class_of(symbol).market.has_volume)
    return sieve.rows()


_NOT_AFTER: Final = "does not come after the bar before it"


class _Sieve:
    """The rows of one page, and what is found to be wrong with them, step by step.

    Attributes:
        ts_us: start of each row in microseconds; 0 where it is not placed.
        values: a row for each of `VALUES`.
        placed: which rows have a stamp within the interval.
        repeats: rows that repeat one before.
        order: rows whose starts rise, in their order; `in_order` is a mask of them.
        inside: which rows lie in a session.
        reasons: what is wrong, by row.
        warnings: what is odd and taken in all the same.
    """

    def __init__(
        self, table: np.ndarray, flaws: dict[int, str], interval: Interval, earlier: Sequence[Rows], where: str
    ) -> None:
        ms = table[:, 0]
        self.values = np.ascontiguousarray(table[:, 1:].T)
        self.interval, self.earlier, self.where = interval, earlier, where
        self.after_us = next((page.last_us for page in reversed(earlier) if page.last_us is not None), None)
        self.reasons = dict(flaws)
        self.warnings: list[str] = []
        self.placed = self._placed(ms)
        self.ts_us = np.where(self.placed, ms, 0).astype("int64") * 1000
        self.repeats: list[int] = []
        self.order = np.empty(0, dtype="int64")
        self.in_order = np.zeros(len(ms), dtype=bool)
        self.inside = np.ones(len(ms), dtype=bool)

    def _placed(self, ms: np.ndarray) -> np.ndarray:
        """Return which rows have a stamp within the interval, and note what is wrong with the others."""
        start, end = (to_us(instant) // 1000 for instant in self.interval)
        placed: np.ndarray = (ms >= start) & (ms < end)
        requested = f"[{self.interval.start.isoformat()}, {self.interval.end.isoformat()})"
        for at in np.flatnonzero(~placed).tolist():
            if isnan(ms[at]):
                continue
            odd = not 0 <= ms[at] <= LATEST_MS
            what = odd_stamp(ms[at]) if odd else f"{when(int(ms[at]) * 1000)} is outside {requested}"
            self.reasons[at] = f"{self.where}, bar {at}, field t: {what}."
        return placed

    def leave_out_repeats(self) -> None:
        """Find the rows that repeat one before, and note the starts that two different rows have."""
        seen: dict[int, np.ndarray] = {}
        for at in np.flatnonzero(self.placed).tolist():
            us, row = int(self.ts_us[at]), self.values[:, at]
            before = seen.get(us)
            if before is None:
                before = self._of_earlier_page(us)
            if before is None:
                seen[us] = row
                continue
            seen[us] = before
            if np.array_equal(before, row, equal_nan=True) and at not in self.reasons:
                self.repeats.append(at)
            else:
                self._blame(at, f"field t: {when(us)} comes twice, with different values")
        if self.repeats:
            first = when(self.ts_us[self.repeats[0]])
            self.warnings.append(
                f"{self.where}: {_bars(len(self.repeats))} came twice with the same values, first {first}."
            )

    def _of_earlier_page(self, us: int) -> np.ndarray | None:
        """Return the values that the latest page before has for a start; None when none has it."""
        if self.after_us is None or us > self.after_us:
            return None
        for page in reversed(self.earlier):
            found = int(np.searchsorted(page.ts_us, us))
            if found < len(page.ts_us) and page.ts_us[found] == us:
                values: np.ndarray = page.values[:, found]
                return values
        return None

    def find_order(self) -> None:
        """Find the rows whose starts rise.

        Raises:
            DataError: there is none.
        """
        once = self.placed.copy()
        once[self.repeats] = False
        rise = _longest_rise(self.ts_us, np.flatnonzero(once).tolist(), self.after_us)
        if not rise:
            at = next(iter(self.reasons), 0)
            raise DataError(self.reasons.get(at) or self._unordered(0))
        self.order = np.array(rise, dtype="int64")
        self.in_order[self.order] = True

    def judge_starts(self, symbol: str, timeframe: Timeframe) -> None:
        """Note the rows that start off the grid, and set apart those that lie in no session."""
        calendar = calendar_for(asset_class_of(symbol))
        self.inside[self.placed] = calendar.in_session(timeframe, self.ts_us[self.placed])
        off = off_grid(self.ts_us[self.in_order], symbol, timeframe)
        for at in np.flatnonzero(self.in_order)[off].tolist():
            self._blame(at, f"field t: {when(self.ts_us[at])} is not on the grid of {timeframe} bars")

    def judge_values(self, *, has_volume: bool) -> None:
        """Note the rows that break a rule about prices, and forget optional fields that break one."""
        for rule, broken in optional_rules(self.values):
            if (odd := broken & self.in_order & self.inside).any():
                first = int(np.argmax(odd))
                self.values[5 if rule.startswith("vw") else 6, odd] = nan
                self.warnings.append(
                    f"{self.where}: {rule} in {_bars(int(odd.sum()))}, first in bar {first} "
                    f"({when(self.ts_us[first])}); it is stored as unknown."
                )
        for rule, broken in price_rules(self.values, has_volume=has_volume):
            for at in np.flatnonzero(broken & self.in_order).tolist():
                reason = f"{self.where}, bar {at} ({when(self.ts_us[at])}): {rule}: {shown(self.values, at)}."
                self.reasons.setdefault(at, reason)

    def rows(self) -> Rows:
        """Return what is left, and what is wrong."""
        bad = tuple(self._bad())
        kept = self.in_order.copy()
        kept[list(self.reasons)] = False
        usable, outside = kept & self.inside, kept & ~self.inside
        if lost := [at for at in sorted(self.reasons) if self.in_order[at] and not self.inside[at]]:
            what = f"{_bars(len(lost))} of no session that cannot be used, left out"
            self.warnings.append(f"{self.where}: {what}; first {when(self.ts_us[lost[0]])}: {self.reasons[lost[0]]}")
        return Rows(
            self.ts_us[usable],
            self.values[:, usable],
            first_us=int(self.ts_us[self.order[0]]),
            last_us=int(self.ts_us[self.order[-1]]),
            bad=bad,
            outside=Outside(self.ts_us[outside], self.values[:, outside]) if outside.any() else None,
            warnings=tuple(self.warnings),
        )

    def _bad(self) -> Iterator[BadRow]:
        """Yield the days that each unusable row may belong to; what lies in no session spoils none."""
        for at in sorted({*self.reasons, *np.flatnonzero(~self.in_order).tolist()} - set(self.repeats)):
            if self.in_order[at] and not self.inside[at]:
                continue
            us, reason = int(self.ts_us[at]), self.reasons.get(at) or self._unordered(at)
            low, high = self._neighbours(at)
            if self.placed[at]:
                yield BadRow(us, us, reason)
            between = self.placed[at] and low <= us and (high is None or us <= high)
            if not (self.in_order[at] or between):
                yield BadRow(low, high, reason)

    def _neighbours(self, at: int) -> tuple[int, int | None]:
        """Return the starts of the rows in order before and after a row; None where the page ends."""
        next_at = int(np.searchsorted(self.order, at))
        begin = to_us(self.interval.start) if self.after_us is None else self.after_us
        low = int(self.ts_us[self.order[next_at - 1]]) if next_at else begin
        return low, int(self.ts_us[self.order[next_at]]) if next_at < len(self.order) else None

    def _unordered(self, at: int) -> str:
        return f"{self.where}, bar {at}, field t: {when(self.ts_us[at])} {_NOT_AFTER}."

    def _blame(self, at: int, what: str) -> None:
        self.reasons.setdefault(at, f"{self.where}, bar {at}, {what}.")


def _longest_rise(ts_us: np.ndarray, rows: Sequence[int], after_us: int | None) -> list[int]:
    """Return the longest run of rows, in their order, whose starts rise strictly and come after `after_us`."""
    tails: list[int] = []  # the smallest start with which a rise of each length can end
    ends: list[int] = []  # its row
    before: dict[int, int | None] = {}
    for at in rows:
        us = int(ts_us[at])
        if after_us is not None and us <= after_us:
            continue
        length = bisect_left(tails, us)
        if length < len(tails) and tails[length] == us:
            continue  # of two rows with one start, the first
        before[at] = ends[length - 1] if length else None
        tails[length : length + 1] = [us]
        ends[length : length + 1] = [at]
    rise: list[int] = []
    last: int | None = ends[-1] if ends else None
    while last is not None:
        rise.append(last)
        last = before[last]
    return rise[::-1]
