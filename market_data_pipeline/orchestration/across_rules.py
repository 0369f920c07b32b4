"""What must hold between timeframes: day bars against minutes, and coarser bars against those they are made of.

Add here: a rule about bars that compares two timeframes. Keep out: rules about bars one by one (bar_rules).
"""

# ruff: noqa: S608 - what is put into the statements are constants of this package

from __future__ import annotations

from typing import Final

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.orchestration.rules import REGULAR_CLOSE, REGULAR_OPEN, SESSION_DATE, Rule, Severity

_SPANS: Final = ", ".join(f"('{t}', interval '{t.minutes} minutes')" for t in Timeframe if not t.is_base)

_ROUNDED: Final = 0.999999999  # volumes have fractions: their sum is not the same in every order

ACROSS_RULES: Final = (
    Rule(
        name="day_volume_holds_the_minutes",
        holds="A day bar's volume is at least that of all 5-minute bars of its session.",
        broken="have less volume than the 5-minute bars of their session",
        severity=Severity.WARN,
        why="a correction may reach minutes and day in different nights, and either is then right by itself. The "
        "vendor's day bars hold the extended hours and trades that belong to no minute; recorded day bars of another "
        "source hold the regular hours' volume to the share (83 to 97 % of the session's), which is as good.",
        query=f"""
            select m.symbol, '{Timeframe.D1}' as timeframe, x.ts, x.volume, m.minutes, m.regular_minutes from (
                select b.symbol, d.session_date, d.day_start, sum(b.volume) as minutes,
                    sum(b.volume) filter (where b.ts >= {REGULAR_OPEN} and b.ts < {REGULAR_CLOSE}) as regular_minutes
                from b join market_data.sessions as d
                on d.asset_class = b.asset_class and d.session_date = {SESSION_DATE}
                where b.timeframe = '{Timeframe.M5}'
                group by 1, 2, 3
            ) as m
            join market_data.bars as x on x.symbol = m.symbol and x.timeframe = '{Timeframe.D1}' and x.ts = m.day_start
            where x.volume < m.minutes * {_ROUNDED}
            and not coalesce(x.volume between m.regular_minutes * {_ROUNDED} and m.regular_minutes / {_ROUNDED}, false)
            and 2 = (
                select count(*) from market_data.coverage as c
                where c.symbol = m.symbol and c.session_date = m.session_date and c.status = 'complete'
            )""",
    ),
    Rule(
        name="resampled_bars_equal_their_minutes",
        holds="Each 15m, 1h and 4h bar has the high, low and volume of the 5-minute bars that it spans.",
        broken="differ from the 5-minute bars that they span",
        severity=Severity.ERROR,
        why="they are made of those bars and of nothing else; a series that waits to be made again is left out.",
        query=f"""
            select c.symbol, c.timeframe, c.ts, c.high, m.high as high_of_5m, c.low, m.low as low_of_5m,
                c.volume, m.volume as volume_of_5m
            from (
                select b.symbol, k.timeframe, date_bin(k.span, b.ts, d.opens_at) as ts,
                    max(b.high) as high, min(b.low) as low, sum(b.volume) as volume
                from b join market_data.sessions as d
                on d.asset_class = b.asset_class and d.session_date = {SESSION_DATE}
                cross join (values {_SPANS}) as k (timeframe, span)
                where b.timeframe = '{Timeframe.M5}'
                group by 1, 2, 3
            ) as m
            join market_data.bars as c on c.symbol = m.symbol and c.timeframe = m.timeframe and c.ts = m.ts
            join market_data.series_state as made on made.symbol = c.symbol and made.timeframe = c.timeframe
            join market_data.series_state as base
            on base.symbol = c.symbol and base.timeframe = '{Timeframe.M5}' and base.revision = made.base_revision
            where c.high <> m.high or c.low <> m.low or abs(c.volume - m.volume) > 1e-9 * m.volume""",
    ),
)
