"""Rows to PostgreSQL by `executemany` upserts, one symbol at a time; psycopg 3 sends them in a pipeline."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY = ("symbol", "timeframe", "ts")


def store(task: dict[str, Any], found: Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]) -> None:
    """Upsert bars and features into the pipeline's tables, a commit for each series."""
    with psycopg.connect(task["database_url"]) as connection:
        for symbol, timeframe, bars, features in found:
            for name, stamp, frame in (("bars", "ingested_at", bars), ("features", "features_computed_at", features)):
                rows = frame.assign(symbol=symbol, timeframe=str(timeframe), **{stamp: datetime.now(UTC)})
                values = rows.astype(object).where(rows.notna(), None).to_numpy().tolist()
                with connection.cursor() as cursor:
                    cursor.executemany(_upsert(name, list(rows.columns)), values)
            connection.commit()


def _upsert(table: str, columns: list[str]) -> str:
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in _KEY)
    return (
        f"insert into market_data.{table} ({', '.join(columns)}) values ({', '.join(['%s'] * len(columns))}) "  # noqa: S608
        f"on conflict ({', '.join(_KEY)}) do update set {updates}"
    )
