"""Which market a ticker is of, and what is said of those that cannot be followed."""

from __future__ import annotations

import pytest

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.markets import FOLLOWED, MARKETS, AssetClass
from market_data_pipeline.domain.series import asset_class_of, parse_symbol


def test_every_market_has_a_prefix_of_its_own_and_an_example_that_is_of_it() -> None:
    assert len({market.prefix for market in MARKETS.values()}) == len(MARKETS) == len(AssetClass)
    for asset_class, market in MARKETS.items():
        assert asset_class_of(parse_symbol(market.example)) is asset_class
        assert market.example in FOLLOWED


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("EURUSD", "C:EURUSD"),
        ("EUR/USD", "C:EURUSD"),
        ("gbpjpy", "C:GBPJPY"),
        ("EURUSD=X", "C:EURUSD"),
        ("c:eurusd", "C:EURUSD"),
        ("BTCUSD", "X:BTCUSD"),
        ("DOGE-USD", "X:DOGEUSD"),
        ("^SPX", "I:SPX"),
    ],
)
def test_a_ticker_of_another_market_without_its_prefix_is_asked_about(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {meant}\\?"):
        parse_symbol(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("O:SPY251219C00650000", "is an option"),
        ("SPY251219C00650000", "is an option"),
        ("F:ESZ5", "is a futures contract"),
        ("ESZ25", "is a futures contract"),
        ("ES=F", "is a futures contract"),
        ("O:SPX", "is an option"),
        ("Q:SPX", "has the prefix 'Q:'"),
    ],
)
def test_what_is_not_followed_is_refused_with_what_is(text: str, kind: str) -> None:
    with pytest.raises(UsageError, match="not followed") as refused:
        parse_symbol(text)
    assert kind in str(refused.value)
    assert str(refused.value).endswith(f"followed are {FOLLOWED}.")


@pytest.mark.parametrize("text", ["AAPL", "BRK.B", "KIMpL", "X:BTCUSD", "C:EURUSD", "I:SPX", "SYN0001", "SPX", "USD"])
def test_ordinary_tickers_are_none_of_these(text: str) -> None:
    assert parse_symbol(text) == text
