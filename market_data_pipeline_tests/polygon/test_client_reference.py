"""Splits of the whole market, and its day bars in one request."""

from __future__ import annotations

import datetime as dt
import logging
import re
from typing import Any

import pytest

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.adjustments import NO_TICKER
from market_data_pipeline.domain.errors import DataError, TransientError, VendorRequestError
from market_data_pipeline_tests.polygon.faulty_server import FaultyServer, send, send_json
from market_data_pipeline_tests.polygon.vendor import KEY, QuickClient, bar, cost

SINCE = dt.date(2020, 8, 1)
NEXT = "https://api.massive.com/stocks/v1/splits?cursor=YXA9Mg&apiKey=x"


def split(ticker: str, day: str, old: float, new: float, **changed: Any) -> dict[str, Any]:
    fields = {"id": "P1", "ticker": ticker, "execution_date": day, "split_from": old, "split_to": new, **changed}
    return {name: value for name, value in fields.items() if value is not ...}


def listing(*splits: Any, **changed: Any) -> dict[str, Any]:
    return {"results": list(splits), "status": "OK", "request_id": "x", **changed}


APPLE = split("AAPL", "2020-08-31", 1, 4)
TESLA = split("TSLA", "2020-08-31", 1, 5)
ODD = split("ODD", "2031-01-02", 1.5, 1)


GONE = send_json({"status": "NOT_FOUND", "request_id": "x", "message": "Not found"}, 404)


def test_splits_of_all_pages_come_by_day_and_ticker_including_future_ones() -> None:
    with FaultyServer(send_json(listing(TESLA, APPLE, next_url=NEXT)), send_json(listing(ODD))) as server:
        quick = QuickClient(server.url)
        splits = quick.client.splits(SINCE)
    assert [tuple(row) for row in splits] == [
        ("AAPL", dt.date(2020, 8, 31), 1, 4, "P1"),
        ("TSLA", dt.date(2020, 8, 31), 1, 5, "P1"),
        ("ODD", dt.date(2031, 1, 2), 1.5, 1, "P1"),
    ]
    first = "/stocks/v1/splits?execution_date.gte=2020-08-01&limit=5000&sort=execution_date.asc"
    assert [seen.target for seen in server.seen] == [first, "/stocks/v1/splits?cursor=YXA9Mg"]
    assert server.seen[1].headers["Authorization"] == f"Bearer {KEY}"
    assert quick.client.usage.requests == 2


def test_a_list_that_is_gone_is_read_from_the_older_address_and_not_looked_for_again() -> None:
    with FaultyServer(
        GONE, send_json(listing(APPLE)), send_json(listing(TESLA)), GONE, send_json(listing(ODD))
    ) as server:
        quick = QuickClient(server.url)
        symbols = [quick.client.splits(SINCE)[0].symbol for _ in range(3)]
    assert symbols == ["AAPL", "TSLA", "ODD"]
    present, older = "/stocks/v1/splits", "/v3/reference/splits"
    assert [seen.target.partition("?")[0] for seen in server.seen] == [present, older, older, older, present]
    assert server.seen[1].target.endswith("?execution_date.gte=2020-08-01&limit=1000&order=asc&sort=execution_date")
    assert quick.client.usage.requests == 5


def test_a_list_that_is_at_neither_address_is_not_found() -> None:
    with FaultyServer(GONE, GONE) as server, pytest.raises(VendorRequestError, match="HTTP 404: Not found") as caught:
        QuickClient(server.url).client.splits(SINCE)
    assert cost(caught.value).requests == 2


@pytest.mark.parametrize("nothing", [listing(), {"status": "OK"}])
def test_no_splits_are_no_rows(nothing: dict[str, Any]) -> None:
    with FaultyServer(send_json(nothing)) as server:
        assert QuickClient(server.url).client.splits(SINCE) == ()


def test_a_split_listed_twice_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    again = split("AAPL", "2020-08-31", 2, 8, id="P2")
    with FaultyServer(send_json(listing(APPLE, TESLA, next_url=NEXT)), send_json(listing(again))) as server:
        splits = QuickClient(server.url).client.splits(SINCE)
    assert [(row.symbol, row.split_to / row.split_from) for row in splits] == [("AAPL", 4), ("TSLA", 5)]
    assert caplog.text == ""


def test_two_splits_of_one_day_with_different_ratios_are_two(caplog: pytest.LogCaptureFixture) -> None:
    rows = (split("AAA", "2025-02-18", 500, 1, id="a"), split("AAA", "2025-02-18", 1, 100, id="b"))
    with FaultyServer(send_json(listing(*rows))) as server, caplog.at_level(logging.WARNING):
        splits = QuickClient(server.url).client.splits(SINCE)
    assert {(row.split_from, row.split_to, row.id) for row in splits} == {(500, 1, "a"), (1, 100, "b")}
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (split("AAPL", "2020-08-31", 0, 4), "row 1 .*split_from"),
        (split("AAPL", "2020-08-31", 1, -4), "row 1 .*split_to"),
        (split("AAPL", "2020-08-31", 1, None), "split_to: Expected float, got null"),  # type: ignore[arg-type]
        (split("AAPL", "2020-08-31", 1, 4, split_from=...), "split_from: is missing"),
        (split("AAPL", "31.08.2020", 1, 4), "execution_date: "),
        (split("AAPL", "2020-02-31", 1, 4), "execution_date: "),
        (split("", "2020-08-31", 1, 4), "ticker: it is empty"),
        (None, "row 1: Expected object, got null"),
    ],
)
def test_a_malformed_split_is_a_data_error(row: Any, named: str) -> None:
    with FaultyServer(send_json(listing(TESLA, row))) as server, pytest.raises(DataError, match=named):
        QuickClient(server.url).client.splits(SINCE)


def test_a_malformed_split_of_an_unfollowed_ticker_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows = (split("BAD", "2020-08-31", 1, None), APPLE, split("WORSE", "2020-08-31", 0, 4))  # type: ignore[arg-type]
    with FaultyServer(send_json(listing(*rows))) as server, caplog.at_level(logging.WARNING):
        splits = QuickClient(server.url).client.splits(SINCE, followed={"AAPL"})
        assert [row.symbol for row in splits] == ["AAPL"]
        with pytest.raises(DataError, match=r"WORSE.*split_from"):
            QuickClient(server.url).client.splits(SINCE, followed={"AAPL", "WORSE"})
    assert "Left out 2 splits of tickers that are not followed, such as: splits, row 0, field split_to" in caplog.text


@pytest.mark.parametrize(
    "row",
    [split(None, "2020-08-31", 1, 4), split("", "2020-08-31", 1, 4), {"split_to": 4}, 7],  # type: ignore[arg-type]
)
def test_a_split_without_a_ticker_is_reported_as_such_and_the_others_stay(row: Any) -> None:
    unreadable: dict[str, str] = {}
    with FaultyServer(send_json(listing(TESLA, row, APPLE))) as server:
        splits = QuickClient(server.url).client.splits(SINCE, followed={"AAPL"}, unreadable=unreadable)
    assert [each.symbol for each in splits] == ["AAPL", "TSLA"]
    assert set(unreadable) == {NO_TICKER}
    assert unreadable[NO_TICKER].startswith("splits, row 1")


def test_splits_before_the_requested_date_are_left_out() -> None:
    with FaultyServer(send_json(listing(split("AAPL", "2014-06-09", 1, 7), APPLE))) as server:
        assert [row.execution_date for row in QuickClient(server.url).client.splits(SINCE)] == [dt.date(2020, 8, 31)]


def test_no_splits_are_returned_when_a_later_page_fails() -> None:
    script = [send_json(listing(APPLE, next_url=NEXT)), send(503)]
    with FaultyServer(*script) as server, pytest.raises(TransientError) as caught:
        QuickClient(server.url, max_attempts=2).client.splits(SINCE)
    assert cost(caught.value).requests == 3


DAY = dt.date(2024, 1, 2)
CLOSE_MS = int(dt.datetime(2024, 1, 2, 21, tzinfo=dt.UTC).timestamp()) * 1000


def market(*bars: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "queryCount": len(bars),
        "resultsCount": len(bars),
        "adjusted": False,
        "results": list(bars),
        "status": "OK",
        **changed,
    }


def market_bar(ticker: str, index: int, **changed: Any) -> dict[str, Any]:
    return bar(index, **{"T": ticker, "t": CLOSE_MS, **changed})


def test_a_market_day_is_a_frame_of_symbols_that_starts_at_midnight_in_new_york() -> None:
    with FaultyServer(send_json(market(market_bar("AAPL", 0), market_bar("MSFT", 1, n=..., vw=...)))) as server:
        fetched = QuickClient(server.url).client.grouped_daily(DAY)
    bars = fetched.bars
    assert server.seen[0].target == "/v2/aggs/grouped/locale/us/market/stocks/2024-01-02?adjusted=false"
    assert tuple(bars.columns) == ("symbol", *bar_frames.COLUMNS)
    assert bars["symbol"].tolist() == ["AAPL", "MSFT"]
    assert bars["close"].tolist() == [101.5, 102.5]
    assert set(bars["ts"]) == {dt.datetime(2024, 1, 2, 5, tzinfo=dt.UTC)}
    assert fetched.usage.requests == 1


def test_a_market_day_that_closes_early_is_stamped_at_16_hours_all_the_same() -> None:
    close_ms = int(dt.datetime(2024, 7, 3, 20, tzinfo=dt.UTC).timestamp()) * 1000
    with FaultyServer(send_json(market(market_bar("AAPL", 0, t=close_ms)))) as server:
        bars = QuickClient(server.url).client.grouped_daily(dt.date(2024, 7, 3)).bars
    assert bars["ts"].tolist() == [dt.datetime(2024, 7, 3, 4, tzinfo=dt.UTC)]


def test_a_holiday_has_no_market_day() -> None:
    nothing = {"queryCount": 0, "resultsCount": 0, "adjusted": False, "status": "OK"}
    with FaultyServer(send_json(nothing)) as server:
        bars = QuickClient(server.url).client.grouped_daily(dt.date(2024, 1, 1)).bars
    assert len(bars) == 0
    assert tuple(bars.columns) == ("symbol", *bar_frames.COLUMNS)


BAD_ROWS = {
    "a high below the low": ([market_bar("BAD", 1, h=1.0)], "BAD: low <= open, close <= high does not hold"),
    "a null close": ([market_bar("BAD", 1, c=None)], "bar 1, field c: Expected float, got null"),
    "no ticker": ([bar(1, t=CLOSE_MS)], "bar 1, field T: is missing"),
    "another day": ([market_bar("BAD", 1, t=CLOSE_MS + 86_400_000)], "BAD is stamped 2024-01-03"),
    "a stamp in nanoseconds": ([market_bar("BAD", 1, t=CLOSE_MS * 10**6)], "BAD, field t: .* looks like nanoseconds"),
    "a stamp of hundreds of digits": ([market_bar("BAD", 1, t=10**400)], "BAD, field t: .* looks like nanoseconds"),
    "two rows of a ticker": ([market_bar("BAD", 1), market_bar("BAD", 2)], "'BAD' occurs twice"),
}


@pytest.mark.parametrize(("bad", "named"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_one_tickers_bad_row_leaves_the_others_of_a_market_day(
    bad: list[dict[str, Any]], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [market_bar("AAPL", 0), *bad, market_bar("MSFT", 2), market_bar("MSFT", 2)]
    with FaultyServer(send_json(market(*rows))) as server, caplog.at_level(logging.WARNING):
        bars = QuickClient(server.url).client.grouped_daily(DAY).bars
    assert bars["symbol"].tolist() == ["AAPL", "MSFT"]
    assert bars["open"].tolist() == [101, 103]
    assert "left out 1 rows that cannot be used; " in caplog.text
    assert re.search(named, caplog.text)


def test_an_optional_field_that_cannot_be_read_leaves_its_row_in_a_market_day() -> None:
    odd = {"NULL": {"vw": None}, "TEXT": {"n": "5", "vw": "1"}, "BELOW": {"n": -1, "vw": -1.0}}
    rows = [market_bar("AAPL", 0), *(market_bar(name, 1, **fields) for name, fields in odd.items())]
    with FaultyServer(send_json(market(*rows))) as server:
        bars = QuickClient(server.url).client.grouped_daily(DAY).bars
    assert bars["symbol"].tolist() == ["AAPL", *odd]
    assert bars["vwap"].isna().tolist() == [False, True, True, True]
    assert bars["trades"].isna().tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (market(market_bar("AAPL", 0), adjusted=True), "adjusted = True"),
        (market(market_bar("AAPL", 0), resultsCount=2), "resultsCount is 2"),
        (market(market_bar("AAPL", 0), market_bar("AAPL", 1)), "'AAPL' occurs twice"),
        (market(market_bar("AAPL", 0, t=CLOSE_MS - 16 * 3_600_000)), "AAPL is stamped 2024-01-02T05:00"),
        (market(market_bar("AAPL", 0, t=CLOSE_MS + 86_400_000)), "AAPL is stamped 2024-01-03"),
        (market(bar(0, t=CLOSE_MS)), "bar 0, field T: is missing"),
        (market(market_bar("AAPL", 0, c=None)), "bar 0, field c: Expected float, got null"),
    ],
)
def test_a_market_day_that_contradicts_the_request_is_a_data_error(answer: dict[str, Any], named: str) -> None:
    with FaultyServer(send_json(answer)) as server, pytest.raises(DataError, match=named):
        QuickClient(server.url).client.grouped_daily(DAY)


def test_a_market_day_on_a_sunday_is_a_data_error() -> None:
    with FaultyServer(send_json(market(market_bar("AAPL", 0)))) as server, pytest.raises(DataError, match="no session"):
        QuickClient(server.url).client.grouped_daily(dt.date(2024, 1, 7))


@pytest.mark.parametrize(
    ("fields", "delisted"),
    [
        ({"delisted_utc": "2026-03-11T00:00:00Z"}, dt.datetime(2026, 3, 11, tzinfo=dt.UTC)),
        ({"delisted_utc": "2026-03-11"}, dt.datetime(2026, 3, 11, tzinfo=dt.UTC)),
        ({"delisted_utc": "", "list_date": "0000-00-00", "name": 5}, None),
    ],
)
def test_a_delisted_ticker_is_known_as_that_whatever_its_other_fields_say(
    fields: dict[str, Any], delisted: dt.datetime | None
) -> None:
    row = {"ticker": "GONE", "active": False, **fields}
    with FaultyServer(send_json({"status": "OK", "results": [row]})) as server:
        found, _ = QuickClient(server.url).client.listing("GONE")
    assert (found.known, found.active, found.delisted_at, found.list_date) == (True, False, delisted, None)
