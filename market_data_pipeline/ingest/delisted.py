"""Follow securities that are delisted: which one a ticker means, and what is stored before its history is fetched.

Add here: what a user is told of a ticker that cannot be followed so. Keep out: what the vendor's answers mean
(learned).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.calendar import exchange_date
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import AssetClass, Tier, asset_class_of
from market_data_pipeline.ingest.identity import write_learned
from market_data_pipeline.ingest.learned import Learned, learn_delisted
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.listings import write_listing
from market_data_pipeline.store.securities import (
    read_checks,
    read_identities,
    write_identity,
    write_identity_check,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.identity import Delisted
    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.settings import Settings

_PRIORITY = PRIORITIES[Tier.CRITICAL]


class Choice(NamedTuple):
    """Which of several securities of a ticker is meant; None leaves that open."""

    figi: str | None = None
    delisted_on: date | None = None

    def holds(self, one: Delisted) -> bool:
        """Return whether a security may be meant."""
        return self.figi in (None, one.described.composite_figi) and self.delisted_on in (None, one.last_day)


def look_up(
    client: PolygonClient, settings: Settings, symbols: Sequence[str], choice: Choice
) -> dict[str, tuple[Delisted, Learned]]:
    """Return by ticker the delisted security that it means, and its history, as the vendor knows them.

    Args:
        client: the vendor.
        settings: how much history is held, the plan and the clock.
        symbols: tickers.
        choice: which one, where a ticker was several companies'.

    Raises:
        UsageError: one of them is no stock, is listed, is unknown, may mean several, or ended before the plan's
            history; then none is followed.
        PipelineError: the vendor does not answer.
    """
    now, history = settings.clock(), timedelta(days=settings.history_days)
    limit, found = plan_named(settings.plan).history, {}
    for symbol in symbols:
        if asset_class_of(symbol) is not AssetClass.US_EQUITY:
            raise UsageError(f"{symbol} is not a stock: only stocks can be followed from their past.")
        chosen = _chosen(client, symbol, choice)
        if limit is not None and chosen.end <= (oldest := exchange_date(now) - limit):
            raise UsageError(
                f"{symbol} ({chosen}) ended before the history of the plan {settings.plan}, which begins on {oldest}: "
                "there is no bar of it to have. Nothing was added."
            )
        found[symbol] = chosen, learn_delisted(client, chosen, history, now, _PRIORITY)
    return found


def _chosen(client: PolygonClient, symbol: str, choice: Choice) -> Delisted:
    known = client.delisted(symbol, priority=_PRIORITY)
    meant = [each for each in known if choice.holds(each)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        each = "; ".join(map(str, meant))
        raise UsageError(
            f"{symbol} was the ticker of {len(meant)} securities that are delisted: {each}. Choose one with --figi or "
            "--delisted-on. Nothing was added."
        )
    if known:
        each = "; ".join(map(str, known))
        raise UsageError(f"No delisted security of ticker {symbol} is the one that you chose; there is {each}.")
    listing, _ = client.listing(symbol, priority=_PRIORITY)
    if listing.known and listing.active:
        raise UsageError(f"{symbol} is not delisted: follow it without --delisted. Nothing was added.")
    raise UsageError(
        f"The vendor knows no delisted stock {symbol}; nothing was added. Check the spelling, upper and lower case "
        "included: its last ticker is needed."
    )


def check_is_free(settings: Settings, found: Mapping[str, tuple[Delisted, Learned]]) -> None:
    """Check that no symbol has bars of another security: a series is the history of one.

    Raises:
        UsageError: one has.
    """
    with StoreConnection(settings.database_url, settings.as_of) as connection:
        checks, known = read_checks(connection, found), read_identities(connection, found)
        connection.rollback()
    for symbol, (chosen, learned) in found.items():
        held = known.get(symbol)
        if checks[symbol].has_bars and held is not None and held.security != learned.identity.security:
            raise UsageError(
                f"{symbol} stands for another security here ({held.security}), whose bars are held; the series of "
                f"{symbol} cannot also be that of {chosen}. Nothing was added."
            )


def write_securities(settings: Settings, learned: Collection[Learned]) -> None:
    """Store which securities are about to be followed."""
    now = settings.clock()
    with StoreConnection(settings.database_url, settings.as_of) as connection:
        for each in learned:
            write_learned(connection, each, now)
            write_identity(connection, each.identity, now)
        connection.commit()


def write_ends(settings: Settings, learned: Mapping[str, Learned]) -> None:
    """Store when the followed securities were delisted, and that the vendor was asked about them."""
    now = settings.clock()
    with StoreConnection(settings.database_url, settings.as_of) as connection:
        for symbol, each in learned.items():
            if each.listing is not None:
                write_listing(connection, symbol, each.listing)
            since = exchange_date(now) - timedelta(days=settings.history_days)
            write_identity_check(connection, symbol, since, now)
        connection.commit()
