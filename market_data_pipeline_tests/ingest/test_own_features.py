"""A module of own features on disk: stored, kept in step, shown, and never in the way of anything else."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from market_data_pipeline import read_bars, read_features
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.domain.features.own import NO_OWN_FEATURES
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.own_features import load_own_features
from market_data_pipeline.ingest.pipeline import Pipeline, build_pipeline
from market_data_pipeline.ingest.source import Vendor
from market_data_pipeline.orchestration.metadata import materializations, summary, warned
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "own-features.md"
HEADER = "from market_data_pipeline import OwnFeature\n"
DAILY = (Timeframe.D1,)


def own(name: str, returned: str, dtype: str = "float", **more: object) -> str:
    facts = {"warm_up": 1, **more}
    fields = "".join(f", {key}={value!r}" for key, value in facts.items())
    return (
        f"OwnFeature(name={name!r}, compute=lambda bars, timeframe, asset_class: {returned},"
        f" dtype={dtype!r}, description='…'{fields})"
    )


class Project:
    """A world whose settings name a module of own features."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.file = world, folder / "my_features.py"
        self.writes = 0
        world.pipeline = self.pipeline  # type: ignore[method-assign]

    def pipeline(self, history_days: int) -> Pipeline:
        return replace(World.pipeline(self.world, history_days), own_features=load_own_features(load_settings()))

    def declare(self, *features: str) -> None:
        self.write(f"{HEADER}FEATURES = ({', '.join(features)}{',' if features else ''})\n")

    def write(self, text: str) -> None:
        self.file.write_text(text)
        self.writes += 1  # an edit within one tick of the file system's clock still counts as one
        stamp = self.file.stat().st_mtime_ns + self.writes
        os.utime(self.file, ns=(stamp, stamp))

    def stored(self, timeframe: str = "1d") -> list[dict[str, object]]:
        return self.world.query(
            "select ts, extra, features_computed_at from market_data.features where timeframe = %s order by ts",
            timeframe,
        )


@pytest.fixture
def project(make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    world = make_world(NOON)
    made = Project(world, tmp_path)
    made.declare()
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    monkeypatch.setenv("MARKET_DATA_FEATURES_MODULE", "my_features.py")
    return made


GAP = own("gap", "bars['open'] / bars['close'].shift(1) - 1", unit="ratio")


def test_the_guides_example_is_stored_and_read_with_its_types(project: Project) -> None:
    (example, *_) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    project.write(example)
    outcomes = project.world.refresh("AAPL", history_days=100)
    assert {outcome.warning for outcome in outcomes.values()} == {None}

    for timeframe in Timeframe:
        features = read_features("AAPL", timeframe)
        assert features.columns.tolist() == [*FEATURE_NAMES, "gap", "above_average", "candle"]
        assert [str(features[name].dtype) for name in features.columns[17:]] == ["float64", "boolean", "category"]
        bars = read_bars("AAPL", timeframe)
        pd.testing.assert_series_equal(
            features["gap"], bars["open"] / bars["close"].shift(1) - 1, check_exact=True, check_names=False
        )
        assert features["above_average"].isna().sum() == min(49, len(bars))
        assert (features["candle"] == "up").tolist() == (bars["close"] > bars["open"]).tolist()
    (row,) = project.world.query(
        "select (extra ->> 'gap')::double precision as gap from market_data.features where timeframe = '1d'"
        " order by ts desc limit 1"
    )
    assert row["gap"] == read_features("AAPL", "1d")["gap"].iloc[-1]


def test_the_catalog_shows_them_after_the_17(project: Project) -> None:
    project.declare(GAP)
    outcomes = project.world.refresh("AAPL", timeframes=DAILY)
    _, features = materializations(outcomes["AAPL|1d"])
    columns = features.metadata["dagster/column_schema"].value.columns  # type: ignore[union-attr]
    assert [column.name for column in columns][3:-1] == [*FEATURE_NAMES, "gap"]
    assert columns[-2].description == "… (ratio). In `extra`."


def test_without_own_features_nothing_is_stored_for_them(project: Project) -> None:
    project.world.refresh("AAPL", timeframes=DAILY)
    assert {row["extra"] for row in project.stored()} == {None}


def test_appending_leaves_what_one_backfill_leaves(project: Project) -> None:
    rolling = "bars['close'].rolling(30).std() / bars['close'].rolling(30).mean()"
    project.declare(GAP, own("spread", rolling, warm_up=29), own("total", "bars['volume'].cumsum()", warm_up=None))
    world, end, first_day = project.world, project.world.now, datetime(2026, 10, 26, tzinfo=NEW_YORK)

    def refresh() -> None:
        world.refresh("AAPL", history_days=(world.now.astimezone(NEW_YORK).date() - first_day.date()).days)

    for days in (4, 1, 0):
        world.now = end - timedelta(days=days)
        refresh()
    appended = read_features("AAPL", "5m")
    assert len(appended) > 1_600
    with world.connect() as connection:
        connection.execute("truncate market_data.records, market_data.coverage")
        connection.execute("delete from market_data.series_state")
    refresh()
    pd.testing.assert_frame_equal(appended, read_features("AAPL", "5m"), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(appended["total"], read_bars("AAPL", "5m")["volume"].cumsum())


def test_a_new_version_or_feature_recomputes_all_rows_with_the_next_refresh(project: Project) -> None:
    project.world.refresh("AAPL", timeframes=DAILY)
    for declared, expected in (
        ((own("level", "bars['close'] * 1"),), {"level": 1.0}),
        ((own("level", "bars['close'] * 2", version=2),), {"level": 2.0}),
        (
            (own("level", "bars['close'] * 2", version=2), own("other", "bars['close'] * 3")),
            {"level": 2.0, "other": 3.0},
        ),
        ((own("other", "bars['close'] * 3"),), {"other": 3.0}),
        ((own("other", "bars['close'] > 0", "bool", version=2),), {"other": True}),
        ((), None),
    ):
        project.declare(*declared)
        project.world.now += timedelta(seconds=1)
        outcomes = project.world.refresh("AAPL", timeframes=DAILY)
        closes, rows = read_bars("AAPL", "1d")["close"], project.stored()
        assert outcomes["AAPL|1d"].counters.features_written == len(rows) == len(closes)
        for close, row in zip(closes, rows, strict=True):
            computed = expected and {k: v if v is True else v * close for k, v in expected.items()}
            assert row["extra"] == computed
        again = project.world.refresh("AAPL", timeframes=DAILY)
        assert again["AAPL|1d"].status == "unchanged"


def test_bad_features_are_reported_and_stop_neither_the_17_nor_the_good_ones(project: Project) -> None:
    project.world.refresh("AAPL", timeframes=DAILY, history_days=200)
    before = read_features("AAPL", "1d")
    day = before.index[70]
    project.declare(
        own("raising", f"bars['close'] if bars['ts'].iloc[-1].isoformat() < {day.isoformat()!r} else 1 / 0"),
        GAP,
        own("ahead", "bars['close'].shift(-1)"),
        own("short", "bars['close'].iloc[1:]"),
        own("mistyped", "bars['close'].astype('str')"),
        "'not a feature'",
    )
    outcome = project.world.refresh("AAPL", timeframes=DAILY, history_days=200)["AAPL|1d"]
    after = read_features("AAPL", "1d")

    assert outcome.status == "ok"
    pd.testing.assert_frame_equal(after[list(FEATURE_NAMES)], before)
    assert after["gap"].notna().sum() == len(before) - 1
    assert after[["raising", "ahead", "short", "mistyped"]].isna().all(axis=None)
    warning = outcome.warning or ""
    assert f"Own feature raising (version 1) raises ZeroDivisionError at the bar {day:%Y-%m-%d %H:%M}Z" in warning
    for said in (
        "ahead (version 1) at the bar",
        "short (version 1) returns",
        "mistyped (version 1) is declared",
        "6 of",
    ):
        assert said in warning
    (logged,) = project.world.query("select status, error, warning from market_data.ingest_log where run_id = 'run-2'")
    assert logged == {"status": "ok", "error": None, "warning": warning}
    for shown in materializations(outcome):
        assert shown.metadata["warning"].value == warning
    assert summary(outcome.tier, [outcome]).metadata["warnings"].value == 1
    assert warned([outcome, replace(outcome, warning=None), outcome]) == [f"AAPL|1d, AAPL|1d: {warning}"]


def test_a_feature_that_failed_is_tried_again_with_the_next_bars(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(f"import os\n{HEADER}FEATURES = ({own('gap', GAP_OR_NOT)},)\n")
    project.world.refresh("AAPL", timeframes=DAILY)
    assert {row["extra"] for row in project.stored()} == {None}
    monkeypatch.setenv("CALM", "1")
    assert project.world.refresh("AAPL", timeframes=DAILY)["AAPL|1d"].status == "unchanged"
    project.world.now += timedelta(days=1)
    assert project.world.refresh("AAPL", timeframes=DAILY)["AAPL|1d"].warning is None
    assert all(row["extra"] for row in project.stored())


GAP_OR_NOT = "bars['close'] if 'CALM' in os.environ else 1 / 0"


def test_a_module_that_cannot_be_loaded_leaves_what_is_stored(project: Project) -> None:
    project.declare(GAP)
    project.world.refresh("AAPL", timeframes=DAILY)
    before = project.stored()
    project.write(f"{HEADER}\nFEATURES = (unheard_of,)\n")
    for days, stored in ((0, 0), (1, 1)):
        project.world.now += timedelta(days=days)
        outcome = project.world.refresh("AAPL", timeframes=DAILY, history_days=10 + days)["AAPL|1d"]
        assert "my_features.py, which cannot be loaded: NameError in line 3" in (outcome.warning or "")
        assert project.stored()[: len(before)] == before
        assert [row["extra"] for row in project.stored()[len(before) :]] == [None] * stored
    project.declare(GAP)
    later = project.world.refresh("AAPL", timeframes=DAILY, history_days=11)["AAPL|1d"]
    assert (later.warning, later.counters.features_written) == (None, 1)
    assert all(row["extra"] for row in project.stored()[1:])


def test_a_run_takes_the_module_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    (tmp_path / "quant_of_a_test").mkdir()
    (tmp_path / "quant_of_a_test" / "features.py").write_text(f"{HEADER}FEATURES = [{GAP}]\n")
    vendor = Vendor("http://127.0.0.1:1", "sandbox")
    monkeypatch.setenv("POLYGON_BASE_URL", vendor.base_url)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for named in ("quant_of_a_test.features", "quant_of_a_test/features.py"):
        monkeypatch.setenv("MARKET_DATA_FEATURES_MODULE", named)
        with build_pipeline(load_settings(), vendor) as built:
            assert [feature.name for feature in built.own_features.features] == ["gap"]
    monkeypatch.delenv("MARKET_DATA_FEATURES_MODULE")
    with build_pipeline(load_settings(), vendor) as built:
        assert built.own_features is NO_OWN_FEATURES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "AttributeError: it has no FEATURES, a tuple of OwnFeature."),
        ("FEATURES = 1", "TypeError: 'int' object is not iterable."),
        ("import nothing_of_that_name", "ModuleNotFoundError in line 1: No module named"),
        ("FEATURES = (", "SyntaxError: '(' was never closed"),
        ("raise SystemExit(3)", "SystemExit in line 1: 3."),
    ],
)
def test_a_problem_with_a_module_becomes_a_sentence(project: Project, text: str, said: str) -> None:
    project.write(text)
    own_features = load_own_features(load_settings())
    assert (own_features.features, own_features.readable) == ((), False)
    (problem,) = own_features.problems
    assert problem.startswith("MARKET_DATA_FEATURES_MODULE names ")
    assert said in problem
