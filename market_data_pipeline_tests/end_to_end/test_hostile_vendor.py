"""A refresh through the real daemon against a vendor that misbehaves: correct days, or none and the reason.

The second test builds on the first: it fetches what failed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.orchestration.runs import submit_refresh
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.view import View
from market_data_pipeline_tests.end_to_end.conftest import MakeProject
from market_data_pipeline_tests.end_to_end.project import NOON, Project
from market_data_pipeline_tests.end_to_end.unattended import unattended
from market_data_pipeline_tests.ingest.faults.repertoire import (
    HTML,
    TOO_MANY,
    always,
    cut_gzip,
    cut_json,
    doubled,
    empty_then_next,
    leaving_out,
    next_url,
    of_page,
    of_rows,
    row,
    too_long,
    unended,
)
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, Exchange, FaultyVendor, Make, anything
from market_data_pipeline_tests.polygon.faulty_server import reset, send, send_json
from market_data_pipeline_tests.waiting import until

KEY = "kQ7vSECRETvendorKEY93xZ"
NOW = datetime.fromisoformat(NOON)

# Faults in each symbol's 5-minute bars, one after another; the client's retries really wait.
PASSING: dict[str, tuple[Make, ...]] = {
    "AAPL": (always(send(502, HTML)), cut_gzip, next_url(leaving_out)),
    "AMZN": (always(reset()), too_long, empty_then_next),
    "GOOGL": (cut_json, unended, next_url(lambda one, url: f"https://evil.example:8443{url[len(one.root) :]}")),
}
# Faults of every answer that cost one day at most: the rest of the history comes in, with a warning.
SPOILING: dict[str, tuple[Make, str]] = {
    "NVDA": (of_rows(doubled), "came twice with the same values"),
    "TSLA": (row(3, c=None), "bar 3, field c"),
}
# Faults in every request for them, the class of the error, and words of its reason.
STAYING: dict[str, tuple[Make, str, str]] = {
    "MSFT": (
        of_rows(lambda rows: [{**each, "t": each["t"] * 1_000_000} for each in rows]),
        "DataError",
        "looks like nanoseconds",
    ),
    "META": (of_page(lambda page: {**page, "ticker": "meta"}), "DataError", "is for ticker 'meta'"),
    "SPY": (
        always(send_json({"status": "ERROR", "error": "Could not parse the time parameter: 'from'."})),
        "VendorRequestError",
        "Could not parse",
    ),
}
SYMBOLS = (*PASSING, *SPOILING, *STAYING)
INTRADAY = tuple(timeframe for timeframe in Timeframe if timeframe.base is Timeframe.M5)


@pytest.fixture(scope="module")
def vendor() -> Iterator[FaultyVendor]:
    with FaultyVendor(open_source(None), lambda: NOW, KEY) as made:
        yield made


@pytest.fixture(scope="module")
def project(make_project: MakeProject, vendor: FaultyVendor) -> Project:
    return make_project(
        universe=f"tiers:\n  critical: [{', '.join(SYMBOLS)}]\n  standard: [KO]\n",
        POLYGON_BASE_URL=vendor.url,
        POLYGON_API_KEY=KEY,
        POLYGON_PLAN="advanced",
        MARKET_DATA_HISTORY_DAYS=3,
    )


@pytest.fixture(scope="module")
def instance(project: Project) -> Iterator[dg.DagsterInstance]:
    with unattended(project) as made:
        yield made


def refreshed(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """Refresh the critical tier, and return the run when it has ended."""
    (run_id,) = submit_refresh(instance, symbols=SYMBOLS)
    until(lambda: instance.get_run_by_id(run_id).is_finished)  # type: ignore[union-attr]
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def truth(vendor: FaultyVendor, symbol: str, first_ms: int) -> list[tuple[Any, ...]]:
    """Return the 5-minute bars of a symbol in the vendor's source from an instant on, as `stored` returns them."""
    view = View(vendor.source, plan_named("advanced"), NOW)
    pieces = view.intraday(symbol, 300_000, first_ms, int(NOW.timestamp()) * 1000)
    return [
        values
        for bars in pieces
        for values in zip(*(getattr(bars, name).tolist() for name in ("t", "o", "h", "low", "c", "v")), strict=True)
    ]


def stored(project: Project, symbol: str) -> list[tuple[Any, ...]]:
    rows = project.query(
        "select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume from market_data.bars"
        " where symbol = %s and timeframe = '5m' order by ts",
        symbol,
    )
    return [tuple(row.values()) for row in rows]


def outcomes(project: Project, run: dg.DagsterRun) -> dict[tuple[str, str], dict[str, Any]]:
    rows = project.query("select * from market_data.ingest_log where run_id = %s", run.run_id)
    return {(row["symbol"], row["timeframe"]): row for row in rows}


def failure_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    (event,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    assert event.dagster_event is not None
    return str(event.dagster_event.event_specific_data.user_failure_data.description)  # type: ignore[union-attr]


def test_passing_faults_leave_correct_bars_and_lasting_ones_leave_none_and_the_reason(
    project: Project, instance: dg.DagsterInstance, vendor: FaultyVendor
) -> None:
    vendor.inject(always(send_json(TOO_MANY, 429, {"Retry-After": "1"})), anything)
    vendor.inject(always(send_json(TOO_MANY, 429)), anything)
    for symbol, faults in PASSING.items():
        for make in faults:
            vendor.inject(make, lambda exchange, symbol=symbol: exchange.kind == "5m" and exchange.symbol == symbol)  # type: ignore[misc]
    for symbol, (make, *_) in (SPOILING | STAYING).items():
        vendor.inject(make, lambda exchange, symbol=symbol: exchange.kind == "5m" and exchange.symbol == symbol, ALWAYS)  # type: ignore[misc]

    run = refreshed(instance)
    assert run.status is dg.DagsterRunStatus.FAILURE
    for symbol in PASSING:
        held = stored(project, symbol)
        assert held == truth(vendor, symbol, held[0][0])
        assert len(held) > 300
    assert {
        held["symbol"] for held in project.query("select symbol from market_data.bars where timeframe <> '1d'")
    } == {*PASSING, *SPOILING}
    assert len(stored(project, "NVDA")) == len(truth(vendor, "NVDA", stored(project, "NVDA")[0][0]))
    assert 0 < len(stored(project, "TSLA")) < len(stored(project, "NVDA"))

    logged = outcomes(project, run)
    assert set(logged) == {(symbol, str(timeframe)) for symbol in SYMBOLS for timeframe in Timeframe}
    failed = {(symbol, str(timeframe)) for symbol in STAYING for timeframe in INTRADAY}
    assert {series for series, one in logged.items() if one["status"] == "failed"} == failed
    for symbol, (_, words) in SPOILING.items():
        assert words in logged[symbol, "5m"]["warning"]
    assert [logged[symbol, "5m"]["days_refused"] for symbol in ("NVDA", "TSLA")] == [0, 2]  # a row of either page
    reasons = failure_of(instance, run)
    assert f"{len(failed)} of {len(logged)} series failed; the others are stored." in reasons
    for symbol, (_, error_class, words) in STAYING.items():
        for timeframe in INTRADAY:
            one = logged[symbol, str(timeframe)]
            assert (one["error_class"], words in one["error"]) == (error_class, True), one["error"]
        assert f"{symbol}|5m" in reasons
        assert words in reasons
    assert sum(one["requests"] for one in logged.values()) == len(vendor.seen)
    assert sum(one["rate_limited"] for one in logged.values()) == 2
    assert {seen.headers["Authorization"] for seen in vendor.seen} == {f"Bearer {KEY}"}
    assert not [seen for seen in vendor.seen if KEY in seen.target]
    assert KEY not in reasons


def test_once_the_vendor_behaves_again_the_next_refresh_fetches_what_failed(
    project: Project, instance: dg.DagsterInstance, vendor: FaultyVendor
) -> None:
    vendor.heal()
    before = len(vendor.seen)
    run = refreshed(instance)
    assert run.status is dg.DagsterRunStatus.SUCCESS
    for symbol in SYMBOLS:
        held = stored(project, symbol)
        assert held == truth(vendor, symbol, held[0][0])
    logged = outcomes(project, run)
    assert {one["status"] for (symbol, _), one in logged.items() if symbol in {*PASSING, "NVDA"}} == {"unchanged"}
    later: list[Exchange] = vendor.exchanges[before:]
    assert {one.symbol for one in later if one.kind == "5m"} == {*STAYING, "TSLA"}
