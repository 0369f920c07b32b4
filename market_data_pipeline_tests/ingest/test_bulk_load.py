"""Bars from the vendor's flat files: the same series as by REST, by the same plan, checks and commits."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import requests
from pydantic import SecretStr

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.identity import Identity, Tenure
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.flat_files import Dataset, FileAccess, FileVersion, FlatFiles, key_of
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.object_store import Bucket, object_store

TUESDAY = datetime(2026, 3, 10, 16, 0, 30, tzinfo=NEW_YORK)  # Monday's files were published at 11:00
SATURDAY = datetime(2026, 3, 14, 20, 0, 30, tzinfo=NEW_YORK)  # so were Friday's: no day is left for REST
THURSDAY, FRIDAY = date(2026, 3, 12), date(2026, 3, 13)
_VALUES = "open, high, low, close, volume, trades"


def bars(world: World, where: str = "true", columns: str = _VALUES) -> list[tuple[object, ...]]:
    rows = world.query(
        f"select symbol, timeframe, ts, {columns} from market_data.bars where {where} order by symbol, timeframe, ts"
    )
    return [tuple(row.values()) for row in rows]


def features(world: World) -> list[tuple[object, ...]]:
    rows = world.query("select * from market_data.features order by symbol, timeframe, ts")
    return [tuple(value for name, value in row.items() if name != "features_computed_at") for row in rows]


def count(world: World) -> int:
    return int(requests.get(f"{world.base_url}/_sandbox/status", timeout=60).json()["requests"])


def errors(world: World) -> list[str]:
    return [
        str(row["error"]) for row in world.query("select error from market_data.ingest_log where error is not null")
    ]


class Mirror:
    """A bucket with the sandbox's files of a week, each as this test wants it."""

    def __init__(self, bucket: Bucket, world: World) -> None:
        key = SecretStr(SANDBOX_KEY)
        self.bucket, self.world = bucket, world
        self.sandbox = FlatFiles(FileAccess(world.base_url, key, key))

    def fill(self, first: date, last: date) -> None:
        for dataset in Dataset:
            for version in self.sandbox.listing(dataset, first, last).values():
                self.bucket.put(version.key, self.content(version))

    def content(self, version: FileVersion) -> bytes:
        into = io.BytesIO()
        self.sandbox.download(version, into)
        return into.getvalue()

    def edit(self, dataset: Dataset, day: date, change: Callable[[list[str]], list[str]]) -> None:
        (version,) = self.sandbox.listing(dataset, day, day).values()
        header, *rows = gzip.decompress(self.content(version)).decode().splitlines()
        text = "\n".join([header, *change(rows), ""])
        self.bucket.put(version.key, gzip.compress(text.encode()))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with object_store() as served:
        yield served


@pytest.fixture
def mirrored(make_world: MakeWorld, bucket: Bucket, tmp_path: Path) -> tuple[World, Mirror]:
    """A world whose files of a week lie in a real object store, and these files."""
    world = make_world(SATURDAY)
    mirror = Mirror(bucket, world)
    mirror.fill(date(2026, 3, 11), FRIDAY)
    world.files_folder, world.files_url = tmp_path, bucket.url
    return world, mirror


def of_ticker(ticker: str, change: Callable[[list[str]], list[str]]) -> Callable[[list[str]], list[str]]:
    """Return a change of one ticker's rows; a row is a list of its values."""

    def changed(rows: list[str]) -> list[str]:
        return [",".join(change(row.split(","))) if row.startswith(f"{ticker},") else row for row in rows]

    return changed


def with_value(column: int, value: str) -> Callable[[list[str]], list[str]]:
    return lambda row: [*row[:column], value, *row[column + 1 :]]


def test_both_ways_in_store_the_same_bars_and_features_and_rest_adds_the_vwap(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(TUESDAY)
    world.files_folder = tmp_path
    before = count(world)
    assert {one.status for one in world.refresh("AAPL", "KO").values()} == {"ok"}, errors(world)
    by_file, made = bars(world), features(world)
    settled = "timeframe in ('5m', '1d') and ts < '2026-03-10 04:00Z'"
    assert {row[3:] for row in bars(world, settled, "vwap")} == {(None,)}
    sources = world.query(
        "select distinct c.session_date < '2026-03-10' as settled, f.dataset is not null as by_file, c.timeframe"
        " from market_data.coverage as c left join market_data.flat_files as f on f.id = c.file_id"
        " where c.status <> 'clamped' order by 1, 3"
    )
    assert [tuple(row.values()) for row in sources] == [(False, False, "5m"), (True, True, "1d"), (True, True, "5m")]
    assert len(list(tmp_path.rglob("*.arrow"))) == 2 * 6, "each file is read once, whoever needs it"
    assert count(world) > before

    world.files_folder = None
    world.refresh("AAPL", "KO", full=True)
    assert bars(world) == by_file
    assert features(world) == made
    assert (None,) not in {row[3:] for row in bars(world, "true", "vwap")}
    vwaps = bars(world, "true", "vwap")

    world.files_folder = tmp_path
    again = world.refresh("AAPL", "KO", full=True)
    assert {one.status for one in again.values()} == {"unchanged"}, "a file without a vwap takes none away"
    assert bars(world, "true", "vwap") == vwaps


def test_a_replaced_file_is_read_again_and_what_differs_is_a_correction(mirrored: tuple[World, Mirror]) -> None:
    world, mirror = mirrored
    world.refresh("AAPL", "KO", history_days=3)
    held = bars(world)
    assert {one.status for one in world.refresh("AAPL", "KO", history_days=3).values()} == {"unchanged"}
    minutes = [row for row in held if row[:2] == ("KO", "5m")]
    first_us = int(minutes[-1][2].timestamp()) * 10**9  # type: ignore[attr-defined]
    volume = of_ticker("KO", lambda row: with_value(1, "777777")(row) if row[6] == str(first_us) else row)
    mirror.edit(Dataset.MINUTES, FRIDAY, volume)
    for listed in world.files_folder.rglob("*.json"):  # type: ignore[union-attr]
        listed.unlink()  # a list is kept for a quarter of an hour
    world.now += timedelta(hours=1)
    outcomes = world.refresh("AAPL", "KO", history_days=3)
    assert {key for key, one in outcomes.items() if one.status == "ok"} == {"KO|5m", "KO|15m", "KO|1h", "KO|4h"}
    changed = [(old, new) for old, new in zip(held, bars(world), strict=True) if old != new]
    assert {(new[0], new[1]) for _, new in changed} == {("KO", "5m"), ("KO", "15m"), ("KO", "1h"), ("KO", "4h")}
    revised = world.query("select symbol, timeframe, volume from market_data.bar_revisions where timeframe = '5m'")
    (old,) = [old for old, new in changed if new[1] == "5m"]
    assert [tuple(row.values()) for row in revised] == [("KO", "5m", old[7])]
    versions = world.query("select count(*) as n from market_data.flat_files where session_date = %s", FRIDAY)
    assert versions == [{"n": 3}], "two of minutes, one of days"


def test_bad_rows_refuse_their_tickers_day_and_a_cut_file_its_day_and_the_rest_comes_in(
    mirrored: tuple[World, Mirror],
) -> None:
    world, mirror = mirrored

    def spoilt(rows: list[str]) -> list[str]:
        stranger = [row for row in rows if row.startswith("MSFT,")][:3]
        return of_ticker("KO", with_value(5, "-1"))([*rows, *stranger, "ZZZZ,what,is,this"])

    mirror.edit(Dataset.MINUTES, THURSDAY, spoilt)
    key = key_of(Dataset.DAYS, FRIDAY)
    whole = mirror.content(next(iter(mirror.sandbox.listing(Dataset.DAYS, FRIDAY, FRIDAY).values())))
    mirror.bucket.put(key, whole[: len(whole) // 2])
    outcomes = world.refresh("AAPL", "KO", history_days=3)
    assert not [
        one.error
        for one in outcomes.values()
        if one.failed and one.series.symbol == "AAPL" and one.series.timeframe != Timeframe.D1
    ]
    refused = world.query(
        "select symbol, timeframe, session_date, reason from market_data.coverage where reason is not null"
        " order by 1, 2"
    )
    assert [(row["symbol"], row["timeframe"], row["session_date"]) for row in refused] == [
        ("AAPL", "1d", FRIDAY), ("KO", "1d", FRIDAY), ("KO", "5m", THURSDAY),
    ]  # fmt: skip
    assert f"{key} cannot be used (Truncated compressed stream)" in str(refused[0]["reason"])
    assert "a price is not above 0" in str(refused[2]["reason"])
    days = world.query(
        "select distinct symbol, timeframe, ts::date as day from market_data.bars where timeframe in ('5m', '1d')"
    )
    held = {(row["symbol"], row["timeframe"], row["day"]) for row in days}
    assert ("AAPL", "5m", THURSDAY) in held
    assert ("KO", "5m", FRIDAY) in held
    assert ("KO", "5m", THURSDAY) not in held
    assert ("KO", "1d", THURSDAY) in held
    # The next refresh asks REST for them, which mends them.
    world.files_folder, world.now = None, world.now + timedelta(hours=7)
    world.refresh("AAPL", "KO", history_days=3)
    assert not world.query("select from market_data.coverage where reason is not null")


def test_a_renamed_security_is_read_under_the_ticker_of_the_day(mirrored: tuple[World, Mirror]) -> None:
    world, _ = mirrored
    world.overrides = {"KO": Identity("test", (Tenure("AAPL", None, FRIDAY), Tenure("KO", FRIDAY, None)), "override")}
    world.refresh("KO", history_days=3)
    world.refresh("AAPL", history_days=3)
    closes = {(row[0], row[2]): row[3] for row in bars(world, "timeframe = '1d'", "close")}
    starts = sorted({ts for _, ts in closes})
    assert closes["KO", starts[0]] == closes["AAPL", starts[0]]
    assert closes["KO", starts[-1]] != closes["AAPL", starts[-1]]


def test_no_file_is_read_before_its_day_had_settled_on_the_clock(mirrored: tuple[World, Mirror]) -> None:
    world, _ = mirrored
    world.now = datetime(2026, 3, 13, 10, 0, tzinfo=NEW_YORK)
    world.refresh("KO", timeframes=(Timeframe.D1,), history_days=3)
    read = world.query("select session_date from market_data.coverage where file_id is not null order by 1")
    assert [row["session_date"] for row in read] == [date(2026, 3, 11)]


def test_days_that_came_one_by_one_leave_what_a_whole_load_leaves(mirrored: tuple[World, Mirror]) -> None:
    world, _ = mirrored
    for now, days in ((datetime(2026, 3, 12, 11, 5, tzinfo=NEW_YORK), 1), (SATURDAY, 3)):
        world.now = now
        world.refresh("KO", history_days=days)
    by_day, made = bars(world, "true", f"{_VALUES}, vwap"), features(world)
    with world.connect() as connection:
        connection.execute("truncate market_data.records, market_data.coverage")
        connection.execute("delete from market_data.series_state")
    world.refresh("KO", history_days=3)
    settled = [row[:-1] for row in bars(world, "true", f"{_VALUES}, vwap")]
    assert [row[:-1] for row in by_day] == settled
    pd.testing.assert_frame_equal(pd.DataFrame(made), pd.DataFrame(features(world)), rtol=1e-9, atol=0)
