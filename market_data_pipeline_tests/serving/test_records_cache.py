"""Windows cut from records in memory are those that the database would give."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.reports.series_records import BAR_COLUMNS, Range, SeriesSummary
from market_data_pipeline.serving.records import Records
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.serving.conftest import BARS, FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.waiting import until

FIRST: Final = datetime(2026, 3, 11, 9, 0, tzinfo=UTC)
COUNT: Final = 40
INSTANTS: Final = st.none() | st.integers(-600, 600 * COUNT).map(lambda s: FIRST + timedelta(seconds=s / 2))


def records_of(starts: list[datetime], *, is_complete: bool) -> Records:
    rows = [(ts, 1.0, 1.0, 1.0, 1.0, 1.0, None, 1) for ts in starts]
    summary = SeriesSummary(tracked=True, features=None, bars=None, next_action=None, futile=None)
    return Records.of(Series("AAPL", Timeframe.M5), summary, BAR_COLUMNS, rows, is_complete=is_complete)


@laws
@given(INSTANTS, INSTANTS, st.integers(1, COUNT + 2), st.integers(0, COUNT))
def test_a_window_is_cut_as_from_all_records_or_not_at_all(
    start: datetime | None, end: datetime | None, limit: int, depth: int
) -> None:
    every = [FIRST + n * timedelta(minutes=5) for n in range(COUNT)]
    inside = [ts for ts in every if (start is None or ts >= start) and (end is None or ts < end)]
    expected = [f"{ts:%Y-%m-%dT%H:%M:%SZ}" for ts in inside[-limit:]]
    kept = every[COUNT - depth :]

    page = records_of(kept, is_complete=depth == COUNT).cut(Range(start, end, limit))

    # Only a window that may reach further back than the records is left to the database.
    if page is None:
        kept_inside = [ts for ts in kept if end is None or ts < end]
        assert depth < COUNT
        assert len(kept_inside) <= limit
        assert start is None or not kept or start < kept[0]
    else:
        assert [record["ts"] for record in json.loads(page.content)] == expected
        assert (page.size, page.is_cut) == (len(expected), len(inside) > limit)
        bounds = (page.first, page.last) if expected else None
        assert bounds == ((inside[-limit:][0], inside[-1]) if inside else None)


def cuts(api: Api) -> float:
    lines = api.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("market_data_cache_cuts_total")).split()[1])


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
    every = api.get(f"{path}/AAPL", timeframe="5m", limit=10_000).json()[key]  # too many to be kept for cutting
    assert len(every) == COUNT
    api.get(f"{path}/AAPL", timeframe="5m")

    answer = api.get(f"{path}/AAPL", timeframe="5m", **window).json()

    assert cuts(api) == 1
    records = every[expected]
    assert (answer[key], answer["records_returned"]) == (records, len(records))
    assert answer["date_range"] == ({"start": records[0]["ts"], "end": records[-1]["ts"]} if records else None)


def test_a_commit_is_seen_in_the_next_window(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    api.wait_for_cache()
    api.get(f"{BARS}/AAPL", timeframe="5m")

    seed.correct("AAPL", "5m", FIRST + timedelta(minutes=5 * (COUNT - 1)), 55.5, NOW)

    limit = iter(range(1, 10_000))
    until(lambda: api.get(f"{BARS}/AAPL", timeframe="5m", limit=next(limit)).json()["bars"][-1]["close"] == 55.5)


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
