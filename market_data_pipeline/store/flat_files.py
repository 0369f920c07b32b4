"""Versions of the vendor's flat files in PostgreSQL: `flat_files`, which `coverage.file_id` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from market_data_pipeline.polygon.flat_files import FileVersion
    from market_data_pipeline.store.copy import StoreConnection


def file_ids(
    connection: StoreConnection, versions: Collection[FileVersion], now: datetime
) -> dict[tuple[str, date], int]:
    """Return the id of each version by dataset and day; those that are new are stored, as found at `now`."""
    if not versions:
        return {}
    values = {
        "dataset": [str(each.dataset) for each in versions],
        "day": [each.day for each in versions],
        "etag": [each.etag for each in versions],
        "bytes": [each.bytes for each in versions],
        "published_at": [each.published_at for each in versions],
    }
    listed = """
        unnest(
            %(dataset)s::text[], %(day)s::date[], %(etag)s::text[], %(bytes)s::bigint[], %(published_at)s::timestamptz[]
        ) as listed (dataset, session_date, etag, bytes, published_at)
    """
    connection.execute(
        f"""
        insert into market_data.flat_files (dataset, session_date, etag, bytes, published_at, first_listed_at)
        select listed.*, %(now)s from {listed}
        where not exists (
            select from market_data.flat_files as f
            where (f.dataset, f.session_date, f.etag) = (listed.dataset, listed.session_date, listed.etag)
        )
        on conflict (dataset, session_date, etag) do nothing
        """,  # noqa: S608 - a constant
        {**values, "now": now},
    )
    rows = connection.rows(
        f"select f.id, f.dataset, f.session_date from market_data.flat_files as f "  # noqa: S608 - a constant
        f"inner join {listed} using (dataset, session_date, etag)",
        values,
    )
    return {(row["dataset"], row["session_date"]): row["id"] for row in rows}


def mean_bytes(connection: StoreConnection) -> dict[str, int]:
    """Return the mean size of the versions that are known, by dataset; those of which none is are absent."""
    rows = connection.rows("select dataset, avg(bytes)::bigint as bytes from market_data.flat_files group by dataset")
    return {row["dataset"]: row["bytes"] for row in rows}
