"""Answers that arrive whole and cannot be trusted, as a whole or about one day; the error says what is wrong."""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import re
from typing import Any

import pytest

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.errors import DataError, UsageError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.client import EMPTY_PAGE_CAP
from market_data_pipeline_tests.polygon.faulty_server import FaultyServer, Handler, send, send_json
from market_data_pipeline_tests.polygon.vendor import (
    KEY,
    SPAN_MS,
    START,
    START_MS,
    TRUTH,
    WHOLE,
    QuickClient,
    bar,
    cost,
    empty_page,
    minutes,
    page,
    rows,
)

NEXT = "https://api.polygon.io/v2/aggs/ticker/AAPL/range/5/minute/{}/{}?cursor=bGltaXQ9Mg"


def test_the_request_is_the_documented_one() -> None:
    with FaultyServer(send_json(page(TRUTH))) as server:
        QuickClient(server.url).bars()
    (seen,) = server.seen
    last = START_MS + 4 * SPAN_MS - 1
    path = f"/v2/aggs/ticker/AAPL/range/5/minute/{START_MS}/{last}"
    assert seen.target == f"{path}?adjusted=false&sort=asc&limit=50000"
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("symbol", ["X:BTCUSD", "BRK.B", "KIMpL", "A/B"])
def test_a_ticker_arrives_as_it_is_written(symbol: str) -> None:
    with FaultyServer(send_json(empty_page(ticker=symbol))) as server:
        assert QuickClient(server.url).bars(symbol=symbol).bars.empty
    assert server.seen[0].target.split("/")[4].replace("%2F", "/") == symbol


def test_the_answer_is_a_bar_frame() -> None:
    with FaultyServer(send_json(page(TRUTH))) as server:
        bars = QuickClient(server.url).bars().bars
    assert tuple(bars.columns) == bar_frames.COLUMNS
    assert {str(bars[name].dtype) for name in bar_frames.VALUES} == {"float64"}
    assert str(bars["ts"].dtype) == bar_frames.TS_DTYPE
    assert bars["ts"].tolist() == [START + i * dt.timedelta(minutes=5) for i in range(4)]
    assert rows(bars) == TRUTH


def test_a_delayed_answer_is_a_success() -> None:
    with FaultyServer(send_json(page(TRUTH, status="DELAYED"))) as server:
        assert rows(QuickClient(server.url).bars().bars) == TRUTH


@pytest.mark.parametrize("nothing", [empty_page(), empty_page(results=[]), empty_page(results=None, status="DELAYED")])
def test_an_empty_answer_is_an_empty_frame(nothing: dict[str, Any]) -> None:
    with FaultyServer(send_json(nothing)) as server:
        fetched = QuickClient(server.url).bars()
    assert fetched.bars.empty
    assert tuple(fetched.bars.columns) == bar_frames.COLUMNS
    assert fetched.usage.requests == 1


def test_an_empty_interval_costs_nothing() -> None:
    with FaultyServer(send(500)) as server:
        fetched = QuickClient(server.url).bars(minutes(0))
    assert fetched.bars.empty
    assert server.seen == []


def test_volumes_in_exponent_form_and_fractions_are_read() -> None:
    body = json.dumps(page(TRUTH[:2])).replace("1000.0", "7.0790813e+07").replace("1001.0", "9099.618093").encode()
    with FaultyServer(send(200, body)) as server:
        bars = QuickClient(server.url).bars().bars
    assert bars["volume"].tolist() == [70790813.0, 9099.618093]


def test_missing_vw_and_n_are_nan() -> None:
    with FaultyServer(send_json(page([bar(0, vw=..., n=...), bar(1)]))) as server:
        bars = QuickClient(server.url).bars().bars
    assert [math.isnan(value) for value in (*bars["vwap"], *bars["trades"])] == [True, False, True, False]


def test_a_vwap_outside_high_and_low_is_kept_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    odd = [bar(0), bar(1, vw=250.0)]
    with FaultyServer(send_json(page(odd))) as server, caplog.at_level(logging.WARNING):
        assert rows(QuickClient(server.url).bars().bars) == odd
    assert "vw is outside [low, high] in 1 bars, first at 2024-01-02T09:05:00+00:00" in caplog.text


def test_unknown_keys_are_ignored() -> None:
    with FaultyServer(send_json(page([bar(0, otc=True), *TRUTH[1:]], surprise={"a": [1]}))) as server:
        assert rows(QuickClient(server.url).bars().bars) == TRUTH


def one_changed(**changed: Any) -> dict[str, Any]:
    return page([TRUTH[0], bar(1, **changed), *TRUTH[2:]])


UNTRUSTED = {
    "another ticker": (page(TRUTH, ticker="MSFT"), "ticker 'MSFT'"),
    "another case of the ticker": (page(TRUTH, ticker="aapl"), "ticker 'aapl'"),
    "no ticker": (page(TRUTH, ticker=...), "ticker None"),
    "adjusted bars": (page(TRUTH, adjusted=True), "adjusted = True"),
    "no word on adjustment": (page(TRUTH, adjusted=...), "adjusted = None"),
    "a count that is too high": (page(TRUTH, resultsCount=5), "resultsCount is 5 and there are 4 rows"),
    "a count that is too low": (page(TRUTH, resultsCount=3), "resultsCount is 3"),
    "no count": (page(TRUTH, resultsCount=...), "resultsCount is None"),
    "a count and no rows": (empty_page(resultsCount=4), "resultsCount is 4 and there are 0 rows"),
    "no status": (page(TRUTH, status=...), "field status: is missing"),
    "null for all rows": (page(TRUTH, results=None), "resultsCount is 4 and there are 0 rows"),
    "a list": ([], "Expected object, got array"),
    "nanoseconds": (page([bar(i, t=TRUTH[i]["t"] * 10**6) for i in range(4)]), "bar 0, field t: .* nanoseconds"),
    "rows that say nothing": (page([{}, {}]), "bar 0, field t: is missing"),
}


@pytest.mark.parametrize(("answer", "named"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_an_answer_that_contradicts_is_refused_at_once_with_the_field_and_bar_named(answer: Any, named: str) -> None:
    with FaultyServer(send_json(answer)) as server:
        with pytest.raises(DataError, match=named) as caught:
            QuickClient(server.url).bars()
        assert len(server.seen) == 1
    assert cost(caught.value).requests == 1
    assert "AAPL 5m" in str(caught.value)


SPOILING = {
    "two bars for one start": (page([TRUTH[0], bar(0, v=7.0), *TRUTH[1:]]), "bar 1, field t: .* comes twice"),
    "unsorted bars": (page([TRUTH[1], TRUTH[0], *TRUTH[2:]]), "bar 0, field t: .* does not come after"),
    "descending bars": (page(TRUTH[::-1]), "bar 0, field t: .* does not come after"),
    "a bar before the window": (page([bar(-1), *TRUTH[1:]]), "bar 0, field t: .* is outside"),
    "a bar at the window's end": (page([*TRUTH, bar(4)]), "bar 4, field t: 2024-01-02T09:20:00.* is outside"),
    "a bar off the grid": (one_changed(t=START_MS + SPAN_MS + 60_000), "bar 1, field t: .* not on the grid"),
    "seconds": (one_changed(t=START_MS // 1000), "bar 1, field t: 1970-.* is outside"),
    "microseconds": (one_changed(t=START_MS * 1000), "bar 1, field t: .* looks like microseconds"),
    "nanoseconds": (one_changed(t=START_MS * 10**6), "bar 1, field t: .* looks like nanoseconds"),
    "a stamp before 1970": (one_changed(t=-5), "bar 1, field t: -5 looks like a time before 1970"),
    "an enormous stamp": (one_changed(t=10**30), "bar 1, field t: .* looks like nanoseconds"),
    "a stamp of 400 digits": (one_changed(t=10**400), "bar 1, field t: .* looks like nanoseconds"),
    "a fractional stamp": (one_changed(t=START_MS + SPAN_MS + 0.5), "bar 1, field t: Expected int, got float"),
    "a stamp as text": (one_changed(t="2024-01-02"), "bar 1, field t: Expected int, got str"),
    "no stamp": (one_changed(t=...), "bar 1, field t: is missing"),
    "a null close": (one_changed(c=None), "bar 1, field c: Expected float, got null"),
    "no high": (one_changed(h=...), "bar 1, field h: is missing"),
    "no volume": (one_changed(v=...), "bar 1, field v: is missing"),
    "a price as text": (one_changed(o="101.0"), "bar 1, field o: Expected float, got str"),
    "a price that is not a number": (one_changed(o=math.nan), "bar 1 .* not above 0 and finite"),
    "an absurd price": (one_changed(h=1e300), "bar 1 .* not above 0 and finite"),
    "a null bar": (page(TRUTH, results=[TRUTH[0], None, *TRUTH[2:]]), "bar 1: Expected object, got null"),
    "a price of 0": (one_changed(l=0.0), "bar 1 .* not above 0"),
    "a negative price": (one_changed(o=-1.0, l=-1.0), "bar 1 .* not above 0"),
    "a high below the open": (one_changed(h=101.5), "bar 1 .* low <= open, close <= high"),
    "a low above the close": (one_changed(l=102.75, o=102.9), "bar 1 .* low <= open, close <= high"),
    "a negative volume": (one_changed(v=-1.0), "bar 1 .* volume"),
}


@pytest.mark.parametrize(("answer", "named"), SPOILING.values(), ids=SPOILING)
def test_a_bad_row_refuses_its_day_with_the_field_and_bar_named(answer: Any, named: str) -> None:
    with FaultyServer(send_json(answer)) as server:
        fetched = QuickClient(server.url).bars()
        assert len(server.seen) == 1
    assert list(fetched.refused) == [dt.date(2024, 1, 2)]
    assert re.search(f"AAPL 5m, {named}", fetched.refused[dt.date(2024, 1, 2)])
    assert fetched.bars.empty


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_price_too_large_for_a_float_refuses_its_day(number: str) -> None:
    body = json.dumps(page(TRUTH)).replace("101.0", number, 1).encode()
    with FaultyServer(send(200, body)) as server:
        fetched = QuickClient(server.url, max_attempts=1).bars()
    assert fetched.bars.empty
    assert list(fetched.refused) == [dt.date(2024, 1, 2)]


ODD = {
    "a null vw": (one_changed(vw=None), "vw of a bar cannot be read", {"vw": math.nan}),
    "a null count": (one_changed(n=None), "n of a bar cannot be read", {"n": math.nan}),
    "a count in words": (one_changed(n="few"), "n of a bar cannot be read", {"n": math.nan}),
    "half a trade": (one_changed(n=1.5), "n is not a count in a bar", {"n": math.nan}),
    "a negative count": (one_changed(n=-1), "n is not a count in a bar", {"n": math.nan}),
    "more trades than can be counted": (one_changed(n=1e19), "n is not a count in a bar", {"n": math.nan}),
    "an average below 0": (one_changed(vw=-1.0), "vw is infinite or below 0 in a bar", {"vw": math.nan}),
    "a row twice": (page([*TRUTH[:2], TRUTH[1], *TRUTH[2:]]), "a bar came twice with the same values", {}),
    "a row three times": (page([*TRUTH, TRUTH[3], TRUTH[3]]), "2 bars came twice with the same values", {}),
    "NaN for an unknown key": (one_changed(a=math.nan), "NaN or Infinity", {}),
}


@pytest.mark.parametrize(("answer", "warning", "unknown"), ODD.values(), ids=ODD)
def test_what_is_superfluous_or_optional_is_taken_in_with_a_warning(
    answer: Any, warning: str, unknown: dict[str, float]
) -> None:
    with FaultyServer(send_json(answer)) as server:
        fetched = QuickClient(server.url).bars()
    for found, expected in zip(rows(fetched.bars), [TRUTH[0], {**TRUTH[1], **unknown}, *TRUTH[2:]], strict=True):
        assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert fetched.refused == {}
    assert warning in " ".join(fetched.warnings)


def test_a_row_repeated_by_the_next_page_is_taken_once() -> None:
    script = [page(TRUTH[:3], next_url=NEXT.format(1, 1)), page(TRUTH[2:])]
    with FaultyServer(*map(send_json, script)) as server:
        fetched = QuickClient(server.url).bars()
    assert rows(fetched.bars) == TRUTH
    assert "AAPL 5m, page 2: a bar came twice" in fetched.warnings[0]


THREE_DAYS = Interval(START, START + dt.timedelta(days=2, hours=16))


def across_days(*places: tuple[int, int], **changed: Any) -> dict[str, Any]:
    """Return bar `index` of each place's day, the last one changed."""
    return page(
        [
            bar(index, **{"t": START_MS + day * 86_400_000 + index * SPAN_MS, **(changed if at == 1 else {})})
            for at, (day, index) in enumerate(places)
        ]
    )


@pytest.mark.parametrize(
    ("t", "days"),
    [
        (None, [2, 3]),  # it may belong to the day before it, or to the one after it
        (START_MS + 2 * 86_400_000, [2, 3, 4]),  # or to the one that it names
    ],
)
def test_a_row_whose_day_is_not_known_refuses_every_day_that_it_may_belong_to(t: int | None, days: list[int]) -> None:
    answer = across_days((0, 0), (0, 1), (1, 0), (1, 1), (2, 1), t=t)
    with FaultyServer(send_json(answer)) as server:
        fetched = QuickClient(server.url).bars(THREE_DAYS)
    assert [day.day for day in fetched.refused] == days


def test_a_row_without_a_stamp_at_the_end_of_a_page_spoils_the_days_up_to_the_next_page() -> None:
    first, second = across_days((0, 0), (0, 1), t=None), across_days((1, 0), (1, 1), (2, 1))
    script = [{**first, "next_url": NEXT.format(1, 1)}, second]
    with FaultyServer(*map(send_json, script)) as server:
        fetched = QuickClient(server.url).bars(THREE_DAYS)
    assert [day.day for day in fetched.refused] == [2, 3]
    assert [row["t"] for row in rows(fetched.bars)] == [START_MS + 2 * 86_400_000 + SPAN_MS]


def test_pages_are_followed_on_the_configured_host_without_the_vendors_key_parameter() -> None:
    second = (
        "https://evil.example:443:443/v2/aggs/ticker/AAPL/range/5/minute/{}/{}?cursor=a%2Bb%3D&apiKey=x&adjusted=true"
    )
    script = [
        page(TRUTH[:2], next_url=second.format(START_MS + 2 * SPAN_MS, 9)),
        page(TRUTH[2:]),
    ]
    with FaultyServer(*map(send_json, script)) as server:
        fetched = QuickClient(server.url).bars()
    assert rows(fetched.bars) == TRUTH
    assert fetched.usage.requests == 2
    path = f"/v2/aggs/ticker/AAPL/range/5/minute/{START_MS + 2 * SPAN_MS}/9"
    assert server.seen[1].target == f"{path}?cursor=a%2Bb%3D&adjusted=false"
    assert server.seen[1].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("name", ["apiKey", "apikey", "APIKEY", "api_key"])
def test_a_key_in_next_url_is_dropped_however_it_is_spelled(name: str) -> None:
    script = [page(TRUTH[:2], next_url=f"{NEXT.format(1, 2)}&{name}={KEY}"), page(TRUTH[2:])]
    with FaultyServer(*map(send_json, script)) as server:
        QuickClient(server.url).bars()
    assert KEY not in server.seen[1].target


def test_a_server_under_a_path_is_called_under_that_path_for_every_page() -> None:
    script = [page(TRUTH[:2], next_url=NEXT.format(1, 2).replace("/v2", "/mirror/v2")), page(TRUTH[2:])]
    with FaultyServer(*map(send_json, script)) as server:
        assert rows(QuickClient(f"{server.url}/mirror/").bars().bars) == TRUTH
    assert [seen.target.split("/ticker")[0] for seen in server.seen] == ["/mirror/v2/aggs"] * 2


def test_an_empty_page_with_a_next_one_is_followed() -> None:
    script = [
        page(TRUTH[:2], next_url=NEXT.format(1, 1)),
        empty_page(next_url=NEXT.format(2, 2)),
        page(TRUTH[2:], next_url=NEXT.format(3, 3)),
        empty_page(),
    ]
    with FaultyServer(*map(send_json, script)) as server:
        fetched = QuickClient(server.url).bars()
    assert rows(fetched.bars) == TRUTH
    assert fetched.usage.requests == 4


def test_a_next_page_that_leaves_out_bars_is_widened_to_them() -> None:
    last = START_MS + len(TRUTH) * SPAN_MS - 1
    late = NEXT.format(START_MS + 3 * SPAN_MS, last - SPAN_MS // 2)
    with FaultyServer(*map(send_json, [page(TRUTH[:2], next_url=late), page(TRUTH[2:])])) as server:
        assert rows(QuickClient(server.url).bars().bars) == TRUTH
    assert f"/range/5/minute/{START_MS + 2 * SPAN_MS}/{last}?" in server.seen[1].target


def numbered(make: Any) -> Any:
    """An endless answer: `make` is given the number of the request."""

    def answer(handler: Handler) -> None:
        send_json(make(len(handler.server.owner.seen)))(handler)

    return answer


ENDLESS = {
    "a cursor that never advances": [send_json(page(TRUTH[:2], next_url=NEXT.format(1, 1)))],
    "the first page again": [numbered(lambda n: page(TRUTH[:2], next_url=NEXT.format(n, n)))],
    "a page from before": [
        send_json(page(TRUTH[2:], next_url=NEXT.format(1, 1))),
        send_json(page(TRUTH[:2])),
    ],
    "ping-pong": [
        send_json(page(TRUTH[:1], next_url=NEXT.format(1, 1))),
        send_json(page(TRUTH[1:2], next_url=NEXT.format(2, 2))),
        send_json(page(TRUTH[2:3], next_url=NEXT.format(1, 1))),
    ],
    "empty ping-pong": [
        send_json(empty_page(next_url=NEXT.format(1, 1))),
        send_json(empty_page(next_url=NEXT.format(2, 2))),
        send_json(empty_page(next_url=NEXT.format(1, 1))),
    ],
    "a next page that is the first": [
        numbered(lambda n: page(TRUTH[n - 1 : n], next_url=NEXT.format(START_MS, START_MS + 4 * SPAN_MS - 1)))
    ],
    "empty pages without end": [numbered(lambda n: empty_page(next_url=NEXT.format(n, n)))],
    "another ticker's pages": [send_json(page(TRUTH[:2], next_url=NEXT.format(1, 1).replace("AAPL", "MSFT")))],
    "another endpoint": [send_json(page(TRUTH[:2], next_url="https://api.polygon.io/v3/reference/splits?cursor=x"))],
    "no address": [send_json(page(TRUTH[:2], next_url="https://[broken"))],
    "a second page of another ticker": [
        send_json(page(TRUTH[:2], next_url=NEXT.format(1, 1))),
        send_json(page(TRUTH[2:], ticker="MSFT")),
    ],
    "a second page that is adjusted": [
        send_json(page(TRUTH[:2], next_url=NEXT.format(1, 1))),
        send_json(page(TRUTH[2:], adjusted=True)),
    ],
}


@pytest.mark.parametrize("script", ENDLESS.values(), ids=ENDLESS)
def test_paging_that_goes_astray_is_a_data_error_and_ends(script: list[Any]) -> None:
    with FaultyServer(*script) as server:
        with pytest.raises(DataError, match="AAPL 5m"):
            QuickClient(server.url).bars()
        assert len(server.seen) <= EMPTY_PAGE_CAP


DAYS = Interval(dt.datetime(2024, 3, 8, 5, tzinfo=dt.UTC), dt.datetime(2024, 3, 13, 4, tzinfo=dt.UTC))


def day_bar(day: int, hour: int) -> dict[str, Any]:
    return bar(0, t=int(dt.datetime(2024, 3, day, hour, tzinfo=dt.UTC).timestamp()) * 1000)


def test_day_bars_start_at_midnight_in_new_york_on_both_sides_of_a_clock_change() -> None:
    truth = [day_bar(8, 5), day_bar(11, 4), day_bar(12, 4)]
    with FaultyServer(send_json(page(truth))) as server:
        assert rows(QuickClient(server.url).bars(DAYS, timeframe=Timeframe.D1).bars) == truth
    assert "/range/1/day/1709874000000/1710302399999?" in server.seen[0].target


@pytest.mark.parametrize("hour", [5, 20])
def test_a_day_bar_at_another_hour_refuses_its_day(hour: int) -> None:
    answer = send_json(page([day_bar(8, 5), day_bar(11, hour), day_bar(12, 4)]))
    with FaultyServer(answer) as server:
        fetched = QuickClient(server.url).bars(DAYS, timeframe=Timeframe.D1)
    assert rows(fetched.bars) == [day_bar(8, 5), day_bar(12, 4)]
    ((day, reason),) = fetched.refused.items()
    assert day == dt.date(2024, 3, 11)
    assert "bar 1, field t: 2024-03-11" in reason
    assert "not on the grid of 1d bars" in reason


def test_a_bar_that_lies_in_no_session_is_not_part_of_the_series() -> None:
    """A test print of a Saturday, and bars after 20:00 and before 04:00 New York."""
    with FaultyServer(send_json(page([day_bar(8, 5), day_bar(9, 5), day_bar(11, 4)]))) as server:
        fetched = QuickClient(server.url).bars(DAYS, timeframe=Timeframe.D1)
    assert rows(fetched.bars) == [day_bar(8, 5), day_bar(11, 4)]
    assert rows(fetched.outside) == [day_bar(9, 5)]
    (warning,) = fetched.warnings
    assert "A bar lies in no session, first 2024-03-09T05:00:00+00:00; left out. There are many of them" in warning
    assert fetched.refused == {}
    night = page([bar(191), bar(192), bar(200), bar(288)])
    with FaultyServer(send_json(night)) as server:
        fetched = QuickClient(server.url).bars(THREE_DAYS)
    assert rows(fetched.bars) == [bar(191), bar(288)]
    assert rows(fetched.outside) == [bar(192), bar(200)]


def test_crypto_day_bars_start_at_midnight_utc() -> None:
    week = Interval(dt.datetime(2024, 3, 8, tzinfo=dt.UTC), dt.datetime(2024, 3, 11, tzinfo=dt.UTC))
    truth = [day_bar(8, 0), day_bar(9, 0), day_bar(10, 0)]
    with FaultyServer(send_json(page(truth, ticker="X:BTCUSD"))) as server:
        fetched = QuickClient(server.url).bars(week, symbol="X:BTCUSD", timeframe=Timeframe.D1)
    assert rows(fetched.bars) == truth


@pytest.mark.parametrize(
    ("timeframe", "interval"),
    [
        (Timeframe.H1, WHOLE),
        (Timeframe.M5, Interval(START, START + dt.timedelta(minutes=7))),
        (Timeframe.D1, WHOLE),
    ],
)
def test_what_cannot_be_requested_is_not_sent(timeframe: Timeframe, interval: Interval) -> None:
    with FaultyServer(send(500)) as server, pytest.raises(UsageError):
        QuickClient(server.url).bars(interval, timeframe=timeframe)
    assert server.seen == []
