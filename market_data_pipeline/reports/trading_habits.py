"""How often symbols trade, told by the bars that they hold: how many rows an answer to a request will have.

A thin name is awake at noon and asleep at five in the morning, so each slot of a session has a chance of its own to
hold a bar. What is held of a day that is asked for again comes again, to the row. Keep out: what a row weighs
(answer_weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME, calendar_for, slot_count
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Timeframe, asset_class_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import date

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.polygon.request_windows import Window
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.coverage import Coverage

    Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

_MEMORY: Final = timedelta(days=28)  # of bars
_SESSIONS: Final = 5  # without any bar tell that nobody trades the symbol; fewer tell nothing
_SPAN: Final = Timeframe.M5.span

# Volumes of stocks have fractions of a share since 2026 and are whole before.
_FRACTIONS_SINCE: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Rows(NamedTuple):
    """What an answer is expected to hold.

    Attributes:
        rows: bars.
        base_bars: minutes (for day bars: days) behind them, of which pages hold so many.
        doubt: standard deviation of `rows`; 0 where all of them are held already.
    """

    rows: float = 0.0
    base_bars: float = 0.0
    doubt: float = 0.0


@dataclass(frozen=True, slots=True)
class Habits:
    """What a symbol's minutes are usually like.

    Attributes:
        filled: the chance of each slot of a full session, from its start on, to hold a 5m bar.
        minutes: of the five of a bar have a trade.
        fractional: the part of the held bars with fractional volumes.
    """

    filled: Floats
    minutes: float
    fractional: float = 1.0

    def rows(self, window: Window, held: Mapping[date, Coverage], timing: Timing) -> Rows:
        """Return what the answer to a request for 5m bars holds, given what is `held` of its days."""
        calendar = timing.calendar
        until = np.concatenate(([0.0], np.cumsum(self.filled)))
        spread = np.concatenate(([0.0], np.cumsum(self.filled * (1 - self.filled))))
        rows = variance = 0.0
        for session in calendar.sessions_overlapping(window.interval):
            asked = slots_until(session, window.interval.end)
            known = held.get(session.date)
            first = 0
            if known is not None and (known.rows or known.status.final):
                rows += known.rows
                first = asked if known.status.final else min(asked, _seen(session, known, timing))
            rows += until[asked] - until[first]
            variance += spread[asked] - spread[first]
        return Rows(rows, rows * self.minutes, float(np.sqrt(variance)))


def _seen(session: Session, known: Coverage, timing: Timing) -> int:
    served = timing.served_until(session, Timeframe.M5, known.fetched_at)
    return 0 if served is None else slots_until(session, served)


def slots_until(session: Session, instant: datetime) -> int:
    """Return how many 5m slots of a session begin before `instant`."""
    return min(max(-((session.start - instant) // _SPAN), 0), slot_count(Timeframe.M5, session))


def fractional_part(*intervals: Interval) -> float:
    """Return which part of the intervals lies where volumes have fractions."""
    whole = sum((interval.end - interval.start for interval in intervals), timedelta())
    since = sum(
        (max(interval.end - max(interval.start, _FRACTIONS_SINCE), timedelta()) for interval in intervals), timedelta()
    )
    return since / whole if whole else 1.0


def read_habits(connection: StoreConnection, symbols: Collection[str], now: datetime) -> dict[str, Habits]:
    """Return the habits of symbols, those left out that do not hold enough to tell.

    Days before a symbol's first bar count for nothing: it may not have been listed. Of a 5m bar with n trades
    5 * (1 - 0.8**n) minutes have one, when the trades fall anywhere in it alike.
    """
    if not symbols:
        return {}
    filled: dict[str, dict[int, int]] = {}
    for row in connection.rows(_SLOTS, sorted(symbols), now - _MEMORY, now):
        filled.setdefault(row["symbol"], {})[row["slot"]] = row["bars"]
    habits = {}
    for row in connection.rows(_DAYS, sorted(symbols), now - _MEMORY, now):
        symbol, sessions = row["symbol"], row["sessions"]
        if not sessions and row["empty"] < _SESSIONS:
            continue
        chances = np.zeros(calendar_for(asset_class_of(symbol)).full_slot_count(Timeframe.M5))
        for slot, bars in filled.get(symbol, {}).items():
            if 0 <= slot < len(chances):
                chances[slot] = min(bars / sessions, 1.0)
        extent = Interval(row["first_ts"], row["last_ts"]) if row["first_ts"] else None
        habits[symbol] = Habits(chances, 5 * row["minutes"], fractional_part(extent) if extent else 1.0)
    return habits


# A session's dates are New York's, or UTC's; no session is longer than a day, and none of them sees the clocks change.
_LOCAL: Final = f"case when symbol like 'X:%' then 'UTC' else '{EXCHANGE_ZONE_NAME}' end"
_OPENS: Final = "case when symbol like 'X:%' then 0 else 4 * 3600 end"
_SLOTS: Final = f"""
select symbol, ((extract(epoch from local)::bigint % 86400 - {_OPENS}) / 300)::int as slot, count(*) as bars
from (
    select b.symbol, b.ts at time zone {_LOCAL} as local
    from market_data.bars as b
    where b.timeframe = '5m' and b.symbol = any($1::text[]) and b.ts >= $2
) as held
where local::date < ($3::timestamptz at time zone {_LOCAL})::date and local::date >= $2::timestamptz::date
group by 1, 2
"""  # noqa: S608 - all parts are ours
_DAYS: Final = f"""
with days as (
    select symbol, session_date, rows, bool_or(rows > 0) over (partition by symbol order by session_date) as listed
    from market_data.coverage
    where timeframe = '5m' and symbol = any($1::text[]) and session_date >= $2::timestamptz::date
        and session_date < ($3::timestamptz at time zone {_LOCAL})::date
        and (rows > 0 or status in ('complete', 'empty_confirmed'))
),

traded as (
    select symbol, avg(1 - power(0.8, least(coalesce(trades, 100), 100)))::float8 as minutes
    from market_data.bars
    where timeframe = '5m' and symbol = any($1::text[]) and ts >= $2
    group by symbol
)

select
    d.symbol, d.sessions, d.empty, coalesce(t.minutes, 1) as minutes, s.first_ts, s.last_ts
from (
    select symbol, count(*) filter (where listed) as sessions, count(*) filter (where not listed) as empty
    from days
    group by symbol
) as d
left join traded as t on t.symbol = d.symbol
left join market_data.series_state as s on s.symbol = d.symbol and s.timeframe = '5m'
"""  # noqa: S608 - all parts are ours
