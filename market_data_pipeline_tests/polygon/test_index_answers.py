"""Answers about indices, which have no volume and days of their own, as the vendor publishes samples of them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest

from market_data_pipeline.domain.bars import array
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.polygon.wire import joined, read_bars

# The sample of the vendor's documentation for indices: 9 and 10 March 2023, which begin at 00:00 Chicago.
SAMPLE = {
    "count": 2,
    "queryCount": 2,
    "request_id": "0cf72b6da685bcd386548ffe2895904a",
    "results": [
        {"c": 11995.88, "h": 12340.45, "l": 11970.34, "o": 12230.84, "t": 1678341600000},
        {"c": 11830.28, "h": 12069.62, "l": 11789.86, "o": 12001.70, "t": 1678428000000},
    ],
    "status": "OK",
    "ticker": "I:NDX",
}
CALENDAR = calendar_for(AssetClass.INDEX)
DAYS = Interval(CALENDAR.midnight(date(2023, 3, 9)), CALENDAR.midnight(date(2023, 3, 11)))


def read(answer: dict[str, Any], symbol: str = "I:NDX", timeframe: Timeframe = Timeframe.D1) -> Any:
    page = read_bars(json.dumps(answer).encode(), symbol, timeframe, DAYS)
    return joined([page.rows], symbol, timeframe, DAYS)


def test_the_vendors_sample_is_read_as_days_of_new_york_without_volume() -> None:
    found = read(SAMPLE)
    assert found.bars["ts"].tolist() == [datetime(2023, 3, day, 5, tzinfo=UTC) for day in (9, 10)]
    assert found.bars["close"].tolist() == [11995.88, 11830.28]
    assert all(np.isnan(array(found.bars, name)).all() for name in ("volume", "vwap", "trades"))
    assert (found.refused, found.warnings) == ({}, ())


@pytest.mark.parametrize("stamp", [1678338000000, 1678341600000])
def test_a_day_may_also_begin_at_new_yorks_midnight(stamp: int) -> None:
    first, second = SAMPLE["results"]  # type: ignore[misc]
    found = read({**SAMPLE, "results": [{**first, "t": stamp}, second], "resultsCount": 2, "adjusted": False})  # type: ignore[dict-item]
    assert found.bars["ts"].iloc[0] == datetime(2023, 3, 9, 5, tzinfo=UTC)


def test_a_volume_that_is_sent_of_an_index_is_none() -> None:
    rows = [{**row, "v": 0, "vw": 0.0, "n": "?"} for row in SAMPLE["results"]]  # type: ignore[dict-item]
    assert np.isnan(array(read({**SAMPLE, "results": rows}).bars, "volume")).all()


def test_a_bar_of_an_index_that_contradicts_itself_refuses_its_day() -> None:
    first, second = SAMPLE["results"]  # type: ignore[misc]
    found = read({**SAMPLE, "results": [{**first, "h": 1.0}, {**second, "x": None}]})  # type: ignore[dict-item]
    assert list(found.refused) == [date(2023, 3, 9)]
    assert len(found.bars) == 1


def test_what_an_index_may_lack_others_may_not() -> None:
    rows = [{**row, "t": row["t"] - 3_600_000} for row in SAMPLE["results"]]  # type: ignore[index, operator]
    stock = {**SAMPLE, "ticker": "AAPL", "results": rows}
    with pytest.raises(DataError, match="adjusted = None"):
        read(stock, "AAPL")
    refused = read({**stock, "adjusted": False, "resultsCount": 2}, "AAPL").refused
    assert set(refused) == {date(2023, 3, 9), date(2023, 3, 10)}
    assert all("field v: is missing" in reason for reason in refused.values())


def test_a_count_that_is_stated_must_be_right() -> None:
    with pytest.raises(DataError, match="resultsCount is 3"):
        read({**SAMPLE, "resultsCount": 3})
