"""Windows cut from records in memory are those that the database would give."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.reports.series_records import BAR_COLUMNS, Range, SeriesSummary
from market_data_pipeline.reports.series_records import BARS as BARS_SELECTION
from market_data_pipeline.serving.cache import SCOPE_KEY, Renewals, RequestKey, Shelf, Stock, packed, start_of
from market_data_pipeline.serving.database import Database
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.serving.series_answers import SeriesAnswers, Wish
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.serving.conftest import BARS, FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.serving.waiting import wait_until

FIRST: Final = datetime(2026, 3, 11, 9, 0, tzinfo=UTC)
COUNT: Final = 40
INSTANTS: Final = st.none() | st.integers(-600, 600 * COUNT).map(lambda s: FIRST + timedelta(seconds=s / 2))


async def _never() -> None:
    pytest.fail("nothing changed")


def stock_of(starts: list[datetime], whole: bool) -> Stock:
    lines = b"".join(f'{{"ts":"{ts:%Y-%m-%dT%H:%M:%SZ}","close":1}}\n'.encode() for ts in starts)
    oldest = f"{starts[0]:%Y-%m-%dT%H:%M:%S}".encode() if starts else b""
    held = SeriesSummary(tracked=True, features=None, bars=None, next_split=None)
    return Stock(Series("AAPL", Timeframe.M5), held, packed(lines), oldest, whole, time.monotonic() + 60, _never)


@given(INSTANTS, INSTANTS, st.integers(1, COUNT + 2), st.integers(0, COUNT))
def test_a_window_is_cut_as_from_all_records_or_not_at_all(
    start: datetime | None, end: datetime | None, limit: int, depth: int
) -> None:
    every = [FIRST + n * timedelta(minutes=5) for n in range(COUNT)]
    inside = [ts for ts in every if (start is None or ts >= start) and (end is None or ts < end)]
    expected = [f"{ts:%Y-%m-%dT%H:%M:%S}".encode() for ts in inside[-limit:]]
    kept = every[COUNT - depth :]

    cut = stock_of(kept, whole=depth == COUNT).cut(Range(start, end, limit))

    # What reaches further back than the stock is left to the database, and nothing else is.
    if cut is None:
        kept_inside = [ts for ts in kept if end is None or ts < end]
        assert depth < COUNT
        assert len(kept_inside) < limit
        assert start is None or not kept or start < kept[0]
    else:
        assert [start_of(record) for record in cut] == expected


def counted(api: Api, what: str) -> float:
    lines = api.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"market_data_cache_{what}_total")).split()[1])


def cuts(api: Api) -> float:
    return counted(api, "cuts")


@pytest.mark.parametrize(("path", "key"), [(FEATURES, "features"), (BARS, "bars")])
@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"limit": 7}, slice(-7, None)),
        ({"limit": 100, "start": "2026-03-11T10:00:00Z"}, slice(12, None)),
        ({"limit": 5, "end": "2026-03-11T10:00:00Z"}, slice(7, 12)),
        ({"start": "2026-03-11T09:10:00.5Z", "end": "2026-03-11T09:20:00Z"}, slice(3, 4)),
        ({"start": "2020-01-01", "end": "2021-01-01"}, slice(0, 0)),
    ],
)
def test_other_windows_of_a_series_are_cut_from_what_was_read(
    api: Api, seed: Seed, path: str, key: str, window: dict[str, Any], expected: slice
) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    api.wait_for_cache()
    every = api.get(f"{path}/AAPL", timeframe="5m", limit=10_000).json()[key]  # too many to be kept for others
    assert len(every) == COUNT
    api.get(f"{path}/AAPL", timeframe="5m")

    answer = api.get(f"{path}/AAPL", timeframe="5m", **window).json()

    assert cuts(api) == 1
    records = every[expected]
    assert (answer[key], answer["records_returned"]) == (records, len(records))
    assert answer["date_range"] == ({"start": records[0]["ts"], "end": records[-1]["ts"]} if records else None)


def test_a_commit_is_seen_by_whoever_asks_for_another_window(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    api.wait_for_cache()
    api.get(f"{BARS}/AAPL", timeframe="5m")

    seed.correct("AAPL", "5m", FIRST + timedelta(minutes=5 * (COUNT - 1)), 55.5, NOW)

    limit = iter(range(1, 10_000))
    wait_until(lambda: api.get(f"{BARS}/AAPL", timeframe="5m", limit=next(limit)).json()["bars"][-1]["close"] == 55.5)


def test_windows_of_the_past_are_read_from_the_database(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    api.wait_for_cache()
    answer = api.get(f"{FEATURES}/AAPL", timeframe="5m", end="2026-03-11T10:00:00Z").json()
    assert [answer["records_returned"], cuts(api)] == [12, 0]


def test_raw_and_adjusted_bars_are_kept_apart(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST - timedelta(days=1), count=COUNT)
    seed.split("AAPL", "2026-03-11", 1, 4)
    api.wait_for_cache()
    raw, adjusted = (
        [api.get(f"{BARS}/AAPL", timeframe="5m", adjusted=how, limit=n).json()["bars"][-1]["close"] for n in (3, 2)]
        for how in ("false", "true")
    )
    assert cuts(api) == 2
    assert raw == [4 * close for close in adjusted]


def test_what_is_asked_for_is_read_again_after_a_commit_before_anybody_asks(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    seed.series("MSFT", first=FIRST, count=COUNT)
    api.wait_for_cache()
    api.get(f"{BARS}/AAPL", timeframe="5m")
    api.get(f"{BARS}/MSFT", timeframe="5m")
    last = FIRST + timedelta(minutes=5 * (COUNT - 1))

    seed.correct("AAPL", "5m", last, 55.5, NOW)
    wait_until(lambda: counted(api, "renewals") == 1)
    seed.correct("AAPL", "5m", last, 66.6, NOW)  # nobody has asked since
    seed.correct("MSFT", "5m", last, 77.7, NOW)
    wait_until(lambda: counted(api, "renewals") == 2)

    answers = [api.get(f"{BARS}/{symbol}", timeframe="5m", limit=3).json() for symbol in ("MSFT", "AAPL")]
    assert [answer["bars"][-1]["close"] for answer in answers] == [77.7, 66.6]
    assert cuts(api) == 1  # of MSFT's; AAPL's had to be read


def test_names_that_nobody_follows_are_not_remembered(settings: Settings, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    shelf = Shelf(lambda: NOW)
    shelf.open()
    database = Database(settings.database_url, NOW)
    answers = SeriesAnswers(database, shelf, lambda: NOW, lambda: None, Renewals(lambda: None))

    async def ask(symbol: str) -> None:
        request = Request({"type": "http", "headers": [], SCOPE_KEY: RequestKey(f"{BARS}/{symbol}", b"", "")})
        wanted = Range(None, None, 3)
        series = Series(symbol, Timeframe.M5)
        wish = Wish(series, BARS, "bars", BAR_COLUMNS, BARS_SELECTION, wanted, lambda held: held.bars)
        await answers.respond(request, wish)

    with closing(database), start_blocking_portal() as portal:
        for number in range(3):
            with pytest.raises(Problem):
                portal.call(ask, f"NONE{number}")
        portal.call(ask, "AAPL")
    assert shelf.asked == {Series("AAPL", Timeframe.M5)}
