"""The markets whose instruments are followed, and what is true of each: the one place that tells them apart.

A ticker's prefix says its market. What a market has of its own (volume, splits, the exchange's holidays) and what a
year of it is stand here, its hours in `domain.calendar`. Code asks for the property that it needs, not for the market.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class AssetClass(StrEnum):
    """A market, which decides the calendar of a symbol."""

    US_EQUITY = "us_equity"
    CRYPTO = "crypto"
    FOREX = "forex"
    INDEX = "index"

    @property
    def market(self) -> Market:
        """What is true of this market."""
        return MARKETS[self]

    @property
    def closes_with(self) -> AssetClass:
        """The market whose announced closings are this one's."""
        return AssetClass.US_EQUITY if self.market.keeps_exchange_days else self


@dataclass(frozen=True, slots=True)
class Market:
    """What is true of all instruments of a market.

    Attributes:
        prefix: of its tickers.
        example: one of them.
        plural: what its instruments are called.
        vendor_name: as the vendor's reference data call it.
        locale: where, as the vendor's reference data say.
        has_volume: its bars have a volume; otherwise they have neither volume nor VWAP nor a number of trades.
        has_corporate_actions: it has splits and dividends, and a whole-market answer with all day bars.
        keeps_exchange_days: it rests on the holidays of the New York Stock Exchange, announced ones too.
        rests_on_weekends: no bars come from Friday evening to Sunday evening or Monday.
        day_bars_a_year: how many day bars make a year.
        minutes_a_year: how many minutes of intraday bars make a year.
    """

    prefix: str
    example: str
    plural: str
    vendor_name: str
    locale: str
    has_volume: bool
    has_corporate_actions: bool
    keeps_exchange_days: bool
    rests_on_weekends: bool
    day_bars_a_year: int
    minutes_a_year: int

    @property
    def subscription(self) -> str | None:
        """What the vendor sells apart from US stocks, so that a key may lack it; None for US stocks."""
        return self.plural if self.prefix else None


MARKETS: Final[Mapping[AssetClass, Market]] = MappingProxyType(
    {
        AssetClass.US_EQUITY: Market(
            prefix="", example="AAPL", plural="US stocks", vendor_name="stocks", locale="us",
            has_volume=True, has_corporate_actions=True, keeps_exchange_days=True, rests_on_weekends=True,
            day_bars_a_year=252, minutes_a_year=252 * 960,  # 04:00 to 20:00 New York
        ),
        AssetClass.CRYPTO: Market(
            prefix="X:", example="X:BTCUSD", plural="crypto pairs", vendor_name="crypto", locale="global",
            has_volume=True, has_corporate_actions=False, keeps_exchange_days=False, rests_on_weekends=False,
            day_bars_a_year=365, minutes_a_year=365 * 1440,
        ),
        # 52 weeks of 120 hours. The vendor's days are UTC's, so a week has six day bars, that of Sunday a short one.
        AssetClass.FOREX: Market(
            prefix="C:", example="C:EURUSD", plural="currency pairs", vendor_name="fx", locale="global",
            has_volume=True, has_corporate_actions=False, keeps_exchange_days=False, rests_on_weekends=True,
            day_bars_a_year=52 * 6, minutes_a_year=52 * 120 * 60,
        ),
        AssetClass.INDEX: Market(
            prefix="I:", example="I:SPX", plural="indices", vendor_name="indices", locale="us",
            has_volume=False, has_corporate_actions=False, keeps_exchange_days=True, rests_on_weekends=True,
            day_bars_a_year=252, minutes_a_year=252 * 390,  # 09:30 to 16:00 New York, when indices are computed
        ),
    }
)  # fmt: skip

_BY_PREFIX: Final = {market.prefix: asset_class for asset_class, market in MARKETS.items()}
FOLLOWED: Final = ", ".join(f"{market.plural} ({market.example})" for market in MARKETS.values())

_PREFIX: Final = re.compile(r"[A-Za-z]{1,2}:")
# A root, a month's letter and a year; roots that are traded much, because stocks of load tests look alike.
_ROOTS: Final = (
    "ES|NQ|YM|RTY|MES|MNQ|MYM|M2K|CL|NG|RB|HO|GC|SI|HG|PL|ZB|ZN|ZF|ZT|ZQ|SR3|ZC|ZS|ZW|HE|LE|"
    "6A|6B|6C|6E|6J|6S|VX|BTC|ETH"
)
_FUTURE: Final = re.compile(rf"(?:{_ROOTS})[FGHJKMNQUVXZ]\d{{1,2}}|[A-Z0-9]{{1,4}}=F")
_OPTION: Final = re.compile(r"[A-Z]{1,6}\d{6}[CP]\d{8}")

# The codes that people type together without the prefix (ISO 4217, and what the vendor has of metals and coins).
_CURRENCIES: Final = re.compile(
    "AED|ARS|AUD|BRL|CAD|CHF|CLP|CNH|CNY|COP|CZK|DKK|EUR|GBP|HKD|HUF|IDR|ILS|INR|JPY|KRW|MXN|MYR|NOK|NZD|PHP|PLN|RUB|"
    "SAR|SEK|SGD|THB|TRY|TWD|USD|XAG|XAU|ZAR"
)
_COINS: Final = re.compile("ADA|AVAX|BCH|BTC|DOGE|DOT|ETH|LINK|LTC|SOL|XLM|XRP")
_INDICES: Final = re.compile("COMP|DJI|IXIC|NDX|RUT|SPX|VIX")


def asset_class_of(symbol: str) -> AssetClass:
    """Return the asset class that a ticker's prefix implies: that of US stocks, which have none, for unknown ones."""
    return _BY_PREFIX.get(symbol[:2] if symbol[1:2] == ":" else "", AssetClass.US_EQUITY)


def why_not_followed(symbol: str) -> str | None:
    """Return a sentence why an instrument is none that can be followed; None when it may be one."""
    if (found := _PREFIX.match(symbol)) and found[0] not in _BY_PREFIX:
        kind = {"O:": "an option", "F:": "a futures contract"}.get(found[0].upper())
        if kind is None and found[0].upper() in _BY_PREFIX:
            return None
        what = f"is {kind}, and those are" if kind else f"has the prefix {found[0]!r}, whose instruments are"
    elif _OPTION.fullmatch(symbol):
        what = "is an option, and those are"
    elif _FUTURE.fullmatch(symbol):
        what = "is a futures contract, and those are"
    else:
        return None
    return f"{symbol!r} {what} not followed; followed are {FOLLOWED}."


def meant_by(text: str) -> str | None:
    """Return the ticker that someone probably means who typed one of another market without its prefix."""
    letters = re.sub(r"=X$|[./ -]", "", text.upper())
    if (pair := letters.partition(":")) and pair[1]:
        known = f"{pair[0]}:" in _BY_PREFIX and text != letters
        return letters if known else None
    for length in (3, 4):
        base, quote = letters[:length], letters[length:]
        if base == quote or not _CURRENCIES.fullmatch(quote):
            continue
        if _CURRENCIES.fullmatch(base):
            return f"C:{letters}"
        if _COINS.fullmatch(base):
            return f"X:{letters}"
    return index_called(letters[1:]) if letters[:1] in ("^", "$") else None


def index_called(symbol: str) -> str | None:
    """Return the index that someone probably means by a stock's ticker that the vendor does not know; None else."""
    return f"I:{symbol}" if _INDICES.fullmatch(symbol) else None
