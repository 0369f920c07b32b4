"""Write bars into a catalog of NautilusTrader, from the lake or the database.

    python nautilus_catalog.py catalog AAPL,NVDA 5m 2026-01-01

NautilusTrader labels a bar by its end; ours are labelled by their start. docs/bridges.md says in which environment.
"""

import sys
from collections.abc import Sequence

import pandas as pd
from nautilus_trader.model.currencies import USD
from nautilus_trader.model.data import BarType
from nautilus_trader.model.identifiers import InstrumentId, Symbol, Venue
from nautilus_trader.model.instruments import Equity
from nautilus_trader.model.objects import Price, Quantity
from nautilus_trader.persistence.catalog import ParquetDataCatalog
from nautilus_trader.persistence.wranglers import BarDataWrangler

from market_data_pipeline import read_bars

STEPS = {"5m": "5-MINUTE", "15m": "15-MINUTE", "1h": "1-HOUR", "4h": "4-HOUR", "1d": "1-DAY"}
COLUMNS = ["open", "high", "low", "close", "volume"]


def equity(symbol: str, venue: str = "XNAS") -> Equity:
    """Return a stock whose prices have four decimals: adjusted ones need more than cents."""
    return Equity(
        instrument_id=InstrumentId(Symbol(symbol), Venue(venue)),
        raw_symbol=Symbol(symbol),
        currency=USD,
        price_precision=4,
        price_increment=Price.from_str("0.0001"),
        lot_size=Quantity.from_int(1),
        ts_event=0,
        ts_init=0,
    )


def write(
    folder: str, symbols: Sequence[str], timeframe: str, start: str, end: str | None = None, source: str = "lake"
) -> int:
    """Write the split-adjusted bars of symbols that start in [start, end), and return their number."""
    catalog = ParquetDataCatalog(folder)
    written = 0
    for symbol in symbols:
        bars = read_bars(symbol, timeframe, start, end, columns=COLUMNS, source=source)
        instrument = equity(symbol)
        bar_type = BarType.from_str(f"{instrument.id}-{STEPS[timeframe]}-LAST-EXTERNAL")
        ends = bars.set_axis(bars.index + pd.Timedelta(timeframe.replace("m", "min")))
        catalog.write_data([instrument])
        catalog.write_data(BarDataWrangler(bar_type, instrument).process(ends))
        written += len(bars)
    return written


if __name__ == "__main__":
    target, chosen, timeframe, *interval = sys.argv[1:]
    print(f"{write(target, chosen.split(','), timeframe, *interval)} bars written")
