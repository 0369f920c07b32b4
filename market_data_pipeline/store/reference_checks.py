"""When market-wide answers were last read, and what they cost, in PostgreSQL.

Add here: statements on `reference_checks`. Keep out: what the answers said (splits, market_days).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from datetime import date, datetime

    from market_data_pipeline.store.bulk import Bulk

SPLITS: Final = "splits"
MARKET_DAY: Final = "market day"


class Check(NamedTuple):
    """The last reading: the first date that it covers, its instant, its pages, and its bytes on the wire."""

    since: date
    verified_at: datetime
    requests: int = 1
    bytes: int = 0


def last_check(bulk: Bulk, name: str = SPLITS) -> Check | None:
    """Return the last reading of one kind, None before the first."""
    rows = bulk.rows(
        "select since, verified_at, requests, bytes from market_data.reference_checks where name = $1", name
    )
    return Check(**rows[0]) if rows else None


def write_check(bulk: Bulk, name: str, check: Check) -> None:
    """Store that an answer was read; the caller commits."""
    bulk.execute(
        """
        insert into market_data.reference_checks (name, since, verified_at, requests, bytes)
        values ($1, $2, $3, $4::int, $5::bigint)
        on conflict (name) do update set
            since = excluded.since,
            verified_at = excluded.verified_at,
            requests = excluded.requests,
            bytes = excluded.bytes
        """,
        *(name, *check),
    )
