"""`market-data export`: what the readers return, as a file or a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from market_data_pipeline import read_bars, read_features, read_records
from market_data_pipeline.cli.main import app
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline_tests.lake.conftest import LakeWorld


@pytest.fixture
def exported(lake_world: LakeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("DATABASE_URL", lake_world.world.database_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", lake_world.world.now.isoformat())
    monkeypatch.setenv("MARKET_DATA_LAKE_URL", lake_world.url)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["export", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_each_format_holds_what_the_readers_return(exported: Any, tmp_path: Path) -> None:
    day = ("--start", "2025-03-03", "--end", "2025-03-05")
    assert "rows to bars.parquet" in exported("AAPL", "MSFT", "--timeframes", "1h,1d", *day, "--output", "bars.parquet")
    bars = read_bars(["AAPL", "MSFT"], ["1h", "1d"], start="2025-03-03", end="2025-03-05", as_polars=True)
    held = pl.read_parquet(tmp_path / "bars.parquet")
    assert held.equals(bars.with_columns(pl.col("symbol", "timeframe").cast(pl.String)))
    assert len(held) > 20

    exported("--rows", "features", "--timeframes", "1d", "--format", "csv", "--output", "features.csv")
    features = read_features(["AAPL", "MSFT"], "1d")
    csv = pd.read_csv(tmp_path / "features.csv", parse_dates=["ts"])
    assert csv["ts"].tolist() == features.index.tolist()
    assert csv["atr"].to_numpy() == pytest.approx(features["atr"].to_numpy(), nan_ok=True)
    assert (
        csv["trend_regime"].astype("string").fillna("").tolist()
        == features["trend_regime"].astype("string").fillna("").tolist()
    )
    assert (tmp_path / "features.csv").read_text().splitlines()[1].startswith('"AAPL","1d","2025-02-20T05:00:00Z",')

    exported("AAPL", "--rows", "records", "--raw", "--columns", "close,hh", "--format", "delta", "--output", "records")
    records = read_records(["AAPL"], ["1d"], adjusted=False, columns=["close", "hh"], as_arrow=True)
    delta = pl.read_delta(str(tmp_path / "records"))
    assert delta.columns == records.column_names
    assert delta["close"].to_list() == records["close"].to_pylist()


def test_prices_are_adjusted_for_what_is_asked(exported: Any, tmp_path: Path) -> None:
    for adjustment in ("raw", "splits", "all"):
        exported("AAPL", "--adjustment", adjustment, "--columns", "close", "--output", f"{adjustment}.parquet")
        held = pl.read_parquet(tmp_path / f"{adjustment}.parquet")["close"]
        assert held.to_list() == read_bars("AAPL", "1d", adjusted=adjustment)["close"].to_list()
    with pytest.raises(UsageError, match="--raw and --adjustment all contradict each other"):
        exported("AAPL", "--raw", "--adjustment", "all", "--output", "x")
    with pytest.raises(UsageError, match="all is for bars"):
        exported("AAPL", "--rows", "features", "--adjustment", "all", "--output", "x")


def test_nothing_is_replaced_unasked_and_an_empty_answer_has_its_columns(exported: Any, tmp_path: Path) -> None:
    exported("AAPL", "--start", "2001-01-01", "--end", "2001-02-01", "--output", "none.parquet")
    empty = pq.read_table(tmp_path / "none.parquet")
    assert empty.num_rows == 0
    assert empty.column_names[:4] == ["symbol", "timeframe", "ts", "open"]
    with pytest.raises(UsageError, match="exists already"):
        exported("AAPL", "--output", "none.parquet")
    exported("AAPL", "--output", "none.parquet", "--overwrite")
    assert pq.read_table(tmp_path / "none.parquet").num_rows > 20
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []
    with pytest.raises(UsageError, match="--as-of is for bars"):
        exported("AAPL", "--rows", "features", "--as-of", "2025-03-01T00:00Z", "--output", "x")
