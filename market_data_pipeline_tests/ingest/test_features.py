"""Features kept in step with their bars: what is read for that, what is written, and that no reader notices."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest

from market_data_pipeline.domain.adjustments import Split, adjust
from market_data_pipeline.domain.bars import TS_DTYPE, VALUES
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.features import compute as formulas
from market_data_pipeline.domain.features import definitions
from market_data_pipeline.domain.features.compute import compute_features
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES, FEATURES, WARM_UP_BARS
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe
from market_data_pipeline.ingest import commit, pipeline
from market_data_pipeline.ingest.features import bars_to_compute
from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
from market_data_pipeline.orchestration.metadata import failure
from market_data_pipeline.reports.health import scheduler_health
from market_data_pipeline.store.connection import engine
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.records import append_records
from market_data_pipeline_tests.domain.feature_series import assert_same, random_bars
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
FIVES = (Timeframe.M5,)
DAYS = 21  # of which 14 are sessions: about 2,600 bars, well beyond the warm-up


class Counting(StoreConnection):
    """A connection that counts the rows it was given and the rows it copied, by relation."""

    read: ClassVar[Counter[str]] = Counter()
    written: ClassVar[Counter[str]] = Counter()

    def columns(self, kinds: Mapping[str, str], statement: Any, *parameters: object) -> dict[str, Any]:
        found = super().columns(kinds, statement, *parameters)
        if "market_data.records_" in statement:
            self.read["features" if "features_after" in statement else "bars"] += len(found["ts"])
        return found

    def copy(self, relation: str, table: pa.Table) -> None:
        self.written[relation] += table.num_rows
        super().copy(relation, table)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr(pipeline, "StoreConnection", Counting)
    return Counting


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    made = make_world(NOON)
    made.refresh("AAPL", timeframes=FIVES, history_days=DAYS)
    return made


def refresh(world: World, counted: type[Counting] = Counting) -> Any:
    counted.read.clear()
    counted.written.clear()
    return world.refresh("AAPL", timeframes=FIVES, history_days=DAYS)["AAPL|5m"]


def bars(world: World, relation: str = "bars_adjusted") -> pd.DataFrame:
    rows = world.query(f"select ts, {', '.join(VALUES)} from market_data.{relation} where timeframe = '5m' order by ts")
    return pd.DataFrame(rows).astype({"ts": TS_DTYPE, **dict.fromkeys(VALUES, "float64")})


def features(world: World) -> pd.DataFrame:
    rows = world.query(
        f"select ts, features_computed_at, {', '.join(FEATURE_NAMES)} from market_data.features"
        " where timeframe = '5m' order by ts"
    )
    return pd.DataFrame(rows, dtype=object)


def check_against_the_whole(world: World) -> None:
    stored = features(world)
    assert_same(stored, compute_features(bars(world), Timeframe.M5, AssetClass.US_EQUITY))


def rewritten(before: pd.DataFrame, after: pd.DataFrame) -> pd.Series:
    """Return which rows of `after` were not stored like this before, whatever their values."""
    old = before.set_index("ts")["features_computed_at"].reindex(after["ts"]).to_numpy()
    return pd.Series(old != after["features_computed_at"].to_numpy())


def test_an_append_reads_its_warm_up_and_writes_its_rows(world: World, counted: type[Counting]) -> None:
    before = features(world)
    world.now += timedelta(minutes=15)
    outcome = refresh(world, counted)
    assert outcome.counters.rows_inserted == outcome.counters.features_written == 3
    assert counted.read["bars"] <= WARM_UP_BARS + 200  # and the bars of the session, which were fetched again
    assert counted.read["features"] == 0
    assert counted.written == {"records_5m": 3}
    assert rewritten(before, features(world)).tolist() == [False] * len(before) + [True] * 3
    check_against_the_whole(world)


def test_a_correction_recomputes_from_its_bar_on_and_writes_what_differs(world: World, counted: type[Counting]) -> None:
    at = len(bars(world)) - 400
    ts = bars(world)["ts"].iloc[at].to_pydatetime()
    with world.connect() as connection:  # as if the vendor had published another close before it published the true one
        connection.execute("update market_data.bars set close = close * 1.01 where timeframe = '5m' and ts = %s", (ts,))
        connection.execute(
            "update market_data.coverage set status = 'provisional', fetched_at = fetched_at - interval '2 days'"
            " where session_date = %s",
            (ts.astimezone(NEW_YORK).date(),),
        )
    before = features(world)
    world.now += timedelta(seconds=1)
    outcome = refresh(world, counted)
    assert (outcome.counters.rows_updated, outcome.counters.rows_inserted) == (1, 0)
    # The stored features were already those of the true close: none of them differs, and no other row is written.
    assert counted.written == {"records_5m": 1}
    assert outcome.counters.features_written == 1
    assert counted.read["features"] == 400
    after = features(world)
    assert rewritten(before, after).pipe(lambda touched: touched[touched].index.tolist()) == [at]
    pd.testing.assert_frame_equal(after[["ts", *FEATURE_NAMES]], before[["ts", *FEATURE_NAMES]])
    check_against_the_whole(world)


def test_a_corrected_value_changes_rows_from_its_bar_on_until_it_is_forgotten(
    world: World, counted: type[Counting]
) -> None:
    held = bars(world)
    at = len(held) - 1_200
    ts = held["ts"].iloc[at].to_pydatetime()
    with world.connect() as connection:  # what is stored is a preliminary bar, with the features that belong to it
        connection.execute("update market_data.bars set volume = volume * 3 where timeframe = '5m' and ts = %s", (ts,))
        connection.execute("update market_data.series_state set feature_version = 0")
    world.now += timedelta(seconds=1)
    assert 0 < refresh(world).counters.features_written <= 20
    with world.connect() as connection:
        connection.execute(
            "update market_data.coverage set status = 'provisional', fetched_at = fetched_at - interval '2 days'"
            " where session_date = %s",
            (ts.astimezone(NEW_YORK).date(),),
        )
    before = features(world)
    world.now += timedelta(seconds=1)
    outcome = refresh(world, counted)
    after = features(world)
    assert outcome.counters.rows_updated == 1
    # A volume is in the means of 20 bars: these rows are written again, none before and none after them.
    touched = rewritten(before, after)
    assert touched[touched].index.tolist() == list(range(at, at + 20))
    assert outcome.counters.features_written == 20
    assert counted.written == {"records_5m": 1}  # the others were there, and only their features changed
    check_against_the_whole(world)


def test_a_split_recomputes_the_price_scaled_columns_of_the_bars_before_it(world: World) -> None:
    before = features(world)
    day = datetime(2026, 11, 17, tzinfo=NEW_YORK)
    with world.connect() as connection:
        connection.execute("insert into market_data.splits values ('AAPL', %s, 1, 7, %s)", (day.date(), world.now))
    world.now += timedelta(seconds=1)
    refresh(world)
    after = features(world)
    check_against_the_whole(world)
    scaled = [feature.name for feature in FEATURES if feature.price_scaled]
    earlier = (before["ts"] < day).to_numpy()
    assert earlier.sum() > 1_500
    for name, factor in (("atr", 1 / 7), ("rolling_volume_20", 7.0)):
        old, new = (frame.loc[earlier, name].astype("float64") for frame in (before, after))
        np.testing.assert_allclose(new, old * factor, rtol=1e-9)
    assert set(scaled) == {"atr", "rolling_volume_20"}
    others = [f for f in FEATURES if f.name not in scaled]
    for feature in others:  # prices before the split times 1/7 are rounded once more: returns near 0 lose a digit
        old, new = (frame.loc[earlier, feature.name] for frame in (before, after))
        if feature.dtype == "float":
            np.testing.assert_allclose(
                new.astype("float64"), old.astype("float64"), rtol=1e-9, atol=1e-15, err_msg=feature.name
            )
        else:
            assert new.tolist() == old.tolist(), feature.name


@pytest.mark.parametrize(("still", "read"), [(False, WARM_UP_BARS + 1), (True, 2_500)])
def test_a_ticker_that_stands_still_is_judged_by_its_adjusted_prices(
    database_url: str, *, still: bool, read: int
) -> None:
    """A split is not a movement: after a long halt with one in it, the average true range still rests on older bars."""
    series, day = Series("DEAD", Timeframe.M15), date(2024, 2, 20)
    made = random_bars(1, "cents", Timeframe.M15, AssetClass.US_EQUITY, 2_500, first=date(2024, 1, 2), presence=1.0)
    made = made.assign(open=made["close"])
    if still:
        before = made["ts"] < datetime(2024, 2, 20, tzinfo=NEW_YORK)
        price = np.where(before, 400.0, 100.0)
        for name in ("open", "high", "low", "close"):
            made[name] = np.where(np.arange(2_500) < 100, made[name], price)
        assert 200 < (~before).sum() < WARM_UP_BARS - 200
    newest = made["ts"].iloc[-1].to_pydatetime()
    with StoreConnection(database_url) as connection:
        append_records(connection, series, made, None, NOON)
        found, start = bars_to_compute(
            connection,
            series,
            made.iloc[-1:],
            made.iloc[:0],
            first=newest,
            held_until=newest - timedelta(minutes=15),
            contiguous=True,
            adjusted=lambda raw: adjust(raw, [Split(day, 1, 4)] if still else [], date(2024, 6, 1)),
            warm_up=WARM_UP_BARS,
        )
    assert (len(found), start) == (read, read - 1)
    if still:
        assert set(found["close"].iloc[100:]) == {100.0}


def test_a_new_version_recomputes_everything_while_readers_see_old_or_new(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = features(world)
    atr = formulas._average_true_range
    version = definitions.FEATURE_VERSION + 1
    monkeypatch.setattr(definitions, "FEATURE_VERSION", version)
    monkeypatch.setattr(formulas, "_average_true_range", lambda *prices: 2 * atr(*prices))
    seen: list[list[float | None]] = []

    def look() -> None:
        with psycopg.connect(world.database_url, autocommit=True) as connection:
            # A reader that had to wait for a lock would get an error instead of rows.
            connection.execute("set lock_timeout = '1ms'")
            rows = connection.execute("select atr from market_data.features where timeframe = '5m' order by ts")
            seen.append([row[0] for row in rows.fetchall()])

    written = commit.write_state

    def look_and_write(*arguments: Any) -> None:  # all rows are replaced by now, and nothing is committed
        reader = threading.Thread(target=look)
        reader.start()
        reader.join()
        written(*arguments)

    monkeypatch.setattr(commit, "write_state", look_and_write)
    world.now += timedelta(seconds=1)
    outcome = refresh(world)
    look()

    assert (outcome.counters.rows_inserted, outcome.counters.rows_updated) == (0, 0)
    old = before["atr"].tolist()
    assert outcome.counters.features_written == len(old) - 14  # where there is no average yet nothing differs
    assert seen == [old, [None if value is None else 2 * value for value in old]]
    assert refresh(world).counters.features_written == 0
    (state,) = world.query("select feature_version from market_data.series_state where timeframe = '5m'")
    assert state["feature_version"] == version


def test_a_breaking_formula_fails_its_series_only_and_says_where(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = make_world(NOON)
    whole = formulas.features_from

    def breaking(bars: pd.DataFrame, first: int, timeframe: Timeframe, asset_class: AssetClass) -> pd.DataFrame:
        if timeframe is Timeframe.M5 and asset_class is AssetClass.US_EQUITY:
            raise ZeroDivisionError("a price of nothing")
        return whole(bars, first, timeframe, asset_class)

    monkeypatch.setattr(formulas, "features_from", breaking)
    outcomes = world.refresh("AAPL", "X:BTCUSD", history_days=3)
    assert {key for key, outcome in outcomes.items() if outcome.failed} == {"AAPL|5m"}
    failed = outcomes["AAPL|5m"]
    assert failed.error_class == "FeatureError"
    assert failed.error is not None
    assert failed.error.startswith("The features of AAPL|5m from 2026-11-17 09:00 on cannot be computed: ")
    assert failed.error.endswith("ZeroDivisionError: a price of nothing")
    (logged,) = world.query(
        "select symbol, timeframe, error_class, error from market_data.ingest_log where status = 'failed'"
    )
    assert list(logged.values()) == ["AAPL", "5m", "FeatureError", failed.error]
    (state,) = world.query(
        "select last_error, bar_count from market_data.series_state where symbol = 'AAPL' and timeframe = '5m'"
    )
    assert (state["last_error"], state["bar_count"]) == (failed.error, 0)

    run = failure(list(outcomes.values()))
    assert run is not None
    assert run.description == (f"1 of 10 series failed; the others are stored.\nAAPL|5m: FeatureError: {failed.error}")
    no_dagster = StoredDagsterState(tmp_path, "postgresql+psycopg2://nobody@127.0.0.1:1/nothing")
    report = scheduler_health(engine(world.database_url, as_of=world.now), no_dagster)
    assert [(one.symbol, one.timeframe, one.error) for one in report.recent_failures] == [("AAPL", "5m", failed.error)]

    monkeypatch.setattr(formulas, "features_from", whole)
    later = world.refresh("AAPL", "X:BTCUSD", history_days=3)
    assert not any(outcome.failed for outcome in later.values())
    assert later["AAPL|15m"].status == "unchanged"
    counts = {key: outcome.bar_count for key, outcome in later.items()}
    assert counts["AAPL|5m"] == 3 * counts["AAPL|15m"] > 500
    assert counts["AAPL|15m"] == outcomes["AAPL|15m"].bar_count
