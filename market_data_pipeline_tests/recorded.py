"""Recorded market data: the sample in this repository, and the full recordings that may lie beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

SAMPLE = Path(__file__).parent / "data" / "real_sample"
FULL = Path(__file__).parents[2] / "shared" / "data" / "real"

needs_full = pytest.mark.skipif(not FULL.is_dir(), reason="the full recordings are not beside the repository")
