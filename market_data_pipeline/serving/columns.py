"""The columns that answers carry, and which type each has in JSON, CSV and Arrow.

Add here: what a record of an endpoint holds. Keep out: what a feature is (domain.feature_definitions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from market_data_pipeline.domain.feature_definitions import FEATURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.feature_definitions import Feature

Kind = Literal["instant", "float", "integer", "boolean", "text"]


class Column(NamedTuple):
    """One column: its name, its kind, whether a value may be missing, what it says."""

    name: str
    kind: Kind
    nullable: bool
    description: str
    labels: tuple[str, ...] = ()  # the values of a text column


_PRICE: Final = "US dollars"

BAR_COLUMNS: Final = (
    Column("ts", "instant", False, "The bar's START, UTC."),
    Column("open", "float", False, f"First trade, {_PRICE}."),
    Column("high", "float", False, f"Highest trade, {_PRICE}."),
    Column("low", "float", False, f"Lowest trade, {_PRICE}."),
    Column("close", "float", False, f"Last trade, {_PRICE}."),
    Column("volume", "float", False, "Shares (crypto: units) traded; may be fractional."),
    Column("vwap", "float", True, f"Volume-weighted average price, {_PRICE}; null where the vendor sent none."),
    Column("trades", "integer", True, "Number of trades; null where the vendor sent none."),
)

_KINDS: Final[dict[str, Kind]] = {"float": "float", "bool": "boolean", "text": "text"}


def feature_columns(own: Sequence[Feature] = ()) -> tuple[Column, ...]:
    """Return the columns of a record of features: the bar, the 17, and the project's `own` ones."""
    return (
        *BAR_COLUMNS,
        *(
            Column(f.name, _KINDS[f.dtype], True, f"{f.description[0].upper()}{f.description[1:]}.", f.labels)
            for f in (*FEATURES, *own)
        ),
    )


FEATURE_COLUMNS: Final = feature_columns()
