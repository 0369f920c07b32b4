"""The vendor's key in a failing run: in one header of each request, and nowhere else that anyone could read."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.partitions import sync_partitions
from market_data_pipeline.polygon import client
from market_data_pipeline.polygon.transport import Limits
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.store.connection import engine
from market_data_pipeline.store.universe import sync_universe
from market_data_pipeline_tests.conftest import SESSION
from market_data_pipeline_tests.ingest.faults.repertoire import always, cut_gzip, next_url, of_page, too_long
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, Exchange, FaultyVendor, Make, anything
from market_data_pipeline_tests.orchestration.conftest import NOW, REPOSITORY
from market_data_pipeline_tests.polygon.faulty_server import Answer, reset, send, send_json

KEY = "kQ7vSECRETvendorKEY93xZ"
TELLING = "7vsecretven"


def said(status: int, word: str, **more: str) -> Answer:
    """A refusal that quotes the key as the vendor, a proxy or a library could."""
    return send_json({"status": word, "request_id": KEY, **more}, status)


def cut_json(exchange: Exchange) -> Answer:
    return send(200, exchange.body[:200] + KEY.encode())


# One fault per symbol, each of which leaves the others alone; the key is quoted wherever something could repeat it.
FAULTS: dict[str, Make] = {
    "AAPL": always(said(400, "ERROR", error=f"apiKey={KEY} is not a parameter")),
    "MSFT": always(said(403, "NOT_AUTHORIZED", message=f"{KEY}: your plan doesn't include this data timeframe")),
    "NVDA": next_url(lambda exchange, url: f"https://{KEY}.example/v2/{KEY}?apiKey={KEY}"),
    "AMZN": always(send(302, headers={"Location": f"https://evil.example/?apiKey={KEY}"})),
    "GOOGL": always(reset(f"HTTP/1.1 {KEY}\r\n".encode())),
    "META": always(said(500, "ERROR", error=f"panic: Bearer {KEY}")),
    "TSLA": of_page(lambda page: {**page, "ticker": KEY}),
    "SPY": cut_json,
    "AMD": cut_gzip,
    "NFLX": too_long,
    "AVGO": always(said(200, "ERROR", error=f"Bad request of {KEY}")),
    "ORCL": always(send(200, b"{}", {"Content-Encoding": KEY})),
}


@pytest.fixture
def vendor() -> Iterator[FaultyVendor]:
    with FaultyVendor(SyntheticMarket(0), lambda: NOW, key=KEY) as made:
        yield made


@pytest.fixture
def home(
    dagster_home: Path, database_url: str, vendor: FaultyVendor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance whose runs read the key from the environment, as a user's do."""
    for name, value in {
        "POLYGON_API_KEY": KEY,
        "POLYGON_BASE_URL": vendor.url,
        "POLYGON_PLAN": "advanced",
        "DATABASE_URL": database_url,
        "MARKET_DATA_AS_OF": NOW.isoformat(),
        "MARKET_DATA_HISTORY_DAYS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    made = engine(database_url, as_of=NOW)
    sync_universe(made, {Tier.CRITICAL: tuple(FAULTS)}, NOW)
    with dg.DagsterInstance.get() as instance:
        sync_partitions(instance, made)
        made.dispose()
        yield instance


def texts_of(url: str) -> Iterator[tuple[str, str]]:
    """Yield every row of every table of a database as text, unpacked where it is compressed."""
    with psycopg.connect(url.replace("+psycopg2", "")) as connection:
        tables = connection.execute(
            "select schemaname, tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            name = sql.Identifier(schema, table)
            for (row,) in connection.execute(sql.SQL("select t::text from {} as t").format(name)):
                yield f"{schema}.{table}", row
            packed = connection.execute(
                "select column_name from information_schema.columns"
                " where table_schema = %s and table_name = %s and data_type = 'bytea'",
                (schema, table),
            ).fetchall()
            for (column,) in packed:
                for (value,) in connection.execute(
                    sql.SQL("select {} from {}").format(sql.Identifier(column), name)
                ).fetchall():
                    yield f"{schema}.{table}.{column}", unpacked(bytes(value or b""))


def unpacked(value: bytes) -> str:
    try:
        return zlib.decompress(value).decode("utf-8", "replace")
    except zlib.error:
        return value.decode("utf-8", "replace")


def everything_behind(error: BaseException) -> str:
    """Return the error and all that is attached to it: text, arguments, attributes, notes, locals of every frame."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    texts = list(shown.format(chain=True))
    while queue:
        one = queue.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            texts.append(f"{one!s} {one!r} {one.args!r} {vars(one)!r}")
            queue += [one.__cause__, one.__context__]
    return "\n".join(texts)


def assert_secret(text: str, where: str) -> None:
    """Fail when the text shows the key or a large part of it, in any case."""
    at = text.lower().find(TELLING)
    assert at < 0, f"{where}: {text[max(0, at - 200) : at + 200]}"


def assert_no_trace(instance: dg.DagsterInstance, urls: list[str], folder: Path) -> None:
    for url in urls:
        rows = 0
        for where, text in texts_of(url):
            rows += 1
            assert_secret(text, where)
        assert rows > 20
    for run in instance.get_runs():
        assert_secret(f"{run!r} {run.tags!r} {run.run_config!r}", "run")
        for entry in instance.all_logs(run.run_id):
            assert_secret(f"{entry!r} {entry.user_message}", "event")
    for file in (*folder.rglob("*"), *Path(os.environ[SESSION]).glob("postgres/log/*")):
        if file.is_file():
            assert_secret(file.read_bytes().decode("utf-8", "replace"), str(file))


def run(instance: dg.DagsterInstance, config: dict[str, Any] | None = None) -> dg.ExecuteInProcessResult:
    job = build_defs().resolve_job_def("critical_refresh")
    run_config = {"ops": {"critical_series": {"config": config}}} if config else None
    return job.execute_in_process(instance=instance, raise_on_error=False, run_config=run_config)


def test_no_log_event_row_or_file_of_failing_runs_shows_the_key(
    home: dg.DagsterInstance,
    vendor: FaultyVendor,
    database_url: str,
    dagster_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    patient = {"sleep": lambda _: None, "uniform": lambda low, high: low, "limits": Limits(read=5)}
    monkeypatch.setattr(client, "PolygonClient", partial(client.PolygonClient, **patient))
    caplog.set_level(logging.DEBUG)

    for symbol, make in FAULTS.items():
        vendor.inject(make, lambda exchange, symbol=symbol: exchange.kind == "5m" and exchange.symbol == symbol, ALWAYS)
    each_in_its_way = run(home)
    assert not each_in_its_way.success
    failed = [record for record in rows(database_url) if record["error"]]
    assert {record["symbol"] for record in failed} == set(FAULTS)
    assert {record["timeframe"] for record in failed} == {"5m", "15m", "1h", "4h"}

    for refusal in (
        said(401, "ERROR", error=f"Unknown API Key {KEY}"),
        said(403, "NOT_AUTHORIZED", message=f"Bearer {KEY} is not entitled to this data"),
    ):
        vendor.heal()
        vendor.inject(always(refusal), anything, ALWAYS)
        assert not run(home, {"full_refresh": True}).success
        assert {record["error_class"] for record in rows(database_url)} == {"VendorRefusedError"}
        # What the vendor said is repeated, without the key.
        assert all("***" in str(record["error"]) for record in rows(database_url))

    monkeypatch.setenv("POLYGON_BASE_URL", "http://127.0.0.1:9")
    assert not run(home, {"full_refresh": True}).success
    monkeypatch.setenv("POLYGON_BASE_URL", "ftp://nowhere")
    with pytest.raises(dg.Failure) as caught:
        build_defs().resolve_job_def("critical_refresh").execute_in_process(instance=home)
    assert_secret(everything_behind(caught.value), "exception")

    assert any(seen.headers.get("Authorization") == f"Bearer {KEY}" for seen in vendor.seen)
    assert not any(KEY in seen.target for seen in vendor.seen)
    assert_no_trace(home, [database_url, dagster_url], tmp_path)
    assert list(tmp_path.rglob("*.err"))  # compute logs were captured
    assert_secret(caplog.text, "log")
    assert_secret("".join(capfd.readouterr()), "output")


def rows(database_url: str) -> list[dict[str, Any]]:
    """Return the audit rows of the last run."""
    with psycopg.connect(database_url, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(
            "select * from market_data.ingest_log"
            " where run_id = (select run_id from market_data.ingest_log order by id desc limit 1)"
        ).fetchall()


def test_a_process_of_dagsters_own_command_does_not_show_the_key_either(
    home: dg.DagsterInstance, vendor: FaultyVendor, database_url: str, dagster_url: str, tmp_path: Path
) -> None:
    vendor.inject(always(said(401, "ERROR", error=f"Unknown API Key {KEY}")), anything, ALWAYS)
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "market_data_pipeline.definitions"]
    done = subprocess.run(
        [*command, "-j", "critical_refresh"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Correct POLYGON_API_KEY" in done.stdout + done.stderr
    assert_secret(done.stdout + done.stderr, "output")
    assert_no_trace(home, [database_url, dagster_url], tmp_path)
    assert len(vendor.seen) == 1
