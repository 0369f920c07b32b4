"""A data bundle for Zipline: day bars as traded, with their splits, from the lake or the database.

In `~/.zipline/extension.py`, with this file beside it or on the Python path:

    from zipline.data.bundles import register
    from zipline_bundle import bundle

    register("market-data", bundle(["AAPL", "NVDA"], start="2024-01-02"), calendar_name="XNYS")

Then `zipline ingest -b market-data`. docs/bridges.md says in which environment.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from market_data_pipeline import read_bars

NEW_YORK = "America/New_York"
COLUMNS = ["open", "high", "low", "close", "volume"]


def bundle(
    symbols: Sequence[str], start: str, end: str | None = None, source: str = "lake", exchange: str = "XNYS"
) -> Callable[..., None]:
    """Return the function that fills the bundle with the day bars of `symbols` in [start, end).

    A session without a bar repeats the close before it, with a volume of 0: Zipline needs a row for each.
    """

    def ingest(
        environ: Any, asset_db_writer: Any, minute_bar_writer: Any, daily_bar_writer: Any, adjustment_writer: Any,
        calendar: Any, start_session: Any, end_session: Any, cache: Any, show_progress: bool, output_dir: str,
    ) -> None:  # fmt: skip
        chosen = {"start": start, "end": end, "columns": COLUMNS, "source": source}
        traded = read_bars(list(symbols), "1d", adjusted=False, **chosen)
        adjusted = read_bars(list(symbols), "1d", **chosen)
        assets: list[dict[str, Any]] = []
        splits: list[dict[str, Any]] = []

        def frames() -> Iterator[tuple[int, pd.DataFrame]]:
            for sid, symbol in enumerate(symbols):
                of_symbol = (traded["symbol"] == symbol).to_numpy()
                bars = by_session(traded[of_symbol])
                factor = by_session(adjusted[of_symbol])["close"] / bars["close"]
                splits.extend({"sid": sid, **split} for split in splits_of(factor))
                sessions = calendar.sessions_in_range(bars.index[0], bars.index[-1])
                bars = bars.reindex(sessions)
                bars["volume"] = bars["volume"].fillna(0).round()
                bars["close"] = bars["close"].ffill()
                bars = bars.apply(lambda column, close=bars["close"]: column.fillna(close))
                assets.append(
                    {
                        "symbol": symbol,
                        "asset_name": symbol,
                        "start_date": sessions[0],
                        "end_date": sessions[-1],
                        "first_traded": sessions[0],
                        "auto_close_date": sessions[-1] + pd.Timedelta(days=1),
                        "exchange": exchange,
                    }
                )
                yield sid, bars

        daily_bar_writer.write(frames(), show_progress=show_progress)
        asset_db_writer.write(
            equities=pd.DataFrame(assets),
            exchanges=pd.DataFrame([{"exchange": exchange, "canonical_name": exchange, "country_code": "US"}]),
        )
        adjustment_writer.write(splits=pd.DataFrame(splits, columns=["sid", "effective_date", "ratio"]))

    return ingest


def by_session(bars: pd.DataFrame) -> pd.DataFrame:
    """Return day bars by the date of their session, as Zipline labels them."""
    sessions = bars.index.tz_convert(NEW_YORK).normalize().tz_localize(None)
    return bars[COLUMNS].set_axis(sessions)


def splits_of(factor: pd.Series) -> list[dict[str, Any]]:
    """Return where the factor from traded to adjusted prices changes, and by how much: 0.25 for 4 new shares."""
    ratio = (factor.shift(1) / factor).dropna().round(9)
    return [{"effective_date": day, "ratio": value} for day, value in ratio[ratio != 1].items()]
