"""What the vendor says of trading days, as its documentation shows it and as it may be damaged."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from market_data_pipeline.domain.announcements import Announcement, DayStatus
from market_data_pipeline.domain.errors import DataError, UnreadableAnswerError
from market_data_pipeline.polygon.market_status import read_is_closed, read_upcoming
from market_data_pipeline_tests.polygon.faulty_server import FaultyServer, send_json
from market_data_pipeline_tests.polygon.vendor import QuickClient

THANKSGIVING = {"date": "2020-11-26", "name": "Thanksgiving", "status": "closed"}
AFTER = {
    "date": "2020-11-27", "name": "Thanksgiving", "status": "early-close",
    "open": "2020-11-27T14:30:00.000Z", "close": "2020-11-27T18:00:00.000Z",
}  # fmt: skip
UPCOMING = [{"exchange": name, **day} for day in (THANKSGIVING, AFTER) for name in ("NYSE", "NASDAQ", "OTC")]
NOW: dict[str, Any] = {
    "afterHours": True,
    "currencies": {"crypto": "open", "fx": "open"},
    "earlyHours": False,
    "exchanges": {"nasdaq": "extended-hours", "nyse": "extended-hours", "otc": "closed"},
    "market": "extended-hours",
    "serverTime": "2020-11-10T17:37:37-05:00",
}
DAYS = (
    Announcement(date(2020, 11, 26), DayStatus.CLOSED, "Thanksgiving"),
    Announcement(date(2020, 11, 27), DayStatus.EARLY_CLOSE, "Thanksgiving", datetime(2020, 11, 27, 18, tzinfo=UTC)),
)


def test_the_list_has_each_day_once_whatever_the_order_of_its_rows() -> None:
    with FaultyServer(send_json(UPCOMING[::-1]), send_json(NOW)) as server:
        client = QuickClient(server.url).client
        assert client.upcoming_closings() == DAYS
        assert client.market_is_closed() is False
    assert [seen.target for seen in server.seen] == ["/v1/marketstatus/upcoming", "/v1/marketstatus/now"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"exchange": "OTC", **THANKSGIVING}],
        [{"exchange": "NYSE", **THANKSGIVING}, {"exchange": "NASDAQ", **AFTER, "date": "2020-11-26"}],
        [{"exchange": "NYSE", **THANKSGIVING, "status": "half a day"}],
    ],
    ids=["another exchange", "the two differ", "an unknown status"],
)
def test_what_is_no_closing_of_both_exchanges_says_nothing(rows: list[dict[str, str]]) -> None:
    assert read_upcoming(json.dumps(rows).encode()) == ()


def test_the_market_is_closed_only_if_nothing_trades_now() -> None:
    def said(market: str, exchange: str) -> bool:
        return read_is_closed(json.dumps({**NOW, "market": market, "exchanges": {"nyse": exchange}}).encode())

    assert said("closed", "closed")
    assert not said("closed", "extended-hours")
    assert not said("open", "closed")


def test_a_damaged_answer_says_what_is_wrong() -> None:
    with pytest.raises(UnreadableAnswerError, match="not readable JSON"):
        read_upcoming(b"[{")
    with pytest.raises(DataError, match=r"coming holidays: .*date"):
        read_upcoming(b'[{"date":"soon","status":"closed"}]')
