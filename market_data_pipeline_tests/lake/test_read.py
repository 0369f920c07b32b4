"""What is read from the lake is what is read from the database, by our readers and by others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import market_data_pipeline
from market_data_pipeline import read_bars, read_features, read_records
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.lake.tables import TABLES
from market_data_pipeline.reading import lake as reading_lake
from market_data_pipeline.sandbox.bars import SplitRow
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.lake.conftest import LakeWorld, serving

AT = datetime(2025, 2, 25, 11, tzinfo=NEW_YORK)
GONE = datetime(2025, 3, 6, 15, tzinfo=NEW_YORK)
BOTH = ["MSFT", "AAPL"]


@pytest.fixture(scope="module")
def synced(postgres_url: str, filled: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LakeWorld]:
    """A lake up to the present, after a split became known, a bar was corrected and one withdrawn."""
    name = copy_database(postgres_url, filled)
    with serving(with_database(postgres_url, name), tmp_path_factory.mktemp("lake")) as made:
        made.source.hidden.append(("AAPL", GONE, GONE + timedelta(minutes=5)))
        made.source.volumes["MSFT", AT] = 4_711.0
        made.source.more_splits.append(SplitRow("AAPL", date(2025, 3, 10), 1.0, 2.0))
        made.world.now += timedelta(days=1)
        made.refresh("AAPL", "MSFT", full=True)
        made.world.now += timedelta(hours=1)
        made.refresh("AAPL", "MSFT", full=True)  # what was in doubt is taken in at the second look
        made.sync(TABLES, until_now=True)
        yield made
    drop_database(postgres_url, name)


READS: list[Any] = [
    lambda **o: read_bars("AAPL", "5m", **o),
    lambda **o: read_bars(BOTH, "1d", adjusted=False, **o),
    lambda **o: read_bars(BOTH, ["1h", "1d"], start="2025-03-03", end="2025-03-20", columns=["volume", "trades"], **o),
    lambda **o: read_bars(BOTH, "5m", as_of=datetime(2025, 4, 1, 13, tzinfo=NEW_YORK), **o),
    lambda **o: read_bars(BOTH, "5m", as_of=datetime(2025, 4, 2, 12, 30, tzinfo=NEW_YORK), **o),
    lambda **o: read_bars(BOTH, "5m", as_of=datetime(2025, 4, 2, 23, tzinfo=NEW_YORK), **o),
    lambda **o: read_bars("MSFT", "5m", start="2025-02-25", end="2025-02-26", **o),
    lambda **o: read_bars("MSFT", "1d", start="2001-01-01", end="2001-02-01", **o),
    lambda **o: read_features(BOTH, "15m", **o),
    lambda **o: read_features("AAPL", ["1d", "4h"], columns=["trend_regime", "hh", "atr"], **o),
    lambda **o: read_records(BOTH, "1h", **o),
]


@pytest.mark.parametrize("number", range(len(READS)))
def test_the_lake_answers_as_the_database_does(synced: LakeWorld, number: int) -> None:
    read = READS[number]
    settings = synced.settings
    stored = read(settings=settings, source="database", as_arrow=True)
    assert read(settings=settings, source="lake", as_arrow=True).equals(stored)
    assert bool(len(stored)) is (number != 7)
    pd.testing.assert_frame_equal(read(settings=settings, source="lake"), read(settings=settings, source="database"))


def test_what_was_corrected_and_withdrawn_is_in_the_answers_of_then(synced: LakeWorld) -> None:
    then = {"as_of": datetime(2025, 4, 1, 13, tzinfo=NEW_YORK), "settings": synced.settings, "source": "lake"}
    now = {"settings": synced.settings, "source": "lake"}
    assert read_bars("MSFT", "5m", **now).loc[AT, "volume"] == 4_711.0
    assert read_bars("MSFT", "5m", **then).loc[AT, "volume"] != 4_711.0
    assert GONE not in read_bars("AAPL", "5m", **now).index
    assert GONE in read_bars("AAPL", "5m", **then).index
    ratio = read_bars("AAPL", "5m", **then).loc[AT, "close"] / read_bars("AAPL", "5m", **now).loc[AT, "close"]
    assert ratio == pytest.approx(2.0)


def test_pieces_from_the_lake_are_its_answer(synced: LakeWorld) -> None:
    options: dict[str, Any] = {"settings": synced.settings, "source": "lake", "as_arrow": True}
    parts = list(market_data_pipeline.iter_bars(BOTH, ["1h", "1d"], rows=100, **options))
    assert max(map(len, parts)) <= 100
    assert pa.concat_tables(parts).equals(read_bars(BOTH, ["1h", "1d"], **options))


def test_auto_takes_the_lake_only_while_it_holds_the_same(synced: LakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    from market_data_pipeline.reading.selection import select

    settings = synced.settings
    selection = select("bars", BOTH, "5m", None, None)
    assert reading_lake.nearer_lake(selection, settings) is None  # so few rows come from the database sooner
    monkeypatch.setattr(reading_lake, "NEAR_ROWS", 100)  # what is asked for counts, not how much is held
    assert reading_lake.nearer_lake(select("bars", "AAPL", "5m", "2025-04-02", None), settings) is None
    monkeypatch.setattr(reading_lake, "NEAR_ROWS", 1)
    assert reading_lake.nearer_lake(selection, settings) is not None
    assert read_bars(BOTH, "5m", settings=settings, as_arrow=True).equals(
        read_bars(BOTH, "5m", settings=settings, as_arrow=True, source="database")
    )
    with synced.world.connect() as connection:
        connection.execute(
            "insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status)"
            " values ('run', 'AAPL', '5m', now(), now(), 'ok')"
        )
    assert reading_lake.nearer_lake(selection, settings) is None
    assert reading_lake.nearer_lake(select("bars", "MSFT", "5m", None, None), settings) is not None
    assert reading_lake.nearer_lake(select("bars", "MSFT", "5m", None, None), load_without_lake(synced)) is None


def load_without_lake(synced: LakeWorld) -> Any:
    return load_settings(database_url=synced.world.database_url, as_of=synced.world.now, lake_url=synced.url + "-none")


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        (lambda **o: read_bars("NVDA", "1d", **o), "holds no bars_1d of 'NVDA'; `market-data lake sync` adds"),
        (lambda **o: read_bars("AAPL", "1d", end="2025-05-01", **o), "up to 2025-04-02 .* and end is later"),
    ],
)
def test_what_the_lake_does_not_hold_is_refused(synced: LakeWorld, read: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read(settings=synced.settings, source="lake")


def test_a_lake_that_was_never_synced_is_named(synced: LakeWorld) -> None:
    with pytest.raises(UsageError, match="has no bars_1d yet: `market-data lake sync` writes it"):
        read_bars("AAPL", "1d", settings=load_without_lake(synced), source="lake")


def test_a_commit_is_seen_by_the_next_read_of_the_same_process(lake_world: LakeWorld) -> None:
    def volume() -> float:
        return float(read_bars("MSFT", "1h", settings=lake_world.settings, source="lake").loc[AT, "volume"])

    lake_world.sync()
    before = volume()
    lake_world.source.volumes["MSFT", AT] = 4_711.0
    lake_world.world.now += timedelta(days=1)
    lake_world.refresh("MSFT", full=True)
    lake_world.sync()
    after = volume()
    assert after != before
    shutil.rmtree(lake_world.url)
    with pytest.raises(UsageError, match="has no bars_1h yet"):
        volume()
    lake_world.sync()  # its versions have the numbers of the first ones
    assert volume() == after


def test_files_that_another_program_wrote_in_its_own_way_are_read(synced: LakeWorld, tmp_path: Path) -> None:
    shutil.copytree(synced.url, tmp_path / "lake")
    for file in (tmp_path / "lake" / "bars_5m").rglob("*.parquet"):
        rows = pq.ParquetFile(file).read().sort_by([("symbol", "descending"), ("ts", "ascending")])
        pq.write_table(rows, file, row_group_size=100, write_statistics=False)
    settings = load_settings(
        database_url=synced.world.database_url, as_of=synced.world.now, lake_url=str(tmp_path / "lake")
    )
    for options in ({}, {"start": "2025-03-03", "end": "2025-03-20"}):
        read = read_bars(BOTH, "5m", settings=settings, source="lake", as_arrow=True, **options)
        assert read.equals(read_bars(BOTH, "5m", settings=synced.settings, source="database", as_arrow=True, **options))


def by_protocol_alone(folder: Path) -> pa.Table:
    """Read a Delta table by what its log says: the files that were added and not removed since."""
    held: dict[str, dict[str, str]] = {}
    for commit in sorted((folder / "_delta_log").glob("*.json")):
        for line in commit.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                held[unquote(action["add"]["path"])] = action["add"]["partitionValues"]
            elif "remove" in action:
                del held[unquote(action["remove"]["path"])]
    assert all(values == {"month": path.split("/")[0].removeprefix("month=")} for path, values in held.items())
    return ds.dataset([str(folder / path) for path in held], format="parquet").to_table()


def test_other_readers_find_the_same_rows(synced: LakeWorld) -> None:
    folder = Path(synced.url) / "bars_5m"
    rows = synced.world.query(
        "select symbol, count(*) as n, sum(volume) as volume, min(ts) as first from market_data.bars"
        " where timeframe = '5m' group by symbol order by symbol"
    )
    expected = [tuple(row.values()) for row in rows]
    found = by_protocol_alone(folder)
    grouped = found.group_by("symbol").aggregate([("ts", "count"), ("volume", "sum"), ("ts", "min")]).sort_by("symbol")
    assert [tuple(row.values()) for row in grouped.to_pylist()] == [
        (symbol, n, pytest.approx(volume), first) for symbol, n, volume, first in expected
    ]
    delta = synced.lake.open("bars_5m")
    assert delta is not None
    frame = delta.to_pandas()
    assert frame.groupby("symbol").size().to_dict() == {symbol: n for symbol, n, *_ in expected}
    of_polars = pl.scan_delta(str(folder)).group_by("symbol").agg(pl.len()).sort("symbol").collect()
    assert of_polars.rows() == [(symbol, n) for symbol, n, *_ in expected]
    arrow = delta.to_pyarrow_dataset()
    of_duckdb = duckdb.sql("select symbol, count(*) from arrow group by symbol order by symbol").fetchall()
    assert of_duckdb == of_polars.rows()
    assert arrow.schema.field("ts").type == pa.timestamp("us", tz="UTC")


def test_each_file_is_sorted_and_says_what_it_holds(synced: LakeWorld) -> None:
    for name in ("bars_5m", "features_5m", "bar_revisions_5m"):
        delta = synced.lake.open(name)
        assert delta is not None
        for file in pa.table(delta.get_add_actions(flatten=True)).to_pylist():
            rows = ds.dataset(str(Path(synced.url) / name / file["path"]), format="parquet").to_table()
            keys = list(zip(rows["symbol"].to_pylist(), rows["ts"].to_pylist(), strict=True))
            assert keys == sorted(keys)
            assert len(keys) == file["num_records"]
            assert (min(keys)[0], max(keys)[0]) == (file["min.symbol"], file["max.symbol"])
            assert pc.min_max(rows["ts"]).as_py() == {"min": file["min.ts"], "max": file["max.ts"]}
            assert {f"{ts:%Y-%m}" for _, ts in keys} == {file["partition.month"]}


def test_a_group_of_rows_holds_whole_series(synced: LakeWorld) -> None:
    groups = []
    for file in (Path(synced.url) / "features_5m").rglob("*.parquet"):
        parquet = pq.ParquetFile(file)
        groups += [parquet.read_row_group(number, ["symbol"]) for number in range(parquet.num_row_groups)]
        held = [set(group["symbol"].to_pylist()) for group in groups[-parquet.num_row_groups :]]
        assert sum(map(len, held)) == len(set.union(*held))
    assert any(len(group) > 2_000 for group in groups)
