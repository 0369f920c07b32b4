"""Which security a followed symbol is: its tickers, and what became known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.store.securities import FOLLOWED_AS

if TYPE_CHECKING:
    from datetime import date, datetime

CHANGES: Final = 3  # the newest, beside a series


class TickerRow(NamedTuple):
    """A ticker that the security had during [valid_from, valid_until), New York dates, and who says so."""

    symbol: str
    valid_from: date | None
    valid_until: date | None
    source: str
    reason: str | None


class ChangeRow(NamedTuple):
    """What became known of a symbol, a sentence without its full stop, and when."""

    change: str
    seen_at: datetime


class SecurityFacts(NamedTuple):
    """The security that a symbol stands for.

    Attributes:
        security: identifies it.
        name, type: None where the vendor has none.
        tickers: which it had, ascending.
        changes: what became known of the symbol, newest first.
    """

    security: str
    name: str | None
    type: str | None
    tickers: list[TickerRow]
    changes: list[ChangeRow]


class NewChange(NamedTuple):
    """A change of a followed symbol that was not alerted yet."""

    id: int
    symbol: str
    change: str


_TICKERS: Final = sa.text("""
    with meant as (
        select k.security from market_data.symbol_history as k
        left join market_data.symbols as m on m.symbol = k.symbol
        where k.superseded_at is null and k.symbol = :symbol and k.security = coalesce(m.security, k.security)
        order by coalesce(k.valid_until, 'infinity') desc, k.valid_from desc nulls last
        limit 1
    )

    select h.security, s.name, s.type, h.symbol, h.valid_from, h.valid_until, h.source, h.reason
    from meant
    inner join market_data.symbol_history as h on h.security = meant.security and h.superseded_at is null
    left join market_data.securities as s on s.security = meant.security and s.superseded_at is null
    order by h.valid_from nulls first
""")

_CHANGES: Final = sa.text("""
    select change, seen_at from market_data.identity_news where symbol = :symbol order by id desc limit :limit
""")

_NEW: Final = sa.text("""
    select c.id, c.symbol, c.change from market_data.identity_news as c
    inner join market_data.symbols as s on s.symbol = c.symbol and s.active
    where c.alerted_at is null
    order by c.id
""")


def security_of(connection: sa.Connection, symbol: str) -> SecurityFacts | None:
    """Return the security that a symbol stands for; None when that is not known."""
    rows: list[Any] = list(connection.execute(_TICKERS, {"symbol": symbol}))
    if not rows:
        return None
    changes = connection.execute(_CHANGES, {"symbol": symbol, "limit": CHANGES})
    first = rows[0]
    return SecurityFacts(
        first.security,
        first.name,
        first.type,
        [TickerRow(row.symbol, row.valid_from, row.valid_until, row.source, row.reason) for row in rows],
        [ChangeRow(*row) for row in changes],
    )


def ended_on(connection: sa.Connection, symbol: str) -> date | None:
    """Return the first day on which a symbol's security had no ticker any more; None while it has one."""
    tickers = connection.execute(_TICKERS, {"symbol": symbol}).all()
    return tickers[-1].valid_until if tickers else None


def followed_as(connection: sa.Connection, ticker: str, known_at: datetime | None = None) -> str | None:
    """Return the tracked symbol whose security had a ticker, by what was known at an instant; None for none."""
    row = connection.exec_driver_sql(FOLLOWED_AS, {"tickers": [ticker], "known_at": known_at}).one_or_none()
    return None if row is None else str(row.symbol)


def new_changes(connection: sa.Connection) -> list[NewChange]:
    """Return the changes of followed symbols that were not alerted yet, as they became known."""
    return [NewChange(*row) for row in connection.execute(_NEW)]
