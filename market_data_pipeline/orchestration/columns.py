"""The columns of the assets' tables, as the catalog shows them.

The features follow their declaration in the domain; the bars are the columns of `domain.bars` with their units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.features.definitions import FEATURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.features.definitions import Feature


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


def feature_columns(own: Sequence[Feature] = ()) -> dg.TableSchema:
    """Return the columns of features, those of the project's `own` ones behind the 17."""
    return dg.TableSchema(
        [
            *_KEY,
            *(_feature(feature) for feature in FEATURES),
            *(_feature(feature, where=" In `extra`.") for feature in own),
            _column("features_computed_at", "timestamptz", "When the computation that produced the row ran."),
        ]
    )


def _feature(feature: Feature, where: str = "") -> dg.TableColumn:
    told = f"{feature.description} ({feature.unit})" if feature.unit else feature.description
    return _column(feature.name, feature.sql_type, f"{told}{'.' if where else ''}{where}", nullable=True)


FEATURE_COLUMNS: Final = feature_columns()
