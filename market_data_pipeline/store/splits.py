"""Splits in PostgreSQL, and when the market's list was last read.

Add here: statements on `splits` and `reference_checks`. Keep out: adjusting (domain.splits).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.splits import Split

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date, datetime

    from market_data_pipeline.store.bulk import Bulk


def read_splits(bulk: Bulk, symbol: str, known_at: datetime | None = None) -> tuple[Split, ...]:
    """Return a symbol's known splits, future-dated ones among them, by execution date.

    With `known_at` only those that the vendor had listed to us by then.
    """
    rows = bulk.rows(
        """
        select execution_date, split_from, split_to
        from market_data.splits
        where symbol = $1 and first_seen_at <= coalesce($2::timestamptz, 'infinity')
        order by execution_date
        """,
        *(symbol, known_at),
    )
    return tuple(Split(**row) for row in rows)


def last_check(bulk: Bulk) -> tuple[date, datetime] | None:
    """Return the first date and the instant of the last reading of the market's splits, or None before the first."""
    rows = bulk.rows("select since, verified_at from market_data.reference_checks where name = 'splits'")
    return (rows[0]["since"], rows[0]["verified_at"]) if rows else None


def write_splits(bulk: Bulk, splits: Iterable[tuple[str, date, float, float]], *, since: date, now: datetime) -> None:
    """Store the market's splits (symbol, execution date, from, to) and that they were read now.

    A split that the vendor lists with other numbers than before is corrected; one with a date that it no longer
    lists is taken out, so that a corrected date does not adjust twice. An empty list takes out nothing: the market
    always has splits, so it says more about the vendor than about them.
    """
    splits = list(splits)
    if splits:
        _replace(bulk, splits, since, now)
    bulk.execute(
        """
        insert into market_data.reference_checks (name, since, verified_at)
        values ('splits', $1, $2)
        on conflict (name) do update set since = excluded.since, verified_at = excluded.verified_at
        """,
        *(since, now),
    )


def _replace(bulk: Bulk, splits: list[tuple[str, date, float, float]], since: date, now: datetime) -> None:
    symbols, dates = [split[0] for split in splits], [split[1] for split in splits]
    bulk.execute(
        """
        delete from market_data.splits as known
        where known.execution_date >= $3 and not exists (
            select 1 from unnest($1::text[], $2::date[]) as listed (symbol, execution_date)
            where listed.symbol = known.symbol and listed.execution_date = known.execution_date
        )
        """,
        *(symbols, dates, since),
    )
    bulk.execute(
        """
        insert into market_data.splits (symbol, execution_date, split_from, split_to, first_seen_at)
        select listed.symbol, listed.execution_date, listed.split_from, listed.split_to, $5
        from unnest($1::text[], $2::date[], $3::float8[], $4::float8[])
            as listed (symbol, execution_date, split_from, split_to)
        on conflict (symbol, execution_date) do update set
            split_from = excluded.split_from, split_to = excluded.split_to
        where (splits.split_from, splits.split_to) is distinct from (excluded.split_from, excluded.split_to)
        """,
        *(symbols, dates, [split[2] for split in splits], [split[3] for split in splits], now),
    )
