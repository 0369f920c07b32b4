"""What the pictures of a tier show, read from the database: its newest day bars with features, and its coverage.

Add here: what is read for a picture. Keep out: drawing (pictures) and where a picture is shown (quality).
"""

# ruff: noqa: S608 - the statements are put together of constants

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Engine

    from market_data_pipeline.domain.series import Tier

_DRAWN: Final = """
with drawn as (
    select s.symbol, s.asset_class from market_data.symbols as s
    where s.tier = :tier and s.active order by s.symbol limit :symbols
)"""
# Half a year: enough for a trend, and a day is still wider than a pixel.
_PRICES: Final = (
    _DRAWN
    + """
select b.symbol, b.ts, b.close, b.volume, f.atr, f.trend_regime
from drawn join market_data.bars_adjusted as b on b.symbol = drawn.symbol
join market_data.features as f on f.symbol = b.symbol and f.timeframe = b.timeframe and f.ts = b.ts
where b.timeframe = '1d' and f.timeframe = '1d' and b.ts >= market_data.clock() - interval '183 days'
order by b.symbol, b.ts"""
)
# From the first day on that is covered at all: what lies before was never asked for.
_COVERAGE: Final = (
    _DRAWN
    + """
select k.symbol, k.timeframe, d.session_date, coalesce(c.status, 'not asked') as status
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


def prices(engine: Engine, tier: Tier) -> str | None:
    """Return the picture of a tier's prices, volumes and features as Markdown; None when it holds no day bars."""
    from market_data_pipeline.orchestration.pictures import price_and_volume

    days = _frame(engine, _PRICES, tier)
    return None if days.empty else price_and_volume(days)


def coverage(engine: Engine, tier: Tier) -> str | None:
    """Return the picture of what is held of each session day as Markdown; None when nothing was ever asked for."""
    import pandas as pd

    from market_data_pipeline.orchestration.pictures import coverage_strips

    days = _frame(engine, _COVERAGE, tier)
    return None if days.empty else coverage_strips(days.assign(session_date=pd.to_datetime(days["session_date"])))


def _frame(engine: Engine, statement: str, tier: Tier) -> pd.DataFrame:
    import pandas as pd
    import sqlalchemy as sa

    from market_data_pipeline.orchestration.pictures import SYMBOLS_DRAWN

    values: dict[str, Any] = {"tier": tier.value, "symbols": SYMBOLS_DRAWN}
    with engine.connect() as connection:
        found = connection.execute(sa.text(statement), values)
        return pd.DataFrame(found.all(), columns=list(found.keys()))
