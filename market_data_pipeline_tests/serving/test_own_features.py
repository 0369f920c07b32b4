"""A project's own features over HTTP: after the 17, in every representation, and in the reports when they fail."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from market_data_pipeline_tests.serving.conftest import FEATURES, MovableClock, serve
from market_data_pipeline_tests.serving.seeding import NOW, Seed

MODULE = """
from market_data_pipeline import OwnFeature

def nothing(bars, timeframe, asset_class):
    return bars["close"] * float("nan")

FEATURES = (
    OwnFeature(name="gap", compute=nothing, dtype="float", warm_up=1, description="open over the previous close"),
    OwnFeature(name="calm", compute=nothing, dtype="bool", warm_up=1, description="little happens"),
    OwnFeature(name="candle", compute=nothing, dtype="text", labels=("up", "down"), warm_up=0, description="the bar"),
)
"""


@pytest.fixture
def own_settings(settings: MovableClock, tmp_path: Path) -> MovableClock:
    (tmp_path / "mine.py").write_text(MODULE)
    return settings.model_copy(update={"features_module": str(tmp_path / "mine.py")})


def test_own_features_follow_the_17_in_every_representation(own_settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL", count=3)
    for at, extra in ((0, None), (1, '{"gap": 0.25, "calm": true, "candle": "up", "old": 1}'), (2, '{"gap": "text"}')):
        seed.run(
            "update market_data.features set extra = %s where ts = (select ts from market_data.features"
            " order by ts offset %s limit 1)",
            extra,
            at,
        )
    with serve(own_settings) as api:
        records = api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["features"]
        assert [list(record)[-4:] for record in records] == [["compression_regime", "gap", "calm", "candle"]] * 3
        assert [(one["gap"], one["calm"], one["candle"]) for one in records] == [
            (None, None, None),
            (0.25, True, "up"),
            (None, None, None),  # left behind by another declaration
        ]
        text = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"accept": "text/csv"}).text
        assert [(one["gap"], one["calm"]) for one in csv.DictReader(io.StringIO(text))] == [
            ("", ""),
            ("0.25", "true"),
            ("", ""),
        ]
        stream = api.get(
            f"{FEATURES}/AAPL", timeframe="5m", headers={"accept": "application/vnd.apache.arrow.stream"}
        ).content
        schema = pa.ipc.open_stream(stream).schema
        assert [str(schema.field(name).type) for name in ("gap", "calm", "candle")] == ["double", "bool", "string"]
        record = api.get("/openapi.json").json()["components"]["schemas"]["FeatureRecord"]["properties"]
        assert record["gap"]["description"] == "Open over the previous close."
        assert record["candle"]["anyOf"][0]["enum"] == ["up", "down"]


def test_the_api_serves_the_17_when_the_module_is_broken(
    own_settings: MovableClock, seed: Seed, tmp_path: Path
) -> None:
    seed.series("AAPL", count=3)
    (tmp_path / "mine.py").write_text("import nothing_of_that_name")
    with serve(own_settings) as api:
        records = api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["features"]
        assert list(records[0])[-1] == "compression_regime"


@pytest.mark.usefixtures("dagster_instance")
def test_warnings_are_reported_once_with_how_many_series_they_affect(own_settings: MovableClock, seed: Seed) -> None:
    for symbol in ("AAPL", "MSFT"):
        seed.series(symbol)
        seed.log("run", symbol, "5m", "ok", warning="Own feature gap raises.")
    seed.log("run", "AAPL", "5m", "ok", warning="Own feature gap is old news.", at=NOW - timedelta(days=2))
    with serve(own_settings) as api:
        report = api.get("/api/v1/admin/scheduler-health").json()
        assert [(one["warning"], one["series"], one["example"]) for one in report["recent_warnings"]] == [
            ("Own feature gap raises.", 2, "AAPL|5m")
        ]
        assert "Own feature gap raises." in api.get("/").text
