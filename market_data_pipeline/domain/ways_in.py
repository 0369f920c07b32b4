"""The two ways in: how the bars of settled days get here."""

from __future__ import annotations

from enum import StrEnum


class BackfillSource(StrEnum):
    """Where a backfill takes the bars of settled days from; days without a file are always requested."""

    REST = "rest"  # the vendor's API, symbol by symbol
    FILES = "files"  # its flat files, day by day
    AUTO = "auto"  # what costs less for what is missing
