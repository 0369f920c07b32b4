"""The same records in every format, compressed or not, and not sent again when nothing changed."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from market_data_pipeline_tests.serving.conftest import FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed


def test_csv_and_arrow_hold_what_json_holds(api: Api, seed: Seed) -> None:
    seed.series("AAPL", late=timedelta(hours=2))
    records = api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["features"]

    text = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": "text/csv"})
    stream = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": "application/vnd.apache.arrow.stream"})

    rows = list(csv.DictReader(io.StringIO(text.text)))
    assert [row["ts"] for row in rows] == [record["ts"] for record in records]
    assert [row["hh"] for row in rows] == [{None: "", True: "true", False: "false"}[r["hh"]] for r in records]
    assert [float(row["close"]) for row in rows] == [record["close"] for record in records]
    table = pa.ipc.open_stream(stream.content).read_all()
    assert table.schema.field("ts").type == pa.timestamp("us", "UTC")
    parsed = [{**r, "ts": datetime.fromisoformat(r["ts"])} for r in records]
    assert table.to_pylist() == parsed
    for response in (text, stream):
        assert response.headers["X-Freshness"] == "AGING"
        assert "missing for 2 h" in response.headers["X-Freshness-Warning"]


def test_an_empty_range_is_served_in_every_format(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    path, params = f"{FEATURES}/AAPL", {"timeframe": "5m", "start": "2026-03-12"}
    assert api.get(path, **params).json()["features"] == []
    assert len(api.get(path, headers={"Accept": "text/csv"}, **params).text.splitlines()) == 1
    stream = api.get(path, headers={"Accept": "application/vnd.apache.arrow.stream"}, **params)
    assert pa.ipc.open_stream(stream.content).read_all().num_rows == 0


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "text/csv"),
        ("application/vnd.apache.arrow.stream, text/*;q=0.9", "application/vnd.apache.arrow.stream"),
    ],
)
def test_accept_decides_by_quality(api: Api, seed: Seed, accept: str, kind: str) -> None:
    seed.series("AAPL")
    response = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": accept})
    assert response.headers["Content-Type"].startswith(kind)
    assert "Accept" in response.headers["Vary"]


def test_an_unacceptable_format_is_refused(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    response = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": "image/png"})
    assert response.status_code == 406
    assert "text/csv" in response.json()["detail"]


def test_unchanged_records_are_not_sent_again(api: Api, seed: Seed, move_clock: Callable[[datetime], None]) -> None:
    seed.series("AAPL", late=timedelta(minutes=50))
    etag = api.get(f"{FEATURES}/AAPL", timeframe="5m").headers["ETag"]

    move_clock(NOW + timedelta(minutes=5))
    same = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"If-None-Match": f'"other", {etag}'})
    move_clock(NOW + timedelta(minutes=15))
    aged = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"If-None-Match": etag})

    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", etag)
    assert (aged.status_code, aged.json()["freshness"]["status"]) == (200, "AGING")
    assert aged.headers["ETag"] != etag


def test_each_format_has_its_own_etag(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    tags = {
        api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": kind}).headers["ETag"]
        for kind in ("application/json", "text/csv", "application/vnd.apache.arrow.stream")
    }
    assert len(tags) == 3


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
@pytest.mark.parametrize("repeated", [False, True])
def test_the_compressed_answer_is_the_plain_one(api: Api, seed: Seed, accept: str, repeated: bool) -> None:
    seed.series("AAPL", count=40)
    api.wait_for_cache()
    asked = {"timeframe": "5m", "headers": {"Accept": accept, "Accept-Encoding": "identity"}}
    if repeated:
        api.get(f"{FEATURES}/AAPL", **asked)
    plain = api.get(f"{FEATURES}/AAPL", **asked)
    packed = api.session.get(
        f"{api.base}{FEATURES}/AAPL?timeframe=5m",
        headers={"Accept": accept, "Accept-Encoding": "gzip"},
        stream=True,
        timeout=10,
    )
    raw = packed.raw.read(decode_content=False)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(raw) < len(plain.content) / 2
    assert gzip.decompress(raw) == plain.content


def test_head_answers_like_get_without_a_body(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    got = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept-Encoding": "identity"})
    asked = api.session.head(
        f"{api.base}{FEATURES}/AAPL?timeframe=5m", headers={"Accept-Encoding": "identity"}, timeout=10
    )
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["ETag"] == got.headers["ETag"]
    assert asked.headers["Content-Length"] == str(len(got.content))
