"""Reference data in PostgreSQL: the splits as the vendor lists them, and when whole-market answers were last read.

Relations: `splits`, `split_revisions`, `unreadable_splits` and `reference_checks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.adjustments import NO_TICKER, Split

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date, datetime

    from market_data_pipeline.store.copy import StoreConnection

SPLITS: Final = "splits"
MARKET_DAY: Final = "market day"


class Check(NamedTuple):
    """The last reading of a whole-market answer: its first date, its instant, its pages, and its bytes on the wire."""

    since: date
    verified_at: datetime
    requests: int = 1
    bytes: int = 0


def last_check(connection: StoreConnection, name: str = SPLITS) -> Check | None:
    """Return the last reading of one kind, None before the first."""
    rows = connection.rows(
        "select since, verified_at, requests, bytes from market_data.reference_checks where name = %(name)s",
        {"name": name},
    )
    return Check(**rows[0]) if rows else None


def write_check(connection: StoreConnection, name: str, check: Check) -> None:
    """Record that an answer was read; the caller commits."""
    connection.execute(
        """
        insert into market_data.reference_checks (name, since, verified_at, requests, bytes)
        values (%(name)s, %(since)s, %(verified_at)s, %(requests)s::int, %(bytes)s::bigint)
        on conflict (name) do update set
            since = excluded.since,
            verified_at = excluded.verified_at,
            requests = excluded.requests,
            bytes = excluded.bytes
        """,
        {"name": name, **check._asdict()},
    )


def read_splits(connection: StoreConnection, symbol: str, known_at: datetime | None = None) -> tuple[Split, ...]:
    """Return a symbol's known splits by execution date, future ones included.

    With `known_at`, those that we had received from the vendor by then, as they were listed then.
    """
    rows = connection.rows(
        """
        select execution_date, split_from, split_to
        from market_data.splits_as_of(coalesce(%(known_at)s::timestamptz, 'infinity'))
        where symbol = %(symbol)s
        order by execution_date
        """,
        {"symbol": symbol, "known_at": known_at},
    )
    return tuple(Split(**row) for row in rows)


def followed_symbols(connection: StoreConnection) -> frozenset[str]:
    """Return the symbols whose splits matter: all that are followed or were, since their bars are kept."""
    return frozenset(row["symbol"] for row in connection.rows("select symbol from market_data.symbols"))


def unreadable_splits(connection: StoreConnection) -> dict[str, str]:
    """Return, by symbol, what is wrong with splits of the vendor's last list that could not be read.

    A row without a ticker is under `NO_TICKER`.
    """
    return {
        row["symbol"]: row["error"]
        for row in connection.rows("select symbol, error from market_data.unreadable_splits")
    }


def write_splits(
    connection: StoreConnection,
    splits: Iterable[tuple[str, date, float, float]],
    *,
    since: date,
    now: datetime,
    unreadable: Mapping[str, str] | None = None,
) -> None:
    """Store the market's splits (symbol, execution date, from, to) executed on `since` or later, as listed at `now`.

    A split that the vendor lists with another ratio than before is corrected; one that it no longer lists is removed,
    so that a corrected date does not adjust twice. Both are kept in `split_revisions`. An empty list removes nothing:
    the market always has splits, so the list is a vendor error. The splits of a symbol whose row is `unreadable` stay
    as they are, and the reason is kept until its row can be read. A row without a ticker may belong to any symbol:
    while there is one, a split that is no longer listed is removed only if its symbol has a new one.
    """
    unreadable = unreadable or {}
    splits = [split for split in splits if split[0] not in unreadable]
    if splits:
        _replace(connection, splits, since, now, list(unreadable))
    connection.execute("delete from market_data.unreadable_splits")
    if unreadable:
        connection.execute(
            """
            insert into market_data.unreadable_splits (symbol, error, seen_at)
            select symbol, error, %(now)s from unnest(%(symbols)s::text[], %(errors)s::text[]) as split (symbol, error)
            """,
            {"symbols": list(unreadable), "errors": list(unreadable.values()), "now": now},
        )


def _replace(
    connection: StoreConnection,
    splits: list[tuple[str, date, float, float]],
    since: date,
    now: datetime,
    kept: list[str],
) -> None:
    names = ("symbols", "dates", "split_from", "split_to")
    listed = dict(zip(names, (list(column) for column in zip(*splits, strict=True)), strict=True))
    connection.execute(
        """
        with listed as (
            select symbol, execution_date, split_from, split_to
            from unnest(%(symbols)s::text[], %(dates)s::date[], %(split_from)s::float8[], %(split_to)s::float8[])
                as split (symbol, execution_date, split_from, split_to)
        ),

        news as (
            select symbol, execution_date, split_from, split_to from listed
            except
            select symbol, execution_date, split_from, split_to from market_data.splits
        ),

        gone as (
            delete from market_data.splits as known
            where
                known.execution_date >= %(since)s
                and known.symbol <> all(%(kept)s::text[])
                and (known.symbol, known.execution_date, known.split_from, known.split_to) not in (table listed)
                and (not %(unnamed)s::boolean or known.symbol in (select news.symbol from news))
            returning *
        )

        insert into market_data.split_revisions (
            symbol, execution_date, split_from, split_to, first_seen_at, superseded_at
        )
        select symbol, execution_date, split_from, split_to, first_seen_at, %(now)s
        from gone
        """,
        {**listed, "since": since, "now": now, "kept": kept, "unnamed": NO_TICKER in kept},
    )
    connection.execute(
        """
        insert into market_data.splits (symbol, execution_date, split_from, split_to, first_seen_at)
        select listed.symbol, listed.execution_date, listed.split_from, listed.split_to, %(now)s
        from unnest(%(symbols)s::text[], %(dates)s::date[], %(split_from)s::float8[], %(split_to)s::float8[])
            as listed (symbol, execution_date, split_from, split_to)
        on conflict (symbol, execution_date) do nothing
        """,
        {**listed, "now": now},
    )
