"""Dividends in PostgreSQL: as the vendor lists them, what it listed before, and which symbols' are known.

Relations: `dividends`, `dividend_revisions`, `dividend_checks` and `unreadable_dividends`. When the market's list was
last read is in `reference_checks` (store.reference).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.adjustments import NO_TICKER, Dividend, ListedDividend

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.store.copy import StoreConnection

DIVIDENDS: Final = "dividends"

# A list that lacks more of the known dividends than this, and more than half of them, is not believed to withdraw them.
_MANY: Final = 10


_COLUMNS: Final = ", ".join(ListedDividend._fields)
_TYPES: Final = ("text", "date", "float8", "text", "date", "date", "date", "int", "text", "text")
_LISTED: Final = ", ".join(f"%({name})s::{kind}[]" for name, kind in zip(ListedDividend._fields, _TYPES, strict=True))


class Known(NamedTuple):
    """When a list with a symbol's dividends was last read, None for never; and why a row of it could not be read."""

    verified_at: datetime | None
    error: str | None


def read_known(connection: StoreConnection, symbols: Collection[str]) -> dict[str, Known]:
    """Return what is known of each symbol's dividends; rows without a ticker are under `NO_TICKER`."""
    rows = connection.rows(
        """
        select asked.symbol, known.verified_at, unreadable.error
        from unnest(%(symbols)s::text[]) as asked (symbol)
        left join market_data.dividend_checks as known using (symbol)
        left join market_data.unreadable_dividends as unreadable using (symbol)
        """,
        {"symbols": list(symbols)},
    )
    return {row["symbol"]: Known(row["verified_at"], row["error"]) for row in rows}


def all_reads(connection: StoreConnection) -> dict[str, datetime]:
    """Return when a list with its dividends was last read, of every symbol of which one was."""
    rows = connection.rows("select symbol, verified_at from market_data.dividend_checks")
    return {row["symbol"]: row["verified_at"] for row in rows}


def write_dividends(
    connection: StoreConnection,
    listed: Sequence[ListedDividend],
    symbols: Collection[str],
    *,
    since: date | None,
    now: datetime,
    unreadable: Mapping[str, str],
) -> None:
    """Make the stored dividends of `symbols` those that the vendor lists at `now`; the caller commits.

    One that it lists with another amount or for another day is another dividend: the old one is withdrawn. What is
    withdrawn, or had other dates or another type, is kept in `dividend_revisions`. As with splits, a list that lacks
    most of the known ones (`_MANY`) withdraws nothing, the dividends of a symbol with an unreadable row stay as they
    are, and while a row names no ticker, one that is missing is withdrawn only if its symbol has a new one.

    Args:
        connection: in a transaction.
        listed: those of other symbols, or before `since`, are ignored.
        symbols: whose dividends the list holds.
        since: the first ex date of the list; None for all.
        now: aware UTC.
        unreadable: by symbol, what is wrong with a row that is left out.
    """
    readable = [symbol for symbol in symbols if symbol not in unreadable]
    wanted = set(readable)
    kept = [each for each in listed if each.symbol in wanted and (since is None or each.ex_date >= since)]
    given: dict[str, Any] = {name: [getattr(each, name) for each in kept] for name in ListedDividend._fields}
    given |= {"now": now, "symbols": readable, "since": since, "unnamed": NO_TICKER in unreadable, "many": _MANY}
    connection.execute(
        f"""
        with listed as (
            select distinct on (symbol, ex_date, amount, currency) *
            from unnest({_LISTED}) as dividend ({_COLUMNS})
            order by symbol, ex_date, amount, currency, vendor_id
        ),

        known as (
            select * from market_data.dividends
            where symbol = any(%(symbols)s::text[]) and ex_date >= coalesce(%(since)s::date, '-infinity')
        ),

        news as (
            select listed.* from listed left join known using (symbol, ex_date, amount, currency)
            where known.symbol is null
        ),

        missing as (
            select known.* from known left join listed using (symbol, ex_date, amount, currency)
            where listed.symbol is null
        ),

        gone as (
            delete from market_data.dividends as dividend using missing
            where
                dividend.symbol = missing.symbol and dividend.ex_date = missing.ex_date
                and dividend.amount = missing.amount and dividend.currency = missing.currency
                and (not %(unnamed)s::boolean or dividend.symbol in (select news.symbol from news))
                and (
                    (select count(*) from missing) <= %(many)s
                    or 2 * (select count(*) from missing) <= (select count(*) from known)
                )
            returning dividend.*
        ),

        changed as (
            select
                known.symbol, known.ex_date, known.amount, known.currency, listed.declaration_date,
                listed.record_date, listed.pay_date, listed.frequency, listed.type, listed.vendor_id,
                (known.declaration_date, known.record_date, known.pay_date, known.frequency, known.type)
                is distinct from
                (listed.declaration_date, listed.record_date, listed.pay_date, listed.frequency, listed.type)
                as is_other
            from known inner join listed using (symbol, ex_date, amount, currency)
            where
                (
                    known.declaration_date, known.record_date, known.pay_date, known.frequency, known.type,
                    known.vendor_id
                )
                is distinct from (
                    listed.declaration_date, listed.record_date, listed.pay_date, listed.frequency, listed.type,
                    listed.vendor_id
                )
        ),

        past as (
            insert into market_data.dividend_revisions (
                symbol, ex_date, amount, currency, declaration_date, record_date, pay_date, frequency, type, vendor_id,
                first_seen_at, superseded_at
            )
            select gone.*, %(now)s from gone
            union all
            select known.*, %(now)s from known inner join changed using (symbol, ex_date, amount, currency)
            where changed.is_other and known.first_seen_at < %(now)s
        ),

        updated as (
            update market_data.dividends as dividend set
                declaration_date = changed.declaration_date,
                record_date = changed.record_date,
                pay_date = changed.pay_date,
                frequency = changed.frequency,
                type = changed.type,
                vendor_id = changed.vendor_id,
                first_seen_at = case when changed.is_other then %(now)s else dividend.first_seen_at end
            from changed
            where
                dividend.symbol = changed.symbol and dividend.ex_date = changed.ex_date
                and dividend.amount = changed.amount and dividend.currency = changed.currency
        )

        insert into market_data.dividends (
            symbol, ex_date, amount, currency, declaration_date, record_date, pay_date, frequency, type, vendor_id,
            first_seen_at
        )
        select news.*, %(now)s from news
        """,  # noqa: S608 - constants
        given,
    )
    connection.execute(
        """
        insert into market_data.dividend_checks (symbol, verified_at)
        select symbol, %(now)s from unnest(%(symbols)s::text[]) as read (symbol)
        on conflict (symbol) do update set verified_at = excluded.verified_at
        """,
        {"symbols": list(symbols), "now": now},
    )
    connection.execute(
        "delete from market_data.unreadable_dividends where symbol = any(%(symbols)s::text[])",
        {"symbols": [*symbols, NO_TICKER]},
    )
    if unreadable:
        connection.execute(
            """
            insert into market_data.unreadable_dividends (symbol, error, seen_at)
            select symbol, error, %(now)s from unnest(%(symbols)s::text[], %(errors)s::text[]) as row (symbol, error)
            on conflict (symbol) do update set error = excluded.error, seen_at = excluded.seen_at
            """,
            {"symbols": list(unreadable), "errors": list(unreadable.values()), "now": now},
        )


def dividends_of(
    connection: StoreConnection, symbols: Sequence[str], known_at: datetime | None = None
) -> dict[str, list[Dividend]]:
    """Return the dividends that each symbol's prices are adjusted for, by ex date; symbols without one are left out.

    With `known_at`, as they, the splits and the closes were known then.
    """
    rows = connection.rows(
        """
        select asked.symbol, paid.ex_date, paid.amount, paid.previous_close, paid.shares
        from unnest(%(symbols)s::text[]) as asked (symbol)
        cross join lateral
            market_data.dividend_factors(asked.symbol, coalesce(%(known_at)s::timestamptz, 'infinity')) as paid
        order by asked.symbol, paid.ex_date
        """,
        {"symbols": list(symbols), "known_at": known_at},
    )
    dividends: dict[str, list[Dividend]] = {}
    for row in rows:
        paid = Dividend(row["ex_date"], row["amount"], row["previous_close"], row["shares"])
        dividends.setdefault(row["symbol"], []).append(paid)
    return dividends


def dividend_history(connection: StoreConnection) -> list[dict[str, Any]]:
    """Return every dividend that was ever listed, with when it was: [first_seen_at, superseded_at), None for still."""
    return connection.rows(
        """
        select
            symbol, ex_date, amount, currency, declaration_date, record_date, pay_date, frequency, type,
            first_seen_at, null::timestamptz as superseded_at
        from market_data.dividends
        union all
        select
            symbol, ex_date, amount, currency, declaration_date, record_date, pay_date, frequency, type,
            first_seen_at, superseded_at
        from market_data.dividend_revisions
        order by symbol, ex_date, amount, currency, first_seen_at, superseded_at
        """
    )
