"""Dividends of the vendor's lists: requests, pages and rows."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from market_data_pipeline.domain.adjustments import NO_TICKER, ListedDividend
from market_data_pipeline.domain.errors import VendorRequestError
from market_data_pipeline_tests.polygon.faulty_server import FaultyServer, send_json
from market_data_pipeline_tests.polygon.vendor import QuickClient, cost

NEXT = "https://api.massive.com/stocks/v1/dividends?cursor=YXA9Mg&apiKey=x"
GONE = send_json({"status": "NOT_FOUND", "request_id": "x", "message": "Not found"}, 404)
# As the vendor's documentation shows a row of each list.
PRESENT: dict[str, Any] = {
    "cash_amount": 0.26, "currency": "USD", "declaration_date": "2025-07-31", "distribution_type": "recurring",
    "ex_dividend_date": "2025-08-11", "frequency": 4, "historical_adjustment_factor": 0.997899, "id": "Ed2c9da60",
    "pay_date": "2025-08-14", "record_date": "2025-08-11", "split_adjusted_cash_amount": 0.26, "ticker": "AAPL",
}  # fmt: skip
OLDER: dict[str, Any] = {
    "cash_amount": 0.22, "declaration_date": "2021-10-28", "dividend_type": "CD", "ex_dividend_date": "2021-11-05",
    "frequency": 4, "pay_date": "2021-11-11", "record_date": "2021-11-08", "ticker": "AAPL",
}  # fmt: skip


def listing(*rows: Any, **changed: Any) -> Any:
    return send_json({"results": list(rows), "status": "OK", "request_id": "x", **changed})


def read(server: FaultyServer, unreadable: dict[str, str] | None = None, **options: Any) -> list[ListedDividend]:
    found = {} if unreadable is None else unreadable
    return list(QuickClient(server.url).client.dividends(followed={"AAPL"}, unreadable=found, **options))


def test_dividends_of_all_pages_are_read_with_all_that_they_say() -> None:
    with FaultyServer(listing(PRESENT, {**PRESENT, "ticker": "MSFT"}, next_url=NEXT), listing(OLDER)) as server:
        first, second = read(server, since=dt.date(2021, 1, 1))
    assert first == (
        "AAPL", dt.date(2025, 8, 11), 0.26, "USD", dt.date(2025, 7, 31), dt.date(2025, 8, 11), dt.date(2025, 8, 14), 4,
        "recurring", "Ed2c9da60",
    )  # fmt: skip
    assert (second.ex_date, second.currency, second.type, second.vendor_id) == (
        dt.date(2021, 11, 5), "USD", "recurring", None,
    )  # fmt: skip
    target = "/stocks/v1/dividends?ex_dividend_date.gte=2021-01-01&limit=5000&sort=ex_dividend_date.asc"
    assert [seen.target for seen in server.seen] == [target, "/stocks/v1/dividends?cursor=YXA9Mg"]


def test_many_tickers_are_requested_forty_at_a_time_and_one_by_one_of_the_older_list() -> None:
    tickers = [f"T{number:02}" for number in range(41)]
    with FaultyServer(listing()) as server:
        read(server, tickers=tickers)
        read(server, tickers=["BRK.B"])
    several, last, single = (seen.target for seen in server.seen)
    assert several.startswith("/stocks/v1/dividends?ticker.any_of=T00%2CT01%2C")
    assert last.startswith("/stocks/v1/dividends?ticker=T40&")
    assert single.startswith("/stocks/v1/dividends?ticker=BRK.B&")
    with FaultyServer(GONE, listing()) as server:
        read(server, tickers=tickers)
    assert len(server.seen) == 1 + 41
    assert server.seen[1].target == "/v3/reference/dividends?ticker=T00&limit=1000&order=asc&sort=ex_dividend_date"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("SC", "special"), ("LT", "long_term_gain"), ("ST", "short_term_gain"), ("XX", "XX"), (None, None)],
)
def test_the_codes_of_the_older_list_have_names(code: str | None, kind: str | None) -> None:
    with FaultyServer(GONE, listing({**OLDER, "dividend_type": code})) as server:
        assert [each.type for each in read(server)] == [kind]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cash_amount": 0}, "row 1 .*cash_amount: 0.0 is not an amount of money"),
        ({"cash_amount": -1}, "cash_amount: -1.0 is not"),
        ({"cash_amount": "0.26"}, "cash_amount: Expected float, got str"),
        ({"ex_dividend_date": "2025-02-30"}, "ex_dividend_date: "),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_and_named(change: dict[str, Any], named: str) -> None:
    unreadable: dict[str, str] = {}
    with FaultyServer(listing(OLDER, {**PRESENT, **change}, {"cash_amount": 1})) as server:
        assert [each.amount for each in read(server, unreadable)] == [0.22]
    assert unreadable.keys() == {"AAPL", NO_TICKER}
    with pytest.raises(AssertionError, match=named):
        raise AssertionError(unreadable["AAPL"])


def test_what_adjusts_nothing_costs_no_row() -> None:
    odd = {
        **PRESENT,
        "declaration_date": "soon",
        "record_date": 7,
        "frequency": "often",
        "distribution_type": None,
        "id": 9,
    }
    with FaultyServer(listing(odd)) as server:
        [row] = read(server)
    assert (row.declaration_date, row.record_date, row.frequency, row.type, row.vendor_id) == (
        None,
        None,
        None,
        None,
        "9",
    )


def test_a_list_that_is_nowhere_is_an_error() -> None:
    with FaultyServer(GONE, GONE) as server, pytest.raises(VendorRequestError, match="HTTP 404: Not found") as caught:
        read(server)
    assert cost(caught.value).requests == 2
