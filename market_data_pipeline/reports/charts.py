"""What the charts of a tier show: half a year of day bars with features, and the coverage of the last 120 days."""

# ruff: noqa: S608  the SQL is put together from constants of this module

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    import pandas as pd

    from market_data_pipeline.domain.series import Tier

_DRAWN: Final = """
with drawn as (
    select s.symbol, s.asset_class from market_data.symbols as s
    where s.tier = :tier and s.active order by s.symbol limit :symbols
)"""

# Half a year: enough for a trend, and a day is still wider than a pixel.
_DAY_BARS: Final = sa.text(
    _DRAWN
    + """
select b.symbol, b.ts, b.close, b.volume, f.atr, f.trend_regime
from drawn join market_data.bars_adjusted as b on b.symbol = drawn.symbol
join market_data.features as f on f.symbol = b.symbol and f.timeframe = b.timeframe and f.ts = b.ts
where b.timeframe = '1d' and f.timeframe = '1d' and b.ts >= market_data.clock() - interval '183 days'
order by b.symbol, b.ts"""
)

# From the first covered day on: what lies before was never requested.
_COVERAGE: Final = sa.text(
    _DRAWN
    + """
select k.symbol, k.timeframe, d.session_date, coalesce(c.status, 'not fetched') as status
from (
    select h.symbol, h.timeframe, drawn.asset_class, min(h.session_date) as first_date
    from drawn join market_data.coverage as h on h.symbol = drawn.symbol group by 1, 2, 3
) as k
join market_data.sessions as d on d.asset_class = k.asset_class and d.session_date >= k.first_date
left join market_data.coverage as c
on c.symbol = k.symbol and c.timeframe = k.timeframe and c.session_date = d.session_date
where d.closes_at <= market_data.clock() and d.closes_at > market_data.clock() - interval '120 days'
order by k.symbol, k.timeframe desc, d.session_date"""
)


def day_bars(engine: sa.Engine, tier: Tier, symbols: int) -> pd.DataFrame:
    """Return a tier's adjusted day bars of the last 183 days with features, of its first `symbols` symbols.

    Columns: `symbol`, `ts`, `close`, `volume`, `atr`, `trend_regime`; an empty feature is NULL.
    """
    return _frame(engine, _DAY_BARS, tier, symbols)


def coverage_days(engine: sa.Engine, tier: Tier, symbols: int) -> pd.DataFrame:
    """Return the coverage of each session day of the last 120 days, of a tier's first `symbols` symbols.

    Columns: `symbol`, `timeframe`, `session_date`, `status`: a coverage status or `not fetched`.
    """
    import pandas as pd

    days = _frame(engine, _COVERAGE, tier, symbols)
    return days.assign(session_date=pd.to_datetime(days["session_date"]))


def _frame(engine: sa.Engine, statement: sa.TextClause, tier: Tier, symbols: int) -> pd.DataFrame:
    import pandas as pd

    with engine.connect() as connection:
        found = connection.execute(statement, {"tier": tier.value, "symbols": symbols})
        return pd.DataFrame(found.all(), columns=list(found.keys()))
