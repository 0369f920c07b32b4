"""What `limit` cuts off is told, and following `next` yields every record of the range once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.serving.cursors import decode_cursor, encode_cursor
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.serving.conftest import BARS, FEATURES, Api, MovableClock, serve
from market_data_pipeline_tests.serving.seeding import Seed

FIRST = datetime(2026, 3, 11, 9, 0, tzinfo=UTC)
COUNT = 20
INSTANTS = st.integers(0, 2**52).map(lambda one: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=one))


def pages(api: Api, path: str, **params: Any) -> Iterator[Any]:
    answer = api.get(path, **params)
    while True:
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["truncated"] is (body["next"] is not None) is ("next" in answer.links)
        yield body
        if not body["truncated"]:
            return
        assert answer.links["next"]["url"] == body["next"]
        assert f"cursor={body['cursor']}" in body["next"]
        answer = api.session.get(urljoin(answer.url, body["next"]), timeout=60)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("path", "key"), [(FEATURES, "features"), (BARS, "bars")])
def test_following_next_yields_every_record_once(api: Api, seed: Seed, path: str, key: str, cached: bool) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    if cached:
        api.wait_for_cache()
    window = {"timeframe": "5m", "start": "2026-03-11T09:10:00Z", "end": "2026-03-11T10:30:00Z"}
    every = api.get(f"{path}/AAPL", **window).json()
    assert (every["records_returned"], every["truncated"], every["next"], every["cursor"]) == (16, False, None, None)

    found = [page[key] for page in pages(api, f"{path}/AAPL", limit=5, **window)]

    assert [len(page) for page in found] == [5, 5, 5, 1]
    assert [record for page in reversed(found) for record in page] == every[key]
    exact = list(pages(api, f"{path}/AAPL", limit=8, **window))
    assert [page["records_returned"] for page in exact] == [8, 8]


def test_tables_tell_in_the_link_header(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=COUNT)
    starts: list[datetime] = []
    address, asked = f"{api.base}{BARS}/AAPL?timeframe=5m&limit=9&format=arrow", 0
    while address:
        answer = api.session.get(address, timeout=60)
        starts = [*pa.ipc.open_stream(answer.content).read_all()["ts"].to_pylist(), *starts]
        address = urljoin(address, answer.links["next"]["url"]) if answer.links else ""
        asked += 1
    assert (asked, starts) == (3, [FIRST + n * timedelta(minutes=5) for n in range(COUNT)])


def test_pages_of_several_symbols_hold_the_newest_of_each(api: Api, seed: Seed) -> None:
    seed.series("MSFT", first=FIRST, count=7)
    seed.series("AAPL", first=FIRST, count=3)
    seed.series("X:BTCUSD", first=FIRST, count=5)
    asked = {"symbols": "MSFT,AAPL,X:BTCUSD", "timeframe": "5m"}

    first, second, third = pages(api, FEATURES, limit=3, **asked)

    assert [(one["symbol"], one["records_returned"], one["truncated"]) for one in first["series"]] == [
        ("MSFT", 3, True), ("AAPL", 3, False), ("X:BTCUSD", 3, True)
    ]  # fmt: skip
    assert [one["symbol"] for one in second["series"]] == ["MSFT", "X:BTCUSD"]
    assert [one["symbol"] for one in third["series"]] == ["MSFT"]
    of_msft = [one["features"] for page in (third, second, first) for one in page["series"] if one["symbol"] == "MSFT"]
    alone = api.get(f"{FEATURES}/MSFT", timeframe="5m").json()
    assert [record for page in of_msft for record in page] == alone["features"]
    assert first["series"][0]["freshness"] == alone["freshness"]
    assert first["records_returned"] == 9


def test_several_symbols_come_in_every_format_with_symbol_and_timeframe(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=2)
    seed.series("MSFT", first=FIRST, count=2)
    asked = {"symbols": "MSFT,AAPL", "timeframe": "5m"}
    table = pa.ipc.open_stream(api.get(BARS, format="arrow", **asked).content).read_all()
    text = api.get(BARS, format="csv", **asked).text.splitlines()
    columns = api.get(BARS, format="columns", timeframe="5m", symbols=["MSFT", "AAPL"]).json()["series"]
    assert table["symbol"].to_pylist() == ["MSFT", "MSFT", "AAPL", "AAPL"]
    assert [line.split(",")[:2] for line in text[1:]] == [["MSFT", "5m"]] * 2 + [["AAPL", "5m"]] * 2
    assert [one["columns"]["close"] for one in columns] == [[100.0, 101.0]] * 2


def test_several_symbols_are_not_sent_again_when_nothing_changed(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=2)
    etag = api.get(BARS, symbols="AAPL", timeframe="5m").headers["ETag"]
    same = api.get(BARS, symbols="AAPL", timeframe="5m", headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")


def test_a_series_without_records_is_explained_and_an_unknown_symbol_refuses_the_request(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=2)
    seed.symbol("MSFT")
    asked = {"symbols": "AAPL,MSFT", "timeframe": "5m"}

    found = api.get(BARS, **asked).json()["series"][1]
    table = api.get(BARS, format="csv", **asked)
    unknown = api.get(BARS, symbols="AAPL,NOPE,MSFT,AAPM", timeframe="5m")

    assert (found["freshness"], found["records_returned"], found["bars"]) == (None, 0, [])
    assert (found["problem"]["type"], found["problem"]["instance"]) == ("/problems/never-computed", f"{BARS}/MSFT")
    assert seed.run("select symbol, timeframe from market_data.backfill_requests") == [("MSFT", "5m")]
    assert (table.headers["X-Missing"], len(table.text.splitlines())) == ("MSFT", 3)
    assert (unknown.status_code, unknown.json()["symbols"]) == (404, ["NOPE", "AAPM"])


def test_the_list_of_symbols_is_complete_over_its_pages(api: Api, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=3)
    seed.series("AAPL", "1d", first=FIRST, count=2)
    for name, tier in (("X:BTCUSD", "standard"), ("MSFT", "critical"), ("IBM", "critical")):
        seed.symbol(name, tier)
    seed.symbol("GONE", active=False)

    whole = api.get("/api/v1/symbols").json()
    address, found = f"{api.base}/api/v1/symbols?limit=2&tier=critical", []
    while address:
        answer = api.session.get(address, timeout=60)
        found.append([one["symbol"] for one in answer.json()["symbols"]])
        assert answer.json()["truncated"] is bool(answer.links)
        address = urljoin(answer.url, answer.json()["next"]) if answer.links else ""

    assert [one["symbol"] for one in whole["symbols"]] == ["AAPL", "IBM", "MSFT", "X:BTCUSD"]
    assert (whole["symbols_returned"], whole["truncated"], whole["next"]) == (4, False, None)
    assert [(one["timeframe"], one["bar_count"]) for one in whole["symbols"][0]["series"]] == [("5m", 3), ("1d", 2)]
    assert (whole["symbols"][3]["asset_class"], whole["symbols"][3]["series"]) == ("crypto", [])
    assert found == [["AAPL", "IBM"], ["MSFT"]]


def test_links_have_the_path_prefix_below_which_the_api_is_reached(settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL", first=FIRST, count=3)
    behind = settings.model_copy(update={"api_url": "https://example.org/market-data"})
    with serve(behind) as api:
        answer = api.get(f"/market-data{BARS}/AAPL", timeframe="5m", limit=1)
        assert answer.json()["next"].startswith(f"/market-data{BARS}/AAPL?timeframe=5m&limit=1&cursor=")
        older = api.session.get(urljoin(answer.url, answer.json()["next"]), timeout=60).json()
    assert older["date_range"]["end"] == "2026-03-11T09:05:00Z"


@few(laws, max_examples=30)
@given(st.lists(st.none() | INSTANTS, min_size=1, max_size=50))
def test_a_cursor_is_read_as_it_was_written_and_by_no_other_request(ends: list[datetime | None]) -> None:
    from market_data_pipeline.serving.problems import Problem

    series = [Series(f"S{n}", Timeframe.H1) for n in range(len(ends))]
    cursor = encode_cursor(series, ends)
    assert decode_cursor(cursor, series) == ends
    for other in (series[1:], [*series, series[0]], [one._replace(timeframe=Timeframe.D1) for one in series]):
        if other:
            with pytest.raises(Problem, match="cursor"):
                decode_cursor(cursor, other)


@few(laws, max_examples=30)
@given(st.text(max_size=60))
def test_any_other_text_is_refused_as_a_cursor(text: str) -> None:
    from market_data_pipeline.serving.problems import Problem

    with pytest.raises(Problem, match="cursor"):
        decode_cursor(text, [Series("AAPL", Timeframe.D1)])
