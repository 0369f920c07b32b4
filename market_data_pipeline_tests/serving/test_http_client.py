"""The client over HTTP answers what the readers answer from the database."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pytest

from market_data_pipeline import read_bars, read_features, read_records
from market_data_pipeline.domain.errors import TransientError, UsageError
from market_data_pipeline.http_client import (
    ApiUnavailableError,
    Client,
    NotTrackedError,
    RefusedError,
    WrongRequestError,
)
from market_data_pipeline.http_client import client as client_module
from market_data_pipeline_tests.serving.conftest import Api, MovableClock
from market_data_pipeline_tests.serving.seeding import NOW, Seed

FIRST = datetime(2026, 3, 10, 14, 0, tzinfo=UTC)


@pytest.fixture
def held(seed: Seed) -> Seed:
    seed.series("MSFT", count=30, first=FIRST)
    seed.series("MSFT", "1d", count=4, first=datetime(2026, 3, 5, 5, tzinfo=UTC))
    seed.series("AAPL", count=25, first=FIRST, close=400.0)
    seed.split("AAPL", "2026-03-11", 1, 4)
    seed.dividend("MSFT", "2026-03-08", 0.5)
    seed.correct("AAPL", "5m", FIRST, 404.0, NOW - timedelta(minutes=1))
    seed.run("delete from market_data.features where symbol = 'MSFT' and ts = %s", FIRST)
    seed.symbol("IBM")
    return seed


@pytest.mark.parametrize("page", [7, 10_000])
def test_it_answers_what_the_readers_answer(
    api: Api, held: Seed, settings: MovableClock, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_PAGE", page)
    client = Client(api.base)
    window = {"start": "2026-03-10", "end": FIRST + timedelta(hours=2)}
    for name, reader, arguments, options in [
        ("read_bars", read_bars, ("AAPL", "5m"), {}),
        ("read_bars", read_bars, ("AAPL", "5m"), {"adjusted": False, "columns": ["close", "trades"], **window}),
        ("read_bars", read_bars, ("AAPL", "5m"), {"as_of": NOW - timedelta(minutes=90)}),
        ("read_bars", read_bars, (["MSFT", "IBM", "AAPL"], ["5m", "1d"]), {"adjusted": "all"}),
        ("read_bars", read_bars, ("AAPL", "5m"), {"adjusted": "splits"}),
        ("read_features", read_features, (["MSFT", "AAPL"], "5m"), window),
        ("read_features", read_features, ("MSFT", "5m"), {"columns": ["trend_direction", "hh"]}),
        ("read_records", read_records, (["MSFT", "AAPL"], "5m"), {}),
    ]:
        for form in ({}, {"as_arrow": True}, {"as_polars": True}):
            expected: Any = reader(*arguments, settings=settings, source="database", **options, **form)
            found = getattr(client, name)(*arguments, **options, **form)
            if not form:
                pd.testing.assert_frame_equal(found, expected)
            elif "as_arrow" in form:
                assert found.to_pylist() == expected.to_pylist()
                assert found.column_names == expected.column_names
            else:
                assert found.equals(expected)


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_an_answer_comes_in_frames_of_at_most_so_many_rows(api: Api, held: Seed, rows: int) -> None:
    client = Client(api.base)
    arguments = (["MSFT", "IBM", "AAPL"], ["5m", "1d"])
    for kind, options in (
        ("bars", {"adjusted": "all", "columns": ["close", "trades"]}),
        ("features", {}),
        ("records", {"start": "2026-03-10"}),
    ):
        whole = getattr(client, f"read_{kind}")(*arguments, as_arrow=True, **options)
        for form, size in (("as_arrow", lambda table: table.num_rows), ("as_polars", len), ("as_pandas", len)):
            given = {form: True} if form != "as_pandas" else {}
            frames = list(getattr(client, f"iter_{kind}")(*arguments, rows=rows, **given, **options))
            assert all(0 < size(frame) <= rows for frame in frames)
            assert sum(map(size, frames)) == whole.num_rows > 0
            if form == "as_arrow":
                assert pa.concat_tables(frames).to_pylist() == whole.to_pylist()
                assert {tuple(frame.schema) for frame in frames} == {tuple(whole.schema)}


def test_symbols_are_requested_as_their_frames_are_asked_for(api: Api, held: Seed) -> None:
    frames = Client(api.base).iter_bars(["AAPL", "NOPE"], "5m")
    assert len(next(frames)) == 25
    with pytest.raises(NotTrackedError):
        next(frames)
    for wrong in ({"rows": 0}, {"session": "lunch"}, {"as_arrow": True, "as_polars": True}):
        with pytest.raises(UsageError):
            Client(api.base).iter_bars("AAPL", "5m", **wrong)


def test_the_symbols_are_listed(api: Api, held: Seed) -> None:
    held.symbol("X:BTCUSD", "standard")
    assert Client(api.base).symbols() == ["AAPL", "IBM", "MSFT", "X:BTCUSD"]
    assert Client(api.base).symbols("standard") == ["X:BTCUSD"]


def test_failures_are_classes(api: Api, held: Seed) -> None:
    client = Client(api.base)
    with pytest.raises(NotTrackedError, match="Not tracked here: 'NOPE'") as unknown:
        client.read_bars(["AAPL", "NOPE"], "5m")
    assert unknown.value.problem["symbols"] == ["NOPE"]
    with pytest.raises(WrongRequestError, match="as_of: is in the future"):
        client.read_bars("AAPL", "5m", as_of=datetime.now(UTC) + timedelta(days=3650))
    for wrong in ({"columns": ["clsoe"]}, {"start": "2026-03-12", "end": "2026-03-11"}, {"start": "yesterday"}):
        with pytest.raises(UsageError):
            client.read_bars("AAPL", "5m", **wrong)
    for address in ("example.org", "ftp://example.org", "https://user:secret@example.org", "https://example.org?t=1"):
        with pytest.raises(UsageError, match="base_url") as refused:
            Client(address)
        assert "secret" not in str(refused.value)


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives the answers of `given` in turn, and keeps what was requested."""

    given: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers["Authorization"]))
        status, headers, body = self.given.pop(0)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def base() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    Answers.requests.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}/below"
    server.shutdown()
    server.server_close()


NOTHING = b'{"symbols": []}'


def test_the_token_is_in_a_header_and_is_sent_to_no_other_host(base: str) -> None:
    elsewhere = base.replace("127.0.0.1", "localhost").replace("/below", "/elsewhere")
    Answers.given[:] = [(307, {"Location": elsewhere}, b""), (200, {}, NOTHING)]
    assert Client(base, token="a-token").symbols() == []
    assert [authorization for _, authorization in Answers.requests] == ["Bearer a-token", None]
    assert all("a-token" not in path for path, _ in Answers.requests)
    Answers.given[:] = [(200, {"Link": '<http://elsewhere.example/>; rel="next"'}, NOTHING)]
    with pytest.raises(Exception, match=r"on another host, elsewhere\.example"):
        Client(base, token="a-token").symbols()


def test_a_busy_api_is_asked_again_after_the_time_that_it_names(base: str) -> None:
    busy = (503, {"Retry-After": "0"}, b'{"type": "/problems/busy", "detail": "Many requests."}')
    Answers.given[:] = [busy, busy, (200, {}, NOTHING)]
    assert Client(base).symbols() == []
    Answers.given[:] = [busy] * 4
    with pytest.raises(ApiUnavailableError, match=r"Many requests\.") as failed:
        Client(base).symbols()
    assert (failed.value.type, failed.value.status, Answers.given) == ("/problems/busy", 503, [])
    assert isinstance(failed.value, TransientError)
    Answers.given[:] = [(401, {}, b"<html>a proxy</html>")]
    with pytest.raises(RefusedError, match="The API answered 401"):
        Client(base).symbols()


def test_it_loads_neither_the_settings_nor_a_driver() -> None:
    code = (
        "import sys; from market_data_pipeline.http_client import Client; Client('http://127.0.0.1:8000');"
        "print(sorted({'psycopg', 'pydantic', 'requests', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
