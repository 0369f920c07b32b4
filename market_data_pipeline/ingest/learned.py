"""What the vendor's answers say of a ticker: which security it is, or was last, and who had the ticker before.

Add here: what an answer means. Keep out: when the vendor is asked, and storing (identity).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.identity import Delisted, Described, Identity, Tenure, security_id, tenures_of
from market_data_pipeline.domain.life import Listing

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date, datetime

    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.polygon.securities import Changes


class Learned(NamedTuple):
    """What the vendor says of a ticker: its security, who had the ticker before, and what it does not say.

    `listing` is of a security that is delisted, None of one that is listed.
    """

    identity: Identity
    described: Described
    before: Described | None = None  # had the first ticker until the first tenure starts
    doubt: str | None = None
    listing: Listing | None = None


def learn(
    client: PolygonClient, symbol: str, held: Identity | None, since: date, today: date, priority: int
) -> Learned | None:
    """Return which security a ticker is, with at most three requests; None when the vendor knows of none.

    Args:
        client: the vendor.
        symbol: the ticker.
        held: what is known; None for nothing.
        since: the first day that matters.
        today: changes of later days are left out: what is announced may not happen, and the list shows when it has.
        priority: the place of the requests in the rate limit queue.

    Raises:
        PipelineError: as the client's.
    """
    said = client.ticker_changes(symbol, priority=priority)
    tenures = _until(today, said)
    if (
        symbol not in {each.ticker for each in tenures}
        and held is not None
        and "@" not in held.security
        and (again := client.ticker_changes(held.security, priority=priority)) is not None
    ):  # nobody has the ticker any more: the security that had it last may have another one
        said, tenures = again, _until(today, again)
    described = said.described if said else None
    if symbol not in {each.ticker for each in tenures}:
        tenures = ()  # events that do not name the ticker say nothing of it
    if not tenures and (described is None or described.composite_figi is None):
        described = client.ticker_details(symbol, priority=priority)
    if described is None:
        return None

    def more() -> Described | None:
        return client.ticker_details(symbol, priority=priority) if said is not None else None

    return _from_the_start(client, symbol, replace(described, ticker=symbol), tenures, since, priority, more)


def learn_delisted(
    client: PolygonClient, chosen: Delisted, history: timedelta, now: datetime, priority: int
) -> Learned:
    """Return the history of a security that is delisted, with at most three requests.

    Args:
        client: the vendor.
        chosen: the security.
        history: how much of its history before its end matters.
        now: aware UTC.
        priority: the place of the requests in the rate limit queue.

    Raises:
        UsageError: it is listed under another ticker now.
        PipelineError: as the client's.
    """
    described, symbol = chosen.described, chosen.described.ticker
    figi = described.composite_figi
    said = client.ticker_changes(figi, priority=priority) if figi else None
    tenures = _until(chosen.last_day, said)
    own = [at for at, each in enumerate(tenures) if each.ticker == symbol]
    later = [each for each in tenures_of(said.changes)[own[-1] + 1 :] if each.ticker != symbol] if said and own else []
    heir = client.ticker_details(later[-1].ticker, priority=priority) if later else None
    if heir is not None and not heir.is_other_than(described):
        raise UsageError(
            f"{symbol} is not delisted: the security has traded as {later[-1].ticker} since {later[-1].start}. "
            f"Follow {later[-1].ticker}: its series has the history under {symbol}, and either name reads it."
        )
    tenures = tenures[: own[-1] + 1] if own else ()

    def more() -> Described | None:
        found = client.ticker_details(symbol, chosen.last_day - timedelta(days=1), priority=priority)
        return None if found is None or found.is_other_than(described) else found

    since = chosen.last_day - history
    learned = _from_the_start(client, symbol, described, tenures, since, priority, more)
    *past, last = learned.identity.tenures
    security = learned.identity.security
    if security == symbol:
        security = f"{symbol}@..{chosen.last_day}"  # neither its FIGI nor its first day is known
    identity = replace(learned.identity, security=security, tenures=(*past, last._replace(end=chosen.end)))
    listing = Listing(now, True, False, learned.described.list_date, chosen.delisted_at, described.name)
    return learned._replace(identity=identity, listing=listing)


def _from_the_start(
    client: PolygonClient,
    symbol: str,
    described: Described,
    tenures: tuple[Tenure, ...],
    since: date,
    priority: int,
    more: Callable[[], Described | None],
) -> Learned:
    """Return what is known of a security once it is clear who had its first ticker on the first day that matters.

    `more` requests its details, for the day on which it was listed.
    """
    first = tenures[0] if tenures else Tenure(symbol)
    before, doubt = None, None
    if first.start is None or first.start > since:
        earlier = client.ticker_details(first.ticker, since, priority=priority)
        if earlier is not None and not earlier.is_other_than(described):
            first = first._replace(start=None)
        elif earlier is not None:
            if first.start is None and described.list_date is None:
                described = more() or described
            start = first.start or described.list_date
            if start is not None and start > since:
                before, first = earlier, first._replace(start=start)
            else:
                doubt = (
                    f"{symbol} was another security on {since} ({earlier.name or security_id(earlier, None)}), and the "
                    "vendor does not say since when it is this one: name the day in corporate_actions.yaml."
                )
    identity = Identity(
        security_id(described, first.start), (first, *tenures[1:]), "events" if tenures else "reference"
    )
    return Learned(identity, described, before, doubt)


def _until(today: date, said: Changes | None) -> tuple[Tenure, ...]:
    return tenures_of(each for each in said.changes if each[0] <= today) if said else ()
