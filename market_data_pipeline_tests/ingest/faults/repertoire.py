"""The ways in which the vendor misbehaves, each made from the true answer.

`SURVIVED` are retried or do not matter: what is stored is the truth. `SPOILING` refuse one session day, with a reason
that contains the given words; the other days are the truth. `REFUSED` cannot be survived: nothing of the window is
stored, and the audit log row has the class and a message that contains the given words.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from market_data_pipeline_tests.ingest.faults.vendor import (
    ALWAYS,
    Exchange,
    Make,
    Page,
    anything,
    bars,
    first_page,
    later_page,
    recounted,
)
from market_data_pipeline_tests.polygon.faulty_server import (
    Answer,
    reset,
    send,
    send_and_close,
    send_chunked,
    send_gzip,
    send_json,
    send_short,
    stall,
)

TOO_MANY: Final = {"status": "ERROR", "request_id": "f00", "error": "You've exceeded the maximum requests per minute."}
HTML: Final = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
DATE: Final = "Tue, 02 Jan 2024 10:00:00 GMT"
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999999\r\n\r\n"


class Fault(NamedTuple):
    """A fault, which requests it strikes, and how often."""

    make: Make
    applies: Callable[[Exchange], bool] = bars
    times: int = 4  # of five attempts
    read_seconds: float = 30.0  # how long the client waits for a byte


class Refused(NamedTuple):
    """A fault that ends the window, the class of failure it is recorded with, and words of the message."""

    fault: Fault
    error_class: str
    words: str
    stops_run: bool = False


class Spoiling(NamedTuple):
    """A fault in rows of the first page, the session day that it spoils, and words of the reason."""

    make: Make
    words: str
    day: str = "2026-11-18"


def always(made: Answer) -> Make:
    """Answer every request in the same way."""
    return lambda exchange: made


def of_page(change: Callable[[Page], Page | None]) -> Make:
    """Answer with the true page after `change`, which changes it in place or returns another."""

    def make(exchange: Exchange) -> Answer:
        page = exchange.page
        return send_json(change(page) or page)

    return make


def of_rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Make:
    """Answer with the true page whose rows are changed and counted again."""
    return of_page(lambda page: recounted({**page, "results": change(page["results"])}))


def row(at: int, **fields: Any) -> Make:
    """Answer with the true page with some fields of one row replaced."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*rows[:at], {**rows[at], **fields}, *rows[at + 1 :]]

    return of_rows(change)


def next_url(change: Callable[[Exchange, str], str]) -> Make:
    """Answer with the true page and another address of the next one."""

    def make(exchange: Exchange) -> Answer:
        page = exchange.page
        page["next_url"] = change(exchange, page.get("next_url", ""))
        return send_json(page)

    return make


def cut_json(exchange: Exchange) -> Answer:
    return send(200, exchange.body[: len(exchange.body) // 2], {"Content-Type": "application/json"})


def cut_gzip(exchange: Exchange) -> Answer:
    return send_gzip(exchange.body, keep=len(gzip.compress(exchange.body)) // 2)


def too_long(exchange: Exchange) -> Answer:
    return send_short(exchange.body, missing=100)


def too_short(exchange: Exchange) -> Answer:
    return send(200, exchange.body, {"Content-Length": str(len(exchange.body) - 100)})


def unended(exchange: Exchange) -> Answer:
    return send_chunked(exchange.body[:-100], ended=False)


def closed_early(exchange: Exchange) -> Answer:
    return send_and_close(exchange.body[:-100])


def leaving_out(exchange: Exchange, url: str) -> str:
    """A next page that begins a quarter of an hour too late and ends before the window does."""
    start, last = url.split("?")[0].split("/")[-2:]
    return url.replace(f"/{start}/{last}", f"/{int(start) + 900_000}/{int(last) - 900_000}")


def empty_then_next(exchange: Exchange) -> Answer:
    """No bars, and a next page that is this one under another address."""
    page = {k: v for k, v in exchange.page.items() if k not in ("results", "count")}
    address = f"{exchange.root}{exchange.target}&again=1"
    return send_json({**page, "resultsCount": 0, "queryCount": 0, "next_url": address})


def no_end(exchange: Exchange) -> Answer:
    """No bars, and always one more page."""
    page = {k: v for k, v in exchange.page.items() if k not in ("results", "count")}
    return send_json({**page, "resultsCount": 0, "next_url": f"{exchange.root}{exchange.target}&again=1"})


def ping_pong(exchange: Exchange) -> Answer:
    """No bars, and the address of this very page."""
    page = {k: v for k, v in exchange.page.items() if k not in ("results", "count")}
    return send_json({**page, "resultsCount": 0, "next_url": f"{exchange.root}{exchange.target}"})


def standing_still(exchange: Exchange, url: str) -> str:
    """A next page that is this one under another address: the cursor does not advance."""
    return f"{exchange.root}{exchange.target}&again=1"


def repeated(exchange: Exchange) -> Answer:
    """The next page begins with a bar that the page before had."""
    page = exchange.page
    resumed = int(exchange.target.split("/")[8])  # a cursor's lower bound: one bar after the last of the page before
    again = {**page["results"][0], "t": resumed - 300_000}
    return send_json(recounted({**page, "results": [again, *page["results"]]}))


def before_the_window(exchange: Exchange) -> Answer:
    """A bar that ends before the window begins."""
    page = exchange.page
    first = page["results"][0]
    return send_json(recounted({**page, "results": [{**first, "t": first["t"] - 86_400_000}, *page["results"]]}))


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[1], rows[0], *rows[2:]]


def doubled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[0], *rows]


def contradicted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[0], {**rows[0], "v": rows[0]["v"] + 1}, *rows[1:]]


def nan_for_an_unknown_key(exchange: Exchange) -> Answer:
    return send(200, exchange.body.replace(b'"v":', b'"a":NaN,"v":'), {"Content-Type": "application/json"})


SURVIVED: Final[dict[str, Fault]] = {
    "429 with Retry-After": Fault(always(send_json(TOO_MANY, 429, {"Retry-After": "7"})), anything),
    "429 without Retry-After": Fault(always(send_json(TOO_MANY, 429)), anything),
    "429 until a date": Fault(
        always(send_json(TOO_MANY, 429, {"Date": DATE, "Retry-After": "Tue, 02 Jan 2024 10:00:42 GMT"})), anything
    ),
    "429 with an empty body": Fault(always(send(429)), anything),
    "429 inside 200": Fault(always(send_json(TOO_MANY)), anything),
    "an internal error inside 200": Fault(
        always(send_json({"status": "ERROR", "error": "Internal server error"})), anything
    ),
    "502 with HTML": Fault(always(send(502, HTML, {"Content-Type": "text/html"})), anything),
    "HTML inside 200": Fault(always(send(200, HTML, {"Content-Type": "text/html"}))),
    "503 on a later page": Fault(always(send(503)), later_page),
    "reset before the headers": Fault(always(reset()), anything),
    "reset after the headers": Fault(always(reset(HEAD))),
    "reset within the body": Fault(always(reset(HEAD + b'{"ticker":"AA'))),
    "reset on a later page": Fault(always(reset()), later_page),
    "stall before the headers": Fault(always(stall()), times=1, read_seconds=0.5),
    "stall within the body": Fault(always(stall(HEAD + b'{"ticker":')), later_page, times=1, read_seconds=0.5),
    "truncated gzip": Fault(cut_gzip),
    "truncated JSON": Fault(cut_json),
    "a length that is too long": Fault(too_long),
    "a length that is too short": Fault(too_short),
    "chunks without an end": Fault(unended),
    "HTTP/1.0 that closes early": Fault(closed_early),
    "next_url that leaves out bars": Fault(next_url(leaving_out), first_page, 1),
    "next_url on a foreign host": Fault(
        next_url(lambda exchange, url: url.replace(exchange.root, "https://files.example:8443")), first_page, 1
    ),
    "next_url with a doubled port": Fault(
        next_url(
            lambda exchange, url: url.replace(exchange.root, exchange.root + exchange.root.rpartition("/")[2][9:])
        ),
        first_page,
        1,
    ),
    "next_url that carries a key": Fault(next_url(lambda exchange, url: url + "&apiKey=anotherkey"), first_page, 1),
    "an empty page with next_url": Fault(empty_then_next, first_page, 1),
    "a row twice": Fault(of_rows(doubled), bars, ALWAYS),
    "NaN for an unknown key": Fault(nan_for_an_unknown_key, bars, ALWAYS),
    "a null close once": Fault(row(3, c=None), bars, 1),
    "a wrong count once": Fault(of_page(lambda page: {**page, "resultsCount": page["resultsCount"] + 1}), bars, 1),
    "another bar for a row of the page before": Fault(repeated, later_page, ALWAYS),  # the day alone has one page
    "truncated JSON on a later page": Fault(cut_json, later_page, ALWAYS),
    "500 on every later page": Fault(always(send(500, HTML)), later_page, ALWAYS),
    "resets on every later page": Fault(always(reset()), later_page, ALWAYS),
    "stalls on every later page": Fault(always(stall()), later_page, ALWAYS, read_seconds=0.2),
    "adjusted bars on a later page": Fault(of_page(lambda page: {**page, "adjusted": True}), later_page, ALWAYS),
}

SPOILING: Final[dict[str, Spoiling]] = {
    "two bars for one start": Spoiling(of_rows(contradicted), "comes twice, with different values"),
    "unsorted rows": Spoiling(of_rows(swapped), "does not come after"),
    "a row before the window": Spoiling(before_the_window, "outside"),
    "a row after the window": Spoiling(
        of_rows(lambda rows: [*rows, {**rows[-1], "t": rows[-1]["t"] + 30 * 86_400_000}]), "outside", "2026-11-19"
    ),
    "a row off the grid": Spoiling(
        of_rows(lambda rows: [{**rows[0], "t": rows[0]["t"] + 60_000}, *rows[1:]]), "is not on the grid"
    ),
    "a stamp in nanoseconds": Spoiling(
        of_rows(lambda rows: [{**rows[0], "t": rows[0]["t"] * 1_000_000}, *rows[1:]]), "nanoseconds"
    ),
    "a null stamp": Spoiling(row(0, t=None), "bar 0, field t"),
    "a null volume": Spoiling(row(5, v=None), "bar 5, field v"),
    "null among the rows": Spoiling(
        of_rows(lambda rows: [*rows[:4], None, *rows[5:]]),  # type: ignore[list-item]
        "bar 4",
    ),
    "a price of zero": Spoiling(row(0, o=0, l=0), "not above 0"),
    "high below low": Spoiling(row(1, h=1.0), "low <= open"),
}

_OUT: Final = {"status": "ERROR", "request_id": "f00", "error": "Could not parse the time parameter: 'from'."}

REFUSED: Final[dict[str, Refused]] = {
    "429 without end": Refused(
        Fault(always(send_json(TOO_MANY, 429, {"Retry-After": "300"})), bars, ALWAYS), "RateLimitedError", "5 attempts"
    ),
    "500 without end": Refused(Fault(always(send(500, HTML)), bars, ALWAYS), "UnansweredError", "HTTP 500"),
    "resets without end": Refused(Fault(always(reset()), bars, ALWAYS), "UnansweredError", "connection failed"),
    "truncated JSON without end": Refused(Fault(cut_json, bars, ALWAYS), "UnreadableAnswerError", "not readable JSON"),
    "400": Refused(Fault(always(send_json(_OUT, 400)), bars, 1), "VendorRequestError", "Could not parse"),
    "stalls without end": Refused(
        Fault(always(stall()), bars, ALWAYS, read_seconds=0.2), "UnansweredError", "5 attempts"
    ),
    "404": Refused(Fault(always(send(404)), later_page, 1), "VendorRequestError", "HTTP 404"),
    "400 inside 200": Refused(Fault(always(send_json(_OUT)), later_page, 1), "VendorRequestError", "Could not parse"),
    "404 inside 200": Refused(
        Fault(always(send_json({"status": "NOT_FOUND", "message": "Data not found."})), bars, 1),
        "VendorRequestError",
        "Data not found",
    ),
    "a redirect": Refused(
        Fault(always(send(302, headers={"Location": "https://elsewhere.example/"})), bars, 1),
        "VendorRequestError",
        "elsewhere",
    ),
    "another ticker": Refused(
        Fault(of_page(lambda page: {**page, "ticker": "MSFT"}), bars, ALWAYS), "DataError", "is for ticker 'MSFT'"
    ),
    "adjusted bars": Refused(
        Fault(of_page(lambda page: {**page, "adjusted": True}), bars, ALWAYS), "DataError", "adjusted = True"
    ),
    "no word on adjustment": Refused(
        Fault(of_page(lambda page: {k: v for k, v in page.items() if k != "adjusted"}), bars, ALWAYS),
        "DataError",
        "adjusted = None",
    ),
    "a wrong count": Refused(
        Fault(of_page(lambda page: {**page, "resultsCount": page["resultsCount"] + 1}), bars, ALWAYS),
        "DataError",
        "resultsCount",
    ),
    "nanosecond stamps": Refused(
        Fault(of_rows(lambda rows: [{**each, "t": each["t"] * 1_000_000} for each in rows]), bars, ALWAYS),
        "DataError",
        "nanoseconds",
    ),
    "rows that say nothing": Refused(
        Fault(of_rows(lambda rows: [{} for _ in rows]), bars, ALWAYS), "DataError", "missing"
    ),
    "a next_url to another resource": Refused(
        Fault(next_url(lambda one, url: f"{one.root}/v1/secrets"), bars, ALWAYS),
        "DataError",
        "leads elsewhere",
    ),
    "pages that never end": Refused(Fault(no_end, bars, ALWAYS), "DataError", "pages in a row are empty"),
    "a cursor that stands still": Refused(
        Fault(next_url(standing_still), bars, ALWAYS), "DataError", "does not come after"
    ),
    "pages that go in circles": Refused(Fault(ping_pong, bars, ALWAYS), "DataError", "already been read"),
    "401": Refused(
        Fault(always(send_json({"status": "ERROR", "error": "Unknown API Key"}, 401)), later_page, ALWAYS),
        "VendorRefusedError",
        "Correct POLYGON_API_KEY",
        stops_run=True,
    ),
    "401 inside 200": Refused(
        Fault(always(send_json({"status": "ERROR", "error": "Unknown API Key"})), bars, ALWAYS),
        "VendorRefusedError",
        "Correct POLYGON_API_KEY",
        stops_run=True,
    ),
    "403 inside 200": Refused(
        Fault(
            always(send_json({"status": "NOT_AUTHORIZED", "message": "You are not entitled to this."})), bars, ALWAYS
        ),
        "VendorRefusedError",
        "Check POLYGON_PLAN",
        stops_run=True,
    ),
    "403 for the whole plan": Refused(
        Fault(
            always(send_json({"status": "NOT_AUTHORIZED", "message": "You are not entitled to this."}, 403)), bars, 9
        ),
        "VendorRefusedError",
        "Check POLYGON_PLAN",
        stops_run=True,
    ),
}
