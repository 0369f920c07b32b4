"""The same records in every format, compressed or not, and not sent again when nothing changed."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from market_data_pipeline.serving.formats import Media
from market_data_pipeline_tests.serving.conftest import BARS, FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed


def test_every_format_holds_what_json_holds_and_names_the_series(api: Api, seed: Seed) -> None:
    seed.series("AAPL", late=timedelta(hours=2))
    records = api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["features"]

    text = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": "text/csv"})
    stream = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": "application/vnd.apache.arrow.stream"})
    file = api.get(f"{FEATURES}/AAPL", timeframe="5m", format="parquet", headers={"Accept": "text/csv"})
    by_column = api.get(f"{FEATURES}/AAPL", timeframe="5m", format="columns")

    rows = list(csv.DictReader(io.StringIO(text.text)))
    assert [row["ts"] for row in rows] == [record["ts"] for record in records]
    assert [row["hh"] for row in rows] == [{None: "", True: "true", False: "false"}[r["hh"]] for r in records]
    assert [float(row["close"]) for row in rows] == [record["close"] for record in records]
    table = pa.ipc.open_stream(stream.content).read_all()
    assert table.schema.field("ts").type == pa.timestamp("us", "UTC")
    keys = {"symbol": "AAPL", "timeframe": "5m"}
    parsed = [{**keys, **r, "ts": datetime.fromisoformat(r["ts"])} for r in records]
    assert table.to_pylist() == parsed
    assert pq.read_table(pa.BufferReader(file.content)).to_pylist() == parsed
    assert [(row["symbol"], row["timeframe"]) for row in rows] == [("AAPL", "5m")] * len(records)
    assert by_column.json()["columns"] == {name: [record[name] for record in records] for name in records[0]}
    for response in (text, stream, file):
        assert response.headers["X-Freshness"] == "AGING"
        assert "missing for 2 h" in response.headers["X-Freshness-Warning"]


def test_an_empty_range_is_served_in_every_format(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    path, params = f"{FEATURES}/AAPL", {"timeframe": "5m", "start": "2026-03-12"}
    assert api.get(path, **params).json()["features"] == []
    assert len(api.get(path, headers={"Accept": "text/csv"}, **params).text.splitlines()) == 1
    stream = api.get(path, headers={"Accept": "application/vnd.apache.arrow.stream"}, **params)
    assert pa.ipc.open_stream(stream.content).read_all().num_rows == 0
    assert pq.read_table(pa.BufferReader(api.get(path, format="parquet", **params).content)).num_rows == 0
    assert api.get(path, format="columns", **params).json()["columns"]["close"] == []


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


def test_instants_are_milliseconds_on_request(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=2)
    asked = {"timeframe": "5m", "timestamps": "ms"}
    first = datetime.fromisoformat("2026-03-11T13:30:00Z").timestamp() * 1000
    for path, key in ((FEATURES, "features"), (BARS, "bars")):
        records = api.get(f"{path}/AAPL", **asked).json()[key]
        assert [record["ts"] for record in records] == [first, first + 300_000]
    assert api.get(f"{BARS}/AAPL", format="columns", **asked).json()["columns"]["ts"] == [first, first + 300_000]
    assert api.get(f"{BARS}/AAPL", format="csv", **asked).text.splitlines()[1].startswith(f"AAPL,5m,{first:.0f},")


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
    tags = {api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept": kind}).headers["ETag"] for kind in Media}
    assert len(tags) == len(Media)


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
        timeout=60,
    )
    raw = packed.raw.read(decode_content=False)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(raw) < len(plain.content) / 2
    assert gzip.decompress(raw) == plain.content


def test_head_answers_like_get_without_a_body(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    got = api.get(f"{FEATURES}/AAPL", timeframe="5m", headers={"Accept-Encoding": "identity"})
    asked = api.session.head(
        f"{api.base}{FEATURES}/AAPL?timeframe=5m", headers={"Accept-Encoding": "identity"}, timeout=60
    )
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["ETag"] == got.headers["ETag"]
    assert asked.headers["Content-Length"] == str(len(got.content))
