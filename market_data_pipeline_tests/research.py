"""A small loaded database for what reads: six symbols, a year of day bars, four weeks of intraday ones, and a past.

On Tuesday MSFT was halted. On Thursday evening the vendor had lost an hour of AAPL, and KO's split was listed only on
Friday morning, when everything was refreshed again; it is then Friday noon.
"""

from __future__ import annotations

from datetime import date, datetime

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Tier, Timeframe, asset_class_of
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.scenario import Halt, Scenario, Split, Withheld
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.staged import StagedMarket
from market_data_pipeline_tests.ingest.conftest import World

EVENING = datetime(2026, 11, 19, 20, 40, tzinfo=NEW_YORK)
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=NEW_YORK)
TIERS = {
    "AAPL": Tier.CRITICAL,
    "MSFT": Tier.CRITICAL,
    "NVDA": Tier.CRITICAL,
    "AMZN": Tier.STANDARD,
    "KO": Tier.STANDARD,
    "X:BTCUSD": Tier.LOW_PRIORITY,
}
SCENARIO = Scenario(
    halts=(
        Halt(
            ticker="MSFT",
            start=datetime(2026, 11, 17, 11, tzinfo=NEW_YORK),
            end=datetime(2026, 11, 17, 14, tzinfo=NEW_YORK),
        ),
    ),
    withheld=(
        Withheld(
            tickers=("AAPL",),
            start=datetime(2026, 11, 19, 14, tzinfo=NEW_YORK),
            end=datetime(2026, 11, 19, 15, tzinfo=NEW_YORK),
            until=datetime(2026, 11, 20, 6, tzinfo=NEW_YORK),
        ),
    ),
    splits=(Split(ticker="KO", day=date(2026, 11, 20), split_to=4, listed=datetime(2026, 11, 20, 8, tzinfo=NEW_YORK)),),
)


def load(database_url: str) -> World:
    """Load a migrated, empty database, and return the world around it, whose vendor has gone; it is noon there."""
    world = World("", database_url, EVENING)
    with running_server(StagedMarket(SyntheticMarket(), SCENARIO, world.clock), world.clock) as base_url:
        world.base_url = base_url
        with world.connect() as connection:
            for symbol, tier in TIERS.items():
                connection.execute(
                    "insert into market_data.symbols values (%s, %s, %s, true, %s)",
                    (symbol, tier, asset_class_of(symbol), world.now),
                )
        world.refresh(*TIERS, timeframes=(Timeframe.D1,), history_days=365, tiers=TIERS)
        intraday = tuple(timeframe for timeframe in Timeframe if timeframe is not Timeframe.D1)
        world.refresh(*TIERS, timeframes=intraday, history_days=28, tiers=TIERS)
        world.now = NOON
        world.refresh(*TIERS, history_days=28, tiers=TIERS)
    return world
