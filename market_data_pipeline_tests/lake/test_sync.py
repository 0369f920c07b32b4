"""The lake holds what the database does, after every kind of change and every kind of end of a sync."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from market_data_pipeline import read_bars
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import ConfigurationError, PipelineError
from market_data_pipeline.lake.state import KEY, read_state
from market_data_pipeline.lake.tables import TABLES
from market_data_pipeline.sandbox.bars import SplitRow
from market_data_pipeline_tests.lake.conftest import SOME, LakeWorld
from market_data_pipeline_tests.waiting import until

DAY = timedelta(days=1)


def test_what_is_synced_step_by_step_equals_a_fresh_copy_and_the_database(
    lake_world: LakeWorld, tmp_path: Path
) -> None:
    first = lake_world.sync()
    lake_world.assert_equal()
    assert first["bars_1h"].until == datetime(2025, 4, 1, tzinfo=NEW_YORK)
    assert lake_world.rows("bars_1h")["ts"].to_pylist()[-1] < first["bars_1h"].until
    assert [one for one in lake_world.sync().values() if one.rows_written or one.series] == []

    lake_world.sync(until_now=True)
    lake_world.assert_equal()
    lake_world.world.now += timedelta(hours=2)
    lake_world.refresh("AAPL", "MSFT", "NVDA")  # a new symbol between two that are held
    grown = lake_world.sync(until_now=True)
    lake_world.assert_equal()
    assert grown["bars_1h"].series == 3
    lake_world.world.now += DAY
    lake_world.refresh("AAPL", "MSFT", "NVDA")
    lake_world.sync()  # keeps what lies beyond the settled days right, and adds nothing there
    lake_world.assert_equal()

    step_by_step = {table.name: lake_world.rows(table.name) for table in SOME}
    fresh = LakeWorld(lake_world.world, lake_world.source, str(tmp_path / "fresh"))
    fresh.sync(until_now=True)
    ends = {held.until_us for held in read_state(lake_world.lake.open("bars_1h")).series.values()}  # type: ignore[union-attr]
    assert len(ends) == 1
    for name, rows in step_by_step.items():
        whole = fresh.rows(name)
        assert rows.equals(whole.filter(pc.field("ts") < pa.scalar(max(ends), rows["ts"].type))), name


def test_corrected_withdrawn_and_late_bars_and_splits_come_through(lake_world: LakeWorld) -> None:
    late = datetime(2025, 3, 4, 10, tzinfo=NEW_YORK), datetime(2025, 3, 4, 10, 30, tzinfo=NEW_YORK)
    lake_world.source.hidden.append(("TSLA", *late))
    lake_world.refresh("AAPL", "MSFT", "TSLA")
    lake_world.sync(TABLES)
    lake_world.assert_equal(TABLES)
    before = lake_world.rows("bars_5m")

    at, gone = datetime(2025, 2, 25, 11, tzinfo=NEW_YORK), datetime(2025, 3, 6, 15, tzinfo=NEW_YORK)
    lake_world.source.hidden[:] = [("AAPL", gone, gone + timedelta(minutes=5))]
    lake_world.source.volumes["MSFT", at] = 4_711.0
    lake_world.source.more_splits.append(SplitRow("AAPL", date(2025, 3, 10), 1.0, 2.0))
    lake_world.world.now += DAY
    lake_world.refresh("AAPL", "MSFT", "TSLA", full=True)
    changed = lake_world.sync(TABLES)
    lake_world.assert_equal(TABLES)
    rows = lake_world.rows("bars_5m")
    now = {(row["symbol"], row["ts"]): row for row in rows.to_pylist()}
    then = {(row["symbol"], row["ts"]): row for row in before.to_pylist()}
    assert now["MSFT", at]["volume"] == 4_711.0
    assert ("AAPL", gone) in then
    assert ("AAPL", gone) not in now
    assert ("TSLA", late[0]) in now
    assert ("TSLA", late[0]) not in then
    revisions = {(row["symbol"], row["ts"]) for row in lake_world.rows("bar_revisions_5m").to_pylist()}
    assert revisions == {("MSFT", at), ("AAPL", gone)}
    assert changed["splits"].rows_written
    (split,) = [row for row in lake_world.rows_of_splits() if row["symbol"] == "AAPL" and row["split_to"] == 2.0]
    assert split["in_force_from"] == datetime(2025, 3, 10, tzinfo=NEW_YORK)
    # Features of the whole series follow from the split; bars stay as they were traded.
    assert changed["features_5m"].months == ("2025-02", "2025-03", "2025-04")
    assert now["AAPL", at]["close"] == then["AAPL", at]["close"]


def test_a_change_rewrites_only_the_months_in_which_it_is(lake_world: LakeWorld) -> None:
    lake_world.sync()
    with lake_world.world.connect() as connection:
        connection.execute(
            """
            insert into market_data.ingest_log
            (run_id, symbol, timeframe, started_at, finished_at, status, changed_from, changed_until)
            values ('run', 'AAPL', '1h', now(), now(), 'ok', '2025-03-04', '2025-03-05')
            """
        )
    done = lake_world.sync()
    assert {name: one.months for name, one in done.items() if one.months} == {
        "bars_1h": ("2025-03",), "features_1h": ("2025-03",), "bar_revisions_1h": ("2025-03",),
    }  # fmt: skip
    assert done["bars_1h"].series == 1
    lake_world.assert_equal()
    with lake_world.world.connect() as connection:  # as code wrote it that did not know where it changed something
        connection.execute(
            """
            insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status)
            values ('run', 'AAPL', '1h', now(), now(), 'ok')
            """
        )
    assert lake_world.sync()["bars_1h"].months == ("2025-02", "2025-03", "2025-04")
    lake_world.assert_equal()


def killed_sync(lake_world: LakeWorld, pattern: str, count: int) -> None:
    """Run a sync as a process and kill it once so many more files of the lake match the pattern."""
    code = (
        "from market_data_pipeline.settings import load_settings; from market_data_pipeline.lake.sync import sync;"
        "from market_data_pipeline_tests.lake.conftest import SOME; sync(load_settings(), tables=SOME, until_now=True)"
    )
    environment = {
        **os.environ,
        "DATABASE_URL": lake_world.world.database_url,
        "MARKET_DATA_LAKE_URL": lake_world.url,
        "MARKET_DATA_AS_OF": lake_world.world.now.isoformat(),
    }
    folder = Path(lake_world.url)
    begun = len(list(folder.glob(pattern)))
    running = subprocess.Popen([sys.executable, "-c", code], env=environment)
    until(lambda: running.poll() is not None or len(list(folder.glob(pattern))) >= begun + count, every=0.001)
    running.kill()
    running.wait()


def test_a_sync_that_is_killed_at_any_moment_is_completed_by_the_next(lake_world: LakeWorld) -> None:
    # A first file is written and belongs to nothing; half of the tables are committed.
    for pattern, count in (("*/month=*/*.parquet", 1), ("*/_delta_log/*[1-9].json", 3)):
        killed_sync(lake_world, pattern, count)
        lake_world.world.now += timedelta(minutes=30)
        lake_world.refresh("AAPL", "MSFT")
    lake_world.sync(until_now=True)
    lake_world.assert_equal()
    for table in SOME:
        delta = lake_world.lake.open(table.name)
        assert delta is not None
        held = {Path(file).name for file in delta.file_uris()}
        assert held <= {file.name for file in (Path(lake_world.url) / table.name).rglob("*.parquet")}


def test_two_syncs_at_once_write_everything_once(lake_world: LakeWorld) -> None:
    failures: list[PipelineError] = []

    def run() -> None:
        try:
            lake_world.sync()
        except PipelineError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    lake_world.assert_equal()


def test_a_lost_state_and_a_restored_database_lead_to_a_whole_copy(lake_world: LakeWorld) -> None:
    table = SOME[1]
    lake_world.sync((table,))
    (log,) = (Path(lake_world.url) / table.name / "_delta_log").glob("*1.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line.get("commitInfo", {}).pop(KEY, None)
    log.write_text("\n".join(map(json.dumps, lines)))
    assert read_state(lake_world.lake.open(table.name)) is None
    assert lake_world.sync((table,))[table.name].series == 2
    lake_world.assert_equal((table,))

    with lake_world.world.connect() as connection:  # another database, in which the same ids mean something else
        connection.execute("alter table market_data.ingest_log disable trigger all")
        connection.execute("update market_data.ingest_log set recorded_at = recorded_at - interval '1 day'")
        connection.execute("update market_data.bars set volume = volume + 1 where timeframe = '1d'")
    assert lake_world.sync((table,))[table.name].series == 2
    lake_world.assert_equal((table,))


def test_symbols_that_the_database_does_not_have_leave_the_lake(lake_world: LakeWorld) -> None:
    lake_world.sync()
    with lake_world.world.connect() as connection:
        for relation in ("bars", "features", "coverage", "series_state"):
            connection.execute(f"delete from market_data.{relation} where symbol = 'AAPL'")
    lake_world.sync()
    lake_world.assert_equal()
    assert set(lake_world.rows("bars_1d")["symbol"].to_pylist()) == {"MSFT"}


def test_a_fault_in_the_lake_is_found_and_repaired(lake_world: LakeWorld) -> None:
    table = SOME[0]
    lake_world.sync((table,))
    delta = lake_world.lake.open(table.name)
    assert delta is not None
    delta.delete("symbol = 'AAPL' and ts >= '2025-03-10T00:00:00Z' and month = '2025-03'")
    (found,) = lake_world.verify((table,))
    assert not found.equal
    (difference,) = found.sample
    assert (difference.symbol, difference.month) == ("AAPL", "2025-03")
    assert difference.rows_lake < difference.rows_database
    lake_world.sync((table,), full=True)
    lake_world.assert_equal((table,))


def test_bars_of_another_source_are_refused(lake_world: LakeWorld) -> None:
    lake_world.sync((SOME[1],))
    with lake_world.world.connect() as connection:
        connection.execute("update market_data.source set kind = 'vendor', host = 'api.polygon.io'")
    with pytest.raises(ConfigurationError, match="holds bars of another source"):
        lake_world.sync((SOME[1],))


def test_a_place_that_cannot_be_used_is_named_without_its_options(lake_world: LakeWorld, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    lake_world.url = str(tmp_path / "occupied")
    with pytest.raises((ConfigurationError, OSError), match="occupied"):
        lake_world.sync((SOME[1],))


def test_files_are_written_and_read_through_delta_rs_where_the_place_is_no_folder_of_ours(
    lake_world: LakeWorld, tmp_path: Path
) -> None:
    """As in an object store: this URL is a folder that only delta-rs recognizes as one."""
    (tmp_path / "remote").mkdir()
    lake_world.url = f"file://localhost{tmp_path}/remote"
    assert lake_world.lake.local is None
    lake_world.sync(SOME[:2])
    lake_world.sync(SOME[:2], until_now=True)
    lake_world.assert_equal(SOME[:2])
    (file, *_) = (tmp_path / "remote" / SOME[0].name).glob("month=*/*.parquet")
    assert file.stat().st_size
    options = {"settings": lake_world.settings, "as_arrow": True}
    assert read_bars("AAPL", "1h", source="lake", **options).equals(
        read_bars("AAPL", "1h", source="database", **options)
    )
