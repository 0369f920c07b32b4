"""The columns that both sources serve, and how bars are aggregated to coarser ones, day bars included.

Keep out: where bars come from (market, replay), which of them are visible (view) and how they are written (encode).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from market_data_pipeline.domain.calendar import Session

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

MINUTE_MS: Final = 60_000

# From the start of the extended session at 04:00 New York, in minutes.
OPEN: Final = 330  # 09:30
CLOSE: Final = 720  # 16:00
EARLY_CLOSE: Final = 540  # 13:00

# Whole micro-shares add up exactly in float64 (below 2**53), fractions of a share do not: so volumes are summed in
# micro-shares and divided once.
_MICRO: Final = 1e6


class SplitRow(NamedTuple):
    """One split as the vendor writes it: `split_from` old shares become `split_to` new ones."""

    ticker: str
    execution_date: dt.date
    split_from: float
    split_to: float


class DividendRow(NamedTuple):
    """One cash dividend as the vendor writes it: `amount` for each share of `ex_date`."""

    ticker: str
    ex_date: dt.date
    amount: float
    currency: str = "USD"
    declared: dt.date | None = None
    record: dt.date | None = None
    pay: dt.date | None = None
    frequency: int = 4
    type: str = "recurring"  # as the present list calls it


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of one ticker, ascending; every column is as long as `t`.

    `t` is the start in ms since 1970 UTC; prices in dollars; `v` in shares; `vw` and `n` are NaN where unknown;
    `base` is how many base bars (minutes, or days for day bars) the bar is made of: what `limit` counts.
    """

    t: Ints
    o: Floats
    h: Floats
    low: Floats
    c: Floats
    v: Floats
    vw: Floats
    n: Floats
    base: Ints

    def __len__(self) -> int:
        """Return the number of bars."""
        return len(self.t)

    def columns(self) -> tuple[NDArray[np.generic], ...]:
        """Return the nine columns in the order of the constructor."""
        return (self.t, self.o, self.h, self.low, self.c, self.v, self.vw, self.n, self.base)

    def take(self, rows: slice | NDArray[np.generic]) -> Bars:
        """Return the given rows: a slice, a mask or ascending positions."""
        return Bars(*(column[rows] for column in self.columns()))  # type: ignore[arg-type]

    def between(self, start_ms: int, end_ms: int) -> Bars:
        """Return the bars that start in [start_ms, end_ms)."""
        low, high = (int(i) for i in np.searchsorted(self.t, (start_ms, end_ms)))
        return self if low == 0 and high == len(self) else self.take(slice(low, high))

    def scaled(self, factor: Floats) -> Bars:
        """Return the bars with prices multiplied by `factor`, to the vendor's four decimals, and volumes divided by it.

        Args:
            factor: one for each bar.
        """
        if (factor == 1.0).all():
            return self
        prices = {name: np.rint(getattr(self, name) * factor * 1e4) / 1e4 for name in ("o", "h", "low", "c", "vw")}
        return replace(self, **prices, v=np.rint(self.v / factor * _MICRO) / _MICRO)

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return sum(column.nbytes for column in self.columns())


_NOTHING: Final = np.empty(0)
_NO_NUMBERS: Final = np.empty(0, dtype="int64")
NO_BARS: Final = Bars(
    _NO_NUMBERS, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, base=_NO_NUMBERS
)


def concat(parts: Iterable[Bars]) -> Bars:
    """Concatenate parts, each ascending and later than the one before it."""
    held = [part for part in parts if len(part)]
    if len(held) <= 1:
        return held[0] if held else NO_BARS
    return Bars(*(np.concatenate(columns) for columns in zip(*(p.columns() for p in held), strict=True)))


def aggregate(bars: Bars, starts_ms: Ints) -> Bars:
    """Return one bar per run of equal values in `starts_ms`, which holds the coarser bar's start for every bar.

    Open is the first bar's, close the last's; volumes and counts add up; VWAP is weighted by volume and rounded to
    four decimals, as the vendor does, and NaN when one is unknown.
    """
    if not len(bars):
        return bars
    first = np.flatnonzero(np.diff(starts_ms, prepend=starts_ms[0] - 1))
    last = np.append(first[1:], len(bars)) - 1
    micro = np.rint(bars.v * _MICRO)
    volume = np.add.reduceat(micro, first)
    weighted = np.add.reduceat(bars.vw * micro, first)
    return Bars(
        t=starts_ms[first],
        o=bars.o[first],
        h=np.maximum.reduceat(bars.h, first),
        low=np.minimum.reduceat(bars.low, first),
        c=bars.c[last],
        v=volume / _MICRO,
        vw=np.rint(weighted / np.maximum(volume, 1.0) * 1e4) / 1e4,
        n=np.add.reduceat(bars.n, first),
        base=np.add.reduceat(bars.base, first),
    )


def to_step(minutes: Bars, step_ms: int) -> Bars:
    """Return minute bars as bars of `step_ms`, on the vendor's grid: multiples of the step since 1970 UTC.

    Multi-hour bars thus step by absolute hours: 4-hour bars start at 04:00 New York in summer, at 03:00 in winter.
    """
    if step_ms == MINUTE_MS:
        return minutes
    return aggregate(minutes, minutes.t // step_ms * step_ms)


def join(parts: Sequence[Bars]) -> Bars:
    """Concatenate ascending parts of one timeframe, merging a bar that was cut between two of them."""
    joined: list[Bars] = []
    for part in parts:
        if joined and len(part) and joined[-1].t[-1] == part.t[0]:
            last = joined.pop()
            cut = concat((last.take(slice(-1, None)), part.take(slice(0, 1))))
            joined += [last.take(slice(0, -1)), aggregate(cut, cut.t), part.take(slice(1, None))]
        elif len(part):
            joined.append(part)
        joined = [each for each in joined if len(each)]
    return concat(joined)


def days_of(bars: Bars, sessions: Sequence[Session], *, round_the_clock: bool) -> tuple[Bars, NDArray[np.bool_]]:
    """Return one bar for each session that has any, and which of these have regular hours.

    Starts are local midnights. Prices are those of regular hours, so some extended-hours prints lie outside; a day that
    has no regular trade (yet) is made of all its bars. Volume, VWAP and count are those of all bars.
    """
    if not len(bars) or not sessions:
        return NO_BARS, np.empty(0, dtype=bool)
    midnights = np.array([int(s.day_start.timestamp()) * 1000 for s in sessions], dtype="int64")
    starts = np.array([int(s.start.timestamp()) * 1000 for s in sessions], dtype="int64")
    at = np.searchsorted(midnights, bars.t, side="right") - 1
    whole = aggregate(bars, midnights[at])
    base = np.ones(len(whole), dtype="int64")
    if round_the_clock:
        return replace(whole, base=base), base > 0
    ends = np.array([EARLY_CLOSE if s.early_close else CLOSE for s in sessions])
    offset = (bars.t - starts[at]) // MINUTE_MS
    regular = np.flatnonzero((offset >= OPEN) & (offset < ends[at]))
    core = aggregate(bars.take(regular), midnights[at[regular]])
    here = np.searchsorted(whole.t, core.t)
    o, h, low, c = (column.copy() for column in (whole.o, whole.h, whole.low, whole.c))
    o[here], h[here], low[here], c[here] = core.o, core.h, core.low, core.c
    known = np.zeros(len(whole), dtype=bool)
    known[here] = True
    return Bars(whole.t, o, h, low, c, whole.v, whole.vw, whole.n, base), known
