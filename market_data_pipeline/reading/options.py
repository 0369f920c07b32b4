"""The keyword arguments of the readers, for type checkers: which form of answer they name decides the returned type."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from market_data_pipeline.domain.adjustments import Adjusted
    from market_data_pipeline.reading.read import Source
    from market_data_pipeline.reading.selection import SessionHours
    from market_data_pipeline.settings import Settings


class FeatureOptions(TypedDict, total=False):
    """Those of `read_features`."""

    session: SessionHours
    columns: Iterable[str] | None
    source: Source
    settings: Settings | None


class RecordOptions(FeatureOptions, total=False):
    """Those of `read_records`."""

    adjusted: Adjusted


class BarOptions(RecordOptions, total=False):
    """Those of `read_bars`."""

    as_of: datetime | None
