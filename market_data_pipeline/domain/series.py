"""A series is one symbol at one timeframe: tickers, tiers, timeframes and their names; markets are `domain.markets`."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Final, NamedTuple, Self

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.markets import FOLLOWED, AssetClass, asset_class_of, meant_by, why_not_followed

__all__ = [
    "BASE_TIMEFRAMES",
    "AssetClass",
    "Series",
    "Tier",
    "Timeframe",
    "asset_class_of",
    "canonical_symbol",
    "parse_symbol",
    "parse_timeframe",
]


class Tier(StrEnum):
    """How fresh a symbol must be; `domain.objectives` defines what each tier promises."""

    CRITICAL = "critical"
    STANDARD = "standard"
    LOW_PRIORITY = "low_priority"


class Timeframe(StrEnum):
    """A bar's length, in the order of the `timeframe` partitions."""

    M5 = "5m"
    M15 = "15m"
    H1 = "1h"
    H4 = "4h"
    D1 = "1d"

    @property
    def span(self) -> timedelta:
        """Nominal length; a day bar spans one local calendar day, which is 23 or 25 hours twice a year."""
        return _SPANS[self]

    @property
    def minutes(self) -> int:
        """Nominal length in minutes."""
        return int(self.span.total_seconds()) // 60

    @property
    def base(self) -> Timeframe:
        """The fetched timeframe that this one is resampled from: `5m` for intraday bars, `1d` for itself."""
        return Timeframe.D1 if self is Timeframe.D1 else Timeframe.M5

    @property
    def is_base(self) -> bool:
        """True for the timeframes that are fetched rather than resampled."""
        return self.base is self


_SPANS: Final = {
    Timeframe.M5: timedelta(minutes=5),
    Timeframe.M15: timedelta(minutes=15),
    Timeframe.H1: timedelta(hours=1),
    Timeframe.H4: timedelta(hours=4),
    Timeframe.D1: timedelta(days=1),
}

BASE_TIMEFRAMES: Final = (Timeframe.M5, Timeframe.D1)

# Tickers are case-sensitive (KIMpL is a preferred share of KIM) and may carry a dot (BRK.B). At most 32
# characters: the vendor's longest spot tickers have fewer, and option tickers are not bars of this service.
_TICKER = re.compile(r"(?:[XCI]:)?[A-Z0-9][A-Za-z0-9.\-]{0,31}")


def canonical_symbol(text: str) -> str:
    """Return a symbol as the vendor writes it, whether or not it exists: BRK.B for BRK/B, AAPL for `AAPL/` or ` AAPL`.

    Settings, files, commands, URLs and Dagster all mean the same by the same text.
    """
    return text.strip().strip("/").replace("/", ".")


def parse_symbol(text: str) -> str:
    """Return the canonical symbol of `text` if it is a well-formed ticker.

    Raises:
        UsageError: it is not, or is an instrument of a market that is not followed, or that of another market without
            its prefix; the message shows the text and what to write.
    """
    symbol = canonical_symbol(text)
    if (why := why_not_followed(symbol)) is not None:
        raise UsageError(why)
    if (meant := meant_by(symbol)) is not None:
        raise UsageError(f"{text!r} is not a ticker; did you mean {meant}? Followed are {FOLLOWED}.")
    if not _TICKER.fullmatch(symbol):
        raise UsageError(
            f"{text!r} is not a ticker; write it as the vendor does, for example AAPL, BRK.B, X:BTCUSD, C:EURUSD or "
            "I:SPX."
        )
    return symbol


def parse_timeframe(text: str) -> Timeframe:
    """Return the timeframe called `text`.

    Raises:
        UsageError: there is none; the message lists the known ones.
    """
    try:
        return Timeframe(text)
    except ValueError:
        known = ", ".join(Timeframe)
        raise UsageError(f"Unknown timeframe {text!r}; known are {known}.") from None


class Series(NamedTuple):
    """One symbol at one timeframe: the unit of storage, freshness and the audit log."""

    symbol: str
    timeframe: Timeframe

    @property
    def partition_key(self) -> str:
        """Dagster's key of this series, `AAPL|5m`: its dimensions by name in alphabetical order."""
        return f"{self.symbol}|{self.timeframe}"

    @classmethod
    def from_partition_key(cls, key: str) -> Self:
        """Return the series of a partition key.

        Raises:
            UsageError: the key is not `SYMBOL|TIMEFRAME`.
        """
        symbol, separator, timeframe = key.rpartition("|")
        if not separator:
            raise UsageError(f"{key!r} is not a partition key; write SYMBOL|TIMEFRAME, for example AAPL|5m.")
        return cls(parse_symbol(symbol), parse_timeframe(timeframe))
