"""The symbols of a whole market, from the vendor's list of tickers, and which of them can be followed.

Keep out: what following them costs (reports.estimate) and storing them (store.universe).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import asset_class_of, parse_symbol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.series import AssetClass
    from market_data_pipeline.polygon.client import PolygonClient


class MarketList(NamedTuple):
    """What the vendor lists.

    Attributes:
        symbols: those that can be followed, ascending.
        refused: tickers that cannot, ascending: they are not of the form of this market's.
        requests: sent for it.
    """

    symbols: tuple[str, ...]
    refused: tuple[str, ...]
    requests: int


def listed_symbols(
    client: PolygonClient, market: AssetClass, kinds: Sequence[str] = (), exchanges: Sequence[str] = ()
) -> MarketList:
    """Return the active tickers of a market; an empty selection means all.

    Args:
        client: the vendor.
        market: which one.
        kinds: the vendor's types of securities, such as CS and ETF.
        exchanges: codes of primary exchanges, such as XNAS.

    Raises:
        UsageError: nothing is listed, or nothing of one of the types or exchanges.
        PipelineError: as the client's.
    """
    symbols: set[str] = set()
    refused: set[str] = set()
    requests = 0
    found_of: dict[str, int] = dict.fromkeys((*kinds, *exchanges), 0)
    for kind in kinds or (None,):
        for exchange in exchanges or (None,):
            listed, cost = client.tickers(market.market.vendor_name, kind=kind, exchange=exchange)
            requests += cost.requests
            for name in filter(None, (kind, exchange)):
                found_of[name] += len(listed)
            for each in listed:
                (symbols if _is_of(market, each.ticker) else refused).add(each.ticker)
    if nothing := [name for name, count in found_of.items() if not count]:
        raise UsageError(
            f"The vendor lists no {market.market.plural} of {', '.join(nothing)}. Types are written as CS, "
            "ETF, ADRC or PFD, exchanges as XNYS, XNAS, ARCX or BATS."
        )
    if not symbols:
        raise UsageError(f"The vendor lists no {market.market.plural} that can be followed.")
    return MarketList(tuple(sorted(symbols)), tuple(sorted(refused)), requests)


def _is_of(market: AssetClass, ticker: str) -> bool:
    try:
        return parse_symbol(ticker) == ticker and asset_class_of(ticker) is market
    except UsageError:
        return False
