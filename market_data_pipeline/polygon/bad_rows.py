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
    from collections.abc import Sequence

    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.domain.series import Timeframe

_B = TypeVar("_B", bound=Bar)
_OPTIONAL: Final = ("vw", "n")
_BEYOND: Final = 1e300  # stands for an integer too large for a float


def decoded(rows: Sequence[Any], where: str) -> tuple[np.ndarray, dict[int, str], list[str]]:
    """Return a row of the table of `wire` for each row, what is wrong with those that do not decode, and warnings.

    A stamp that cannot be read is NaN in the table.
    """
    table = np.full((len(rows), 1 + len(FIELDS)), nan)
    flaws: dict[int, str] = {}
    unknown: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        try:
            bar, unread = converted(row, Bar)
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
    ms, values = table[:, 0], np.ascontiguousarray(table[:, 1:].T)
    reasons = dict(flaws)
    placed = _placed(ms, interval, reasons, where)
    ts_us = np.where(placed, ms, 0).astype("int64") * 1000
    after_us = next((page.last_us for page in reversed(earlier) if page.last_us is not None), None)

    warnings = []
    repeats = _repeats(ts_us, values, placed, earlier, after_us, reasons, where)
    if repeats:
        warnings.append(
            f"{where}: {_bars(len(repeats))} came twice with the same values, first {when(ts_us[repeats[0]])}."
        )
    once = placed.copy()
    once[repeats] = False
    order = np.array(_longest_rise(ts_us, np.flatnonzero(once).tolist(), after_us), dtype="int64")
    if not len(order):
        at = next(iter(reasons), 0)
        raise DataError(reasons.get(at) or f"{where}, bar 0, field t: {when(ts_us[0])} {_NOT_AFTER}.")
    in_order = np.zeros(len(ms), dtype=bool)
    in_order[order] = True
    kept = in_order.copy()

    inside = np.ones(len(ms), dtype=bool)
    calendar = calendar_for(asset_class_of(symbol))
    inside[placed] = calendar.in_session(timeframe, ts_us[placed])
    for at in np.flatnonzero(in_order)[off_grid(ts_us[in_order], symbol, timeframe)].tolist():
        reasons.setdefault(at, f"{where}, bar {at}, field t: {when(ts_us[at])} is not on the grid of {timeframe} bars.")
    for rule, broken in optional_rules(values):
        if (odd := broken & kept & inside).any():
            first = int(np.argmax(odd))
            values[5 if rule.startswith("vw") else 6, odd] = nan
            warnings.append(
                f"{where}: {rule} in {_bars(int(odd.sum()))}, first in bar {first} ({when(ts_us[first])}); "
                "it is stored as unknown."
            )
    for rule, broken in price_rules(values):
        for at in np.flatnonzero(broken & kept).tolist():
            reasons.setdefault(at, f"{where}, bar {at} ({when(ts_us[at])}): {rule}: {shown(values, at)}.")

    bad = []
    for at in sorted({*reasons, *np.flatnonzero(~in_order).tolist()} - set(repeats)):
        if in_order[at] and not inside[at]:
            continue
        us, reason = int(ts_us[at]), reasons.get(at) or f"{where}, bar {at}, field t: {when(ts_us[at])} {_NOT_AFTER}."
        next_at = int(np.searchsorted(order, at))
        low = int(ts_us[order[next_at - 1]]) if next_at else to_us(interval.start) if after_us is None else after_us
        high = int(ts_us[order[next_at]]) if next_at < len(order) else None
        if placed[at]:
            bad.append(BadRow(us, us, reason))
        if not (in_order[at] or (placed[at] and low <= us and (high is None or us <= high))):
            bad.append(BadRow(low, high, reason))
    kept[list(reasons)] = False
    outside = in_order & ~inside
    outside[list(reasons)] = False
    return Rows(
        ts_us[kept & inside],
        values[:, kept & inside],
        first_us=int(ts_us[order[0]]),
        last_us=int(ts_us[order[-1]]),
        bad=tuple(bad),
        outside=Outside(ts_us[outside], values[:, outside]) if outside.any() else None,
        warnings=tuple(warnings),
    )


_NOT_AFTER: Final = "does not come after the bar before it"


def _placed(ms: np.ndarray, interval: Interval, reasons: dict[int, str], where: str) -> np.ndarray:
    """Return which rows have a stamp within the interval, and note what is wrong with the others."""
    start, end = to_us(interval.start) // 1000, to_us(interval.end) // 1000
    placed: np.ndarray = (ms >= start) & (ms < end)
    requested = f"[{interval.start.isoformat()}, {interval.end.isoformat()})"
    for at in np.flatnonzero(~placed).tolist():
        if isnan(ms[at]):
            continue
        odd = not 0 <= ms[at] <= LATEST_MS
        what = odd_stamp(ms[at]) if odd else f"{when(int(ms[at]) * 1000)} is outside {requested}"
        reasons[at] = f"{where}, bar {at}, field t: {what}."
    return placed


def _repeats(
    ts_us: np.ndarray,
    values: np.ndarray,
    placed: np.ndarray,
    earlier: Sequence[Rows],
    after_us: int | None,
    reasons: dict[int, str],
    where: str,
) -> list[int]:
    """Return the rows that repeat one before, and note the starts that two different rows have."""
    seen: dict[int, np.ndarray] = {}
    repeats = []
    for at in np.flatnonzero(placed).tolist():
        us = int(ts_us[at])
        row = values[:, at]
        if us not in seen and after_us is not None and us <= after_us:
            for page in earlier:
                found = int(np.searchsorted(page.ts_us, us))
                if found < len(page.ts_us) and page.ts_us[found] == us:
                    seen[us] = page.values[:, found]
        if us not in seen:
            seen[us] = row
        elif np.array_equal(seen[us], row, equal_nan=True) and at not in reasons:
            repeats.append(at)
        else:
            reasons.setdefault(at, f"{where}, bar {at}, field t: {when(us)} comes twice, with different values.")
    return repeats


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
