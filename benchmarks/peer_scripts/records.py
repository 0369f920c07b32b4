"""Rows to PostgreSQL by a dlt pipeline with merge disposition, as dictionaries, which dlt's sources yield."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peer_scripts import merge

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd


def store(task: dict[str, Any], found: Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]) -> None:
    """Merge bars and features, one load for each symbol."""
    merge.load(task, found, _records)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return records
