"""Securities and their tickers in PostgreSQL, with what was known when.

Relations: `securities`, `symbol_history`, `identity_checks` and `identity_news`. A row is never changed but for
its end: what replaces it is another row.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.identity import Described, Identity, Tenure
from market_data_pipeline.domain.series import AssetClass

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import date, datetime

    from market_data_pipeline.store.copy import StoreConnection


class IdentityCheck(NamedTuple):
    """When the vendor was asked about a symbol.

    Attributes:
        has_bars: whether any of its series has a bar.
        asked_at: when it was asked, aware UTC; None for never, as the following two.
        since: from which day on.
        error: why it is not known; None when it is.
        again: whether it is to be asked again.
        first_ts: start of the first bar of any of its series, aware UTC; None without one.
        pinned: the delisted security that the symbol stands for, whoever has the ticker; None for most.
    """

    has_bars: bool
    asked_at: datetime | None = None
    since: date | None = None
    error: str | None = None
    again: bool = False
    first_ts: datetime | None = None
    pinned: str | None = None


def read_checks(connection: StoreConnection, symbols: Collection[str]) -> dict[str, IdentityCheck]:
    """Return when the vendor was last asked about each of `symbols`."""
    rows = connection.rows(
        """
        select asked.symbol, c.asked_at, c.since, c.error, coalesce(c.again, false) as again, m.security as pinned,
            held.first_ts is not null as has_bars, held.first_ts
        from unnest(%(symbols)s::text[]) as asked (symbol)
        left join market_data.symbols as m on m.symbol = asked.symbol
        left join market_data.identity_checks as c on c.symbol = asked.symbol
        cross join lateral (
            select min(s.first_ts) as first_ts from market_data.series_state as s where s.symbol = asked.symbol
        ) as held
        """,
        {"symbols": list(symbols)},
    )
    return {row.pop("symbol"): IdentityCheck(**row) for row in rows}


def read_identities(
    connection: StoreConnection, symbols: Collection[str], known_at: datetime | None = None
) -> dict[str, Identity]:
    """Return the security that each of `symbols` stands for: the one that has the ticker, or had it last.

    Args:
        connection: the transaction.
        symbols: tickers. One of which nothing is known is missing in the answer.
        known_at: return what was known at this instant, aware; None: what is known.
    """
    rows = connection.rows(
        """
        with known as (
            select * from market_data.symbol_history_as_of(coalesce(%(known_at)s::timestamptz, 'infinity'))
        ),

        meant as (
            select distinct on (known.symbol) known.symbol, known.security
            from known
            left join market_data.symbols as s on s.symbol = known.symbol
            where known.symbol = any(%(symbols)s::text[]) and known.security = coalesce(s.security, known.security)
            order by known.symbol, coalesce(known.valid_until, 'infinity') desc, known.valid_from desc nulls last
        )

        select meant.symbol as asked, known.security, known.symbol, known.valid_from, known.valid_until, known.source,
            known.reason
        from meant
        inner join known on known.security = meant.security
        order by meant.symbol, known.valid_from nulls first
        """,
        {"symbols": list(symbols), "known_at": known_at},
    )
    found: dict[str, Identity] = {}
    for row in rows:
        tenure = Tenure(row["symbol"], row["valid_from"], row["valid_until"])
        before = found.get(row["asked"])
        tenures = (*before.tenures, tenure) if before else (tenure,)
        found[row["asked"]] = Identity(row["security"], tenures, row["source"], row["reason"])
    return found


# The tracked symbol whose security had a ticker at any time, the last one that had, by what was known at an instant.
FOLLOWED_AS: Final = """
    with known as (
        select * from market_data.symbol_history_as_of(coalesce(%(known_at)s::timestamptz, 'infinity'))
    ),

    tracked as (
        select distinct on (known.symbol) known.symbol, known.security, s.active
        from known
        inner join market_data.symbols as s on s.symbol = known.symbol
        where known.security = coalesce(s.security, known.security)
        order by known.symbol, coalesce(known.valid_until, 'infinity') desc, known.valid_from desc nulls last
    )

    select distinct on (known.symbol) known.symbol as ticker, tracked.symbol
    from known
    inner join tracked on tracked.security = known.security
    where known.symbol = any(%(tickers)s::text[])
    order by
        known.symbol, coalesce(known.valid_until, 'infinity') desc, known.valid_from desc nulls last,
        tracked.active desc, tracked.symbol
"""


def followed_as(
    connection: StoreConnection, tickers: Collection[str], known_at: datetime | None = None
) -> dict[str, str]:
    """Return by ticker the tracked symbol whose security had it at any time, the last one that had.

    Args:
        connection: the transaction.
        tickers: such as those of no tracked symbol. One that no tracked security had is missing in the answer.
        known_at: go by what was known at this instant, aware; None: by what is known.
    """
    rows = connection.rows(FOLLOWED_AS, {"tickers": list(tickers), "known_at": known_at})
    return {row["ticker"]: row["symbol"] for row in rows}


def former_tickers(connection: StoreConnection) -> dict[str, str]:
    """Return by ticker, of all known ones that are not tracked, the symbol that `followed_as` returns."""
    rows = connection.rows(
        """
        select distinct symbol from market_data.symbol_history
        where superseded_at is null and symbol not in (select s.symbol from market_data.symbols as s)
        """
    )
    return followed_as(connection, [row["symbol"] for row in rows])


def write_identity(connection: StoreConnection, identity: Identity, now: datetime) -> None:
    """Store which tickers a security had; the caller commits. Another one no longer has them in these times."""
    known = connection.rows(
        """
        select id, security, symbol, valid_from, valid_until, source, reason from market_data.symbol_history
        where
            superseded_at is null and (security = %(security)s or symbol = any(%(symbols)s::text[]))
        order by id
        """,
        {"security": identity.security, "symbols": [each.ticker for each in identity.tenures]},
    )
    wanted = [(identity.security, *each, identity.source, identity.reason) for each in identity.tenures]
    closed: list[int] = []
    for row in known:
        held = Tenure(row["symbol"], row["valid_from"], row["valid_until"])
        entry = (row["security"], *held, row["source"], row["reason"])
        if row["security"] == identity.security:
            if entry in wanted:
                wanted.remove(entry)
            else:
                closed.append(row["id"])
        elif (rest := _without(held, identity.tenures)) != [held]:
            closed.append(row["id"])
            wanted += [(row["security"], *part, row["source"], row["reason"]) for part in rest]
    if closed:
        connection.execute(
            "update market_data.symbol_history set superseded_at = %(now)s where id = any(%(ids)s::bigint[])",
            {"now": now, "ids": closed},
        )
    _insert(connection, wanted, now)


def _without(held: Tenure, others: Iterable[Tenure]) -> list[Tenure]:
    """Return what is left of a tenure of one security where another one had the ticker."""
    left = [held]
    for other in others:
        if other.ticker != held.ticker:
            continue
        cut: list[Tenure] = []
        for part in left:
            before = part._replace(end=_earlier(part.end, other.start)) if other.start is not None else None
            after = part._replace(start=_later(part.start, other.end)) if other.end is not None else None
            cut += [each for each in (before, after) if each is not None and _is_real(each)]
        left = cut
    return left


def _earlier(one: date | None, other: date) -> date:
    return other if one is None else min(one, other)


def _later(one: date | None, other: date) -> date:
    return other if one is None else max(one, other)


def _is_real(tenure: Tenure) -> bool:
    return tenure.start is None or tenure.end is None or tenure.start < tenure.end


def _insert(connection: StoreConnection, rows: Sequence[tuple[object, ...]], now: datetime) -> None:
    if not rows:
        return
    names = ("securities", "symbols", "starts", "ends", "sources", "reasons")
    connection.execute(
        """
        insert into market_data.symbol_history (
            security, symbol, valid_from, valid_until, source, reason, first_seen_at
        )
        select row.security, row.symbol, row.valid_from, row.valid_until, row.source, row.reason, %(now)s
        from unnest(
            %(securities)s::text[], %(symbols)s::text[], %(starts)s::date[], %(ends)s::date[], %(sources)s::text[],
            %(reasons)s::text[]
        ) as row (security, symbol, valid_from, valid_until, source, reason)
        """,
        {**{name: [row[at] for row in rows] for at, name in enumerate(names)}, "now": now},
    )


def read_described(connection: StoreConnection, securities: Collection[str]) -> dict[str, Described]:
    """Return what the vendor says of each of `securities`, by what identifies it."""
    rows = connection.rows(
        """
        select security, composite_figi, cik, name, type, list_date from market_data.securities
        where security = any(%(securities)s::text[]) and superseded_at is null
        """,
        {"securities": list(securities)},
    )
    return {security: Described(ticker=security, **row) for row in rows if (security := row.pop("security"))}


def write_described(connection: StoreConnection, security: str, described: Described, now: datetime) -> None:
    """Store what the vendor says of a security, where that is news; the caller commits. Silence takes nothing back."""
    connection.execute(
        """
        with known as (
            select * from market_data.securities where security = %(security)s and superseded_at is null
        ),

        said as (
            select
                coalesce(%(composite_figi)s, known.composite_figi) as composite_figi,
                coalesce(%(cik)s, known.cik) as cik,
                coalesce(%(name)s, known.name) as name,
                coalesce(%(type)s, known.type) as type,
                coalesce(%(list_date)s::date, known.list_date) as list_date
            from (select) as nothing
            left join known on true
        ),

        news as (
            select said.* from said
            where (said.*) is distinct from (
                select row(known.composite_figi, known.cik, known.name, known.type, known.list_date) from known
            )
        ),

        past as (
            update market_data.securities as held set superseded_at = %(now)s
            from news
            where held.security = %(security)s and held.superseded_at is null
        )

        insert into market_data.securities (
            security, composite_figi, cik, name, type, list_date, first_seen_at
        )
        select %(security)s, news.composite_figi, news.cik, news.name, news.type, news.list_date, %(now)s from news
        on conflict do nothing
        """,
        {"security": security, "now": now, **asdict(described)},
    )


def write_identity_check(
    connection: StoreConnection, symbol: str, since: date, now: datetime, error: str | None = None
) -> None:
    """Record that the vendor was asked about a symbol; the caller commits."""
    connection.execute(
        """
        insert into market_data.identity_checks (symbol, asked_at, since, error)
        select %(symbol)s, %(now)s, %(since)s, %(error)s
        where exists (select from market_data.symbols where symbol = %(symbol)s)
        on conflict (symbol) do update set
            asked_at = excluded.asked_at, since = excluded.since, error = excluded.error, again = false
        """,
        {"symbol": symbol, "now": now, "since": since, "error": error},
    )


def ask_again(connection: StoreConnection, symbols: Collection[str], before: datetime) -> bool:
    """Have the next refresh ask the vendor again about symbols it was asked about `before`; the caller commits.

    Returns:
        Whether there are any.
    """
    rows = connection.rows(
        """
        update market_data.identity_checks set again = true
        where symbol = any(%(symbols)s::text[]) and asked_at <= %(before)s and error is null
        returning symbol
        """,
        {"symbols": list(symbols), "before": before},
    )
    return bool(rows)


class LookedFor(NamedTuple):
    """A followed symbol whose ticker is looked for in the vendor's list."""

    symbol: str
    ticker: str
    security: str


def longest_unlisted(connection: StoreConnection) -> list[LookedFor]:
    """Return the followed US stocks of which bars are expected, the one looked for longest ago first."""
    rows = connection.rows(
        """
        select c.symbol from market_data.identity_checks as c
        inner join market_data.symbols as s on s.symbol = c.symbol and s.active and s.asset_class = 'us_equity'
        left join market_data.series_state as t on t.symbol = c.symbol and t.timeframe = '5m'
        where c.error is null and s.security is null and coalesce(t.life, 'trading') in ('trading', 'silent')
        order by c.listed_at nulls first, c.symbol
        """,
    )
    known = read_identities(connection, [row["symbol"] for row in rows])
    return [
        LookedFor(row["symbol"], known[row["symbol"]].ticker, known[row["symbol"]].security)
        for row in rows
        if row["symbol"] in known
    ]


def write_looked_for(connection: StoreConnection, symbols: Collection[str], now: datetime) -> None:
    """Record that the symbols were looked for in the vendor's list; the caller commits."""
    connection.execute(
        "update market_data.identity_checks set listed_at = %(now)s where symbol = any(%(symbols)s::text[])",
        {"symbols": list(symbols), "now": now},
    )


def note_listings(connection: StoreConnection, symbols: Collection[str], now: datetime) -> None:
    """Record, once, which of the symbols began to trade while they were followed, to be alerted; the caller commits.

    The first bar starts after the symbol was followed, and days before it were looked at and had none.
    """
    connection.execute(
        """
        insert into market_data.identity_news (symbol, change, seen_at)
        select
            began.symbol,
            format('has been listed since %%s: its series begin there', began.day),
            %(now)s
        from (
            select s.symbol, min(t.first_ts at time zone %(zone)s)::date as day
            from market_data.symbols as s
            inner join market_data.series_state as t on t.symbol = s.symbol
            where s.symbol = any(%(symbols)s::text[]) and s.active and s.security is null
            group by s.symbol, s.added_at
            having min(t.first_ts) > s.added_at
        ) as began
        where
            exists (
                select from market_data.coverage as c
                where c.symbol = began.symbol and c.session_date < began.day and c.rows = 0
            )
            and not exists (
                select from market_data.identity_news as n
                where n.symbol = began.symbol and n.change like 'has been listed since %%'
            )
        """,
        {"symbols": list(symbols), "now": now, "zone": str(calendar_for(AssetClass.US_EQUITY).tz)},
    )


def same_securities(connection: StoreConnection) -> list[tuple[str, str, str]]:
    """Return the followed symbols that stand for one security, with it: of each pair, the later one first."""
    rows = connection.rows(
        """
        with held as (
            select distinct on (h.symbol) h.symbol, h.security, s.added_at
            from market_data.symbols as s
            inner join market_data.symbol_history as h on h.symbol = s.symbol and h.superseded_at is null
            where s.active and h.security = coalesce(s.security, h.security)
            order by h.symbol, coalesce(h.valid_until, 'infinity') desc, h.valid_from desc nulls last
        )

        select later.symbol as symbol, first.symbol as other, first.security
        from held as first
        inner join held as later on later.security = first.security
        where (first.added_at, first.symbol) < (later.added_at, later.symbol)
        order by 1, 2
        """
    )
    return [(row["symbol"], row["other"], row["security"]) for row in rows]


def other_ticker(connection: StoreConnection, identity: Identity, symbol: str) -> str | None:
    """Return another followed symbol that has the security's identifier and is none of the tickers that it had."""
    rows = connection.rows(
        """
        select h.symbol from market_data.symbol_history as h
        inner join market_data.symbols as s on s.symbol = h.symbol and s.active
        where
            h.superseded_at is null and h.security = %(security)s and h.valid_until is null
            and h.symbol <> all(%(tickers)s::text[])
        order by h.symbol limit 1
        """,
        {"security": identity.security, "tickers": [symbol, *(each.ticker for each in identity.tenures)]},
    )
    return rows[0]["symbol"] if rows else None


def known_and_listed(connection: StoreConnection) -> tuple[int, int]:
    """Return of how many followed stocks the vendor said what they are, and how many entries its changes have of them.

    A few have no changes of ticker; that none has any means that it does not tell.
    """
    rows = connection.rows(
        """
        select count(distinct h.symbol) as known, count(*) filter (where h.source = 'events') as listed
        from market_data.symbol_history as h
        inner join market_data.symbols as s on s.symbol = h.symbol and s.active and s.security is null
        where h.superseded_at is null and h.source in ('events', 'reference')
        """
    )
    return rows[0]["known"], rows[0]["listed"]


def note_once(connection: StoreConnection, symbol: str, change: str, now: datetime) -> None:
    """Record what became known of a symbol, to be alerted, unless that was recorded before; the caller commits."""
    connection.execute(
        """
        insert into market_data.identity_news (symbol, change, seen_at)
        select %(symbol)s, %(change)s, %(now)s
        where not exists (
            select from market_data.identity_news where symbol = %(symbol)s and change = %(change)s
        )
        """,
        {"symbol": symbol, "change": change, "now": now},
    )


def note_changes(connection: StoreConnection, symbol: str, changes: Iterable[str], now: datetime) -> None:
    """Record what became known of a symbol, to be alerted; the caller commits."""
    for change in changes:
        connection.execute(
            """
            insert into market_data.identity_news (symbol, change, seen_at)
            values (%(symbol)s, %(change)s, %(now)s)
            """,
            {"symbol": symbol, "change": change, "now": now},
        )
