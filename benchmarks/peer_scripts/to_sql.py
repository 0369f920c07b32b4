"""Frames to PostgreSQL by `pandas.to_sql`, as most scripts do it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd


def store(task: dict[str, Any], found: Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]) -> None:
    """Append bars and features to the pipeline's tables."""
    engine = sa.create_engine(task["database_url"].replace("postgresql://", "postgresql+psycopg2://", 1))
    for symbol, timeframe, bars, features in found:
        for name, stamp, frame in (("bars", "ingested_at", bars), ("features", "features_computed_at", features)):
            rows = frame.assign(symbol=symbol, timeframe=str(timeframe), **{stamp: datetime.now(UTC)})
            rows.to_sql(name, engine, schema="market_data", if_exists="append", index=False)
    engine.dispose()
