"""The benchmark of a whole market, of a few tickers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_small_market_is_loaded_by_file_and_its_cost_extrapolated() -> None:
    command = [sys.executable, "-m", "benchmarks.market", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = {line[: line.index("  ")] for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert {
        "a market day by file, downloaded, computed and stored",
        "peak memory of it",
        "five years by file on 8 cores, from 10 days",
        "requests of five years",
    } <= figures
    assert "series 100," in done.stdout
