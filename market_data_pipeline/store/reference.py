"""Reference data in PostgreSQL: the splits as the vendor lists them, and when whole-market answers were last read.

Relations: `splits`, `split_revisions`, `unreadable_splits`, `reference_checks` and `reference_failures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.adjustments import NO_TICKER, Split
from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.contested import contested, first_guess
from market_data_pipeline.domain.series import Tier

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.store.copy import StoreConnection

# A list that lacks more of the known splits than this, and more than half of them, is not believed to withdraw them.
_MANY: Final = 10

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


class Failing(NamedTuple):
    """A whole-market answer that cannot be had: since when, aware UTC, and why."""

    since: datetime
    error: str


def failing(connection: StoreConnection, name: str = SPLITS) -> Failing | None:
    """Return since when answers of one kind have failed; None when the last one was read."""
    rows = connection.rows(
        "select since, error from market_data.reference_failures where name = %(name)s", {"name": name}
    )
    return Failing(**rows[0]) if rows else None


def write_failing(connection: StoreConnection, name: str, failure: Failing) -> None:
    """Record that an answer could not be had; the caller commits. The first failure since the last answer dates it."""
    connection.execute(
        """
        insert into market_data.reference_failures (name, since, error) values (%(name)s, %(since)s, %(error)s)
        on conflict (name) do update set error = excluded.error
        """,
        {"name": name, **failure._asdict()},
    )


def write_answered(connection: StoreConnection, name: str) -> None:
    """Record that answers of one kind can be had; the caller commits."""
    connection.execute("delete from market_data.reference_failures where name = %(name)s", {"name": name})


def write_check(connection: StoreConnection, name: str, check: Check) -> None:
    """Record that an answer was read; the caller commits."""
    connection.execute("delete from market_data.reference_failures where name = %(name)s", {"name": name})
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
    """Return the splits that a symbol's prices are adjusted by, by execution date, future ones included.

    With `known_at`, those that we had received from the vendor by then, as they were listed then.
    """
    rows = connection.rows(
        """
        select execution_date, split_from, split_to
        from market_data.splits_as_of(coalesce(%(known_at)s::timestamptz, 'infinity'))
        where symbol = %(symbol)s
        order by execution_date, factor
        """,
        {"symbol": symbol, "known_at": known_at},
    )
    return tuple(Split(**row) for row in rows)


def split_history(connection: StoreConnection) -> list[dict[str, Any]]:
    """Return every split that was ever listed, with when it was: [first_seen_at, superseded_at), None for still."""
    return connection.rows(
        """
        select
            symbol, execution_date, split_from, split_to, factor, counts, first_seen_at,
            null::timestamptz as superseded_at
        from market_data.splits
        union all
        select
            symbol, execution_date, split_from, split_to, split_from / split_to as factor, counts, first_seen_at,
            superseded_at
        from market_data.split_revisions
        order by symbol, execution_date, factor, first_seen_at, superseded_at
        """
    )


class ListedSplit(NamedTuple):
    """A row of the vendor's list: the split, whether prices are adjusted by it, and why that is in doubt."""

    split: Split
    counts: bool
    doubt: str | None


def symbols_with_splits(connection: StoreConnection, symbols: Sequence[str]) -> frozenset[str]:
    """Return those of `symbols` of which the vendor lists a split."""
    rows = connection.rows(
        "select distinct symbol from market_data.splits where symbol = any(%(symbols)s::text[])",
        {"symbols": list(symbols)},
    )
    return frozenset(row["symbol"] for row in rows)


def listed_splits(connection: StoreConnection, symbol: str) -> tuple[ListedSplit, ...]:
    """Return all rows of the vendor's list about a symbol, by execution date, those that do not count included."""
    rows = connection.rows(
        """
        select execution_date, split_from, split_to, counts, doubt
        from market_data.splits
        where symbol = %(symbol)s
        order by execution_date, factor
        """,
        {"symbol": symbol},
    )
    return tuple(
        ListedSplit(Split(row["execution_date"], row["split_from"], row["split_to"]), row["counts"], row["doubt"])
        for row in rows
    )


class Counting(NamedTuple):
    """Whether a listed split counts, and why that is in doubt."""

    symbol: str
    split: Split
    counts: bool
    doubt: str | None = None


def write_counting(connection: StoreConnection, verdicts: Collection[Counting], now: datetime) -> None:
    """Store which listed splits count; the caller commits. What prices were adjusted by before is kept."""
    if not verdicts:
        return
    given = {
        "symbols": [each.symbol for each in verdicts],
        "dates": [each.split.execution_date for each in verdicts],
        "split_from": [each.split.split_from for each in verdicts],
        "split_to": [each.split.split_to for each in verdicts],
        "counts": [each.counts for each in verdicts],
        "doubts": [each.doubt for each in verdicts],
        "now": now,
    }
    connection.execute(
        """
        with given as (
            select symbol, execution_date, split_from / split_to as factor, counts, doubt
            from unnest(
                %(symbols)s::text[], %(dates)s::date[], %(split_from)s::float8[], %(split_to)s::float8[],
                %(counts)s::bool[], %(doubts)s::text[]
            ) as verdict (symbol, execution_date, split_from, split_to, counts, doubt)
        ),

        before as (
            insert into market_data.split_revisions (
                symbol, execution_date, split_from, split_to, first_seen_at, superseded_at, vendor_id, counts
            )
            select
                known.symbol, known.execution_date, known.split_from, known.split_to, known.first_seen_at, %(now)s,
                known.vendor_id, known.counts
            from market_data.splits as known
            inner join given using (symbol, execution_date, factor)
            where known.counts <> given.counts and known.first_seen_at < %(now)s
        )

        update market_data.splits as known
        set
            counts = given.counts,
            doubt = given.doubt,
            first_seen_at = case when known.counts = given.counts then known.first_seen_at else %(now)s end
        from given
        where
            known.symbol = given.symbol and known.execution_date = given.execution_date and known.factor = given.factor
            and (known.counts, known.doubt) is distinct from (given.counts, given.doubt)
        """,
        given,
    )


class Awaited(NamedTuple):
    """A symbol with a split listed for a day around today, or whose price looks as if there were one today.

    `move` is the last price over that of the session before, adjusted by the splits that count; None for a listed one.
    """

    symbol: str
    tier: Tier
    move: float | None


def listed_around(connection: StoreConnection, symbols: Collection[str], first: date, last: date) -> list[Awaited]:
    """Return those of the symbols for which the vendor lists a split from `first` to `last`, both included."""
    rows = connection.rows(
        """
        select k.symbol, k.tier from market_data.symbols as k
        where k.symbol = any(%(symbols)s::text[]) and exists (
            select from market_data.splits as s
            where s.symbol = k.symbol and s.execution_date between %(first)s and %(last)s
        )
        """,
        {"symbols": list(symbols), "first": first, "last": last},
    )
    return [Awaited(row["symbol"], Tier(row["tier"]), None) for row in rows]


def moves_since(connection: StoreConnection, symbols: Collection[str], day: date, start: datetime) -> list[Awaited]:
    """Return by how much each symbol's price has moved since the session before that of `day`, which began at `start`.

    Symbols without 5m bars before and since are left out. By the number of a series, its newest bar is found in the
    newest partition; by its name, the view looks for it in all of them.
    """
    rows = connection.rows(
        """
        select k.symbol, k.tier, since.close / (before.close * coalesce((
            select market_data.product(s.factor) from market_data.splits as s
            where
                s.symbol = k.symbol and s.counts and s.execution_date <= %(day)s
                and before.ts < s.execution_date::timestamp at time zone %(zone)s
        ), 1)) as move
        from market_data.symbols as k
        inner join market_data.series as n on n.symbol = k.symbol and n.timeframe = '5m'
        cross join lateral (
            select b.ts, b.close from market_data.records_5m as b
            where b.series = n.id and b.ts < %(start)s order by b.ts desc limit 1
        ) as before
        cross join lateral (
            select b.close from market_data.records_5m as b
            where b.series = n.id and b.ts >= %(start)s order by b.ts desc limit 1
        ) as since
        where k.symbol = any(%(symbols)s::text[])
        """,
        {"symbols": list(symbols), "day": day, "start": start, "zone": EXCHANGE_ZONE_NAME},
    )
    return [Awaited(row["symbol"], Tier(row["tier"]), row["move"]) for row in rows]


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
    splits: Iterable[tuple[str, date, float, float, str | None]],
    *,
    since: date,
    now: datetime,
    unreadable: Mapping[str, str] | None = None,
) -> None:
    """Store the market's splits executed on `since` or later, as the vendor lists them at `now`.

    Each is symbol, execution date, from, to and the vendor's id. A split is known by its symbol, day and ratio. One
    that the vendor lists with another ratio than before is corrected; one that it no longer lists is removed, so that a
    corrected date does not adjust twice. Both are kept in `split_revisions`. Where the rows of a symbol change, those
    that may be about one event count by the first guess (`domain.contested`). A list that lacks most of the known
    splits (`_MANY`) removes nothing: the market's past does not vanish, so the list is a vendor error. The splits of a
    symbol whose row is `unreadable` stay as they are, and the reason is kept until its row can be read. A row without a
    ticker may belong to any symbol: while there is one, a split that is no longer listed is removed only if its symbol
    has a new one.
    """
    unreadable = unreadable or {}
    splits = [split for split in splits if split[0] not in unreadable]
    changed = _replace(connection, splits, since, now, list(unreadable))
    write_counting(connection, _first_guesses(connection, changed), now)
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
    splits: list[tuple[str, date, float, float, str | None]],
    since: date,
    now: datetime,
    kept: list[str],
) -> list[str]:
    """Make the stored splits those of the list; return the symbols of which rows came or went."""
    names = ("symbols", "dates", "split_from", "split_to", "ids")
    listed: dict[str, object] = {name: [split[at] for split in splits] for at, name in enumerate(names)}
    changed = connection.rows(
        """
        with listed as (
            select symbol, execution_date, split_from, split_to, split_from / split_to as factor, id
            from unnest(
                %(symbols)s::text[], %(dates)s::date[], %(split_from)s::float8[], %(split_to)s::float8[],
                %(ids)s::text[]
            ) as split (symbol, execution_date, split_from, split_to, id)
        ),

        news as (
            select listed.* from listed
            left join market_data.splits as known using (symbol, execution_date, factor)
            where known.symbol is null
        ),

        missing as (
            select known.* from market_data.splits as known
            where
                known.execution_date >= %(since)s
                and known.symbol <> all(%(kept)s::text[])
                and (known.symbol, known.execution_date, known.factor)
                not in (select listed.symbol, listed.execution_date, listed.factor from listed)
        ),

        gone as (
            delete from market_data.splits as known using missing
            where
                known.symbol = missing.symbol
                and known.execution_date = missing.execution_date
                and known.factor = missing.factor
                and (not %(unnamed)s::boolean or known.symbol in (select news.symbol from news))
                and (
                    (select count(*) from missing) <= %(many)s
                    or 2 * (select count(*) from missing)
                    <= (select count(*) from market_data.splits where execution_date >= %(since)s)
                )
            returning known.*
        ),

        past as (
            insert into market_data.split_revisions (
                symbol, execution_date, split_from, split_to, first_seen_at, superseded_at, vendor_id, counts
            )
            select symbol, execution_date, split_from, split_to, first_seen_at, %(now)s, vendor_id, counts
            from gone
        ),

        added as (
            insert into market_data.splits (symbol, execution_date, split_from, split_to, first_seen_at, vendor_id)
            select symbol, execution_date, split_from, split_to, %(now)s, id from news
            on conflict do nothing
        )

        select symbol from news union select symbol from gone
        """,
        {**listed, "since": since, "now": now, "kept": kept, "unnamed": NO_TICKER in kept, "many": _MANY},
    )
    connection.execute(
        """
        update market_data.splits as known set vendor_id = listed.id
        from unnest(
            %(symbols)s::text[], %(dates)s::date[], %(split_from)s::float8[], %(split_to)s::float8[], %(ids)s::text[]
        ) as listed (symbol, execution_date, split_from, split_to, id)
        where
            known.symbol = listed.symbol and known.execution_date = listed.execution_date
            and known.factor = listed.split_from / listed.split_to and known.vendor_id is distinct from listed.id
        """,
        listed,
    )
    return [row["symbol"] for row in changed]


def _first_guesses(connection: StoreConnection, symbols: list[str]) -> list[Counting]:
    """Return which splits of the symbols count as long as prices have not decided."""
    rows = connection.rows(
        """
        select symbol, execution_date, split_from, split_to, counts
        from market_data.splits where symbol = any(%(symbols)s::text[])
        """,
        {"symbols": symbols},
    )
    by_symbol: dict[str, dict[Split, bool]] = {}
    for row in rows:
        split = Split(row["execution_date"], row["split_from"], row["split_to"])
        by_symbol.setdefault(row["symbol"], {})[split] = row["counts"]
    found = []
    for symbol, known in by_symbol.items():
        out = {split for group in contested(known) for split in set(group) - first_guess(group)}
        found += [
            Counting(symbol, split, split not in out) for split, counts in known.items() if counts is (split in out)
        ]
    return found
