"""The columns of the assets' tables, as the catalog shows them.

The features follow their declaration in the domain; the bars are the columns of `domain.bars` with their units.
"""

from __future__ import annotations

from typing import Final

import dagster as dg

from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.feature_definitions import FEATURES


def _column(name: str, kind: str, description: str, *, nullable: bool = False) -> dg.TableColumn:
    return dg.TableColumn(name, kind, description=description, constraints=dg.TableColumnConstraints(nullable=nullable))


_KEY: Final = (
    _column("symbol", "text", "The vendor's ticker, case-sensitive."),
    _column("timeframe", "text", "5m, 15m, 1h, 4h or 1d."),
    _column("ts", "timestamptz", "The bar's start."),
)

BAR_COLUMNS: Final = dg.TableSchema(
    [
        *_KEY,
        *(_column(name, "double precision", f"The bar's {name}, US dollars, as traded.") for name in PRICES),
        _column("volume", "double precision", "Shares or units traded; may be fractional."),
        _column("vwap", "double precision", "Volume-weighted average price, US dollars.", nullable=True),
        _column("trades", "bigint", "Number of trades.", nullable=True),
        _column("ingested_at", "timestamptz", "When these values were stored."),
    ]
)

FEATURE_COLUMNS: Final = dg.TableSchema(
    [
        *_KEY,
        *(
            _column(
                feature.name,
                feature.sql_type,
                f"{feature.description} ({feature.unit})" if feature.unit else feature.description,
                nullable=True,
            )
            for feature in FEATURES
        ),
        _column("features_computed_at", "timestamptz", "When the computation that produced the row ran."),
    ]
)
