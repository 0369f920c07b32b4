"""How long the staleness query, and the report and the status page that an operator reads, take.

The query is the one behind the asset check, the sensor and the alerts. It reads generated series of 1,000 and 10,000
symbols in three tiers, one in ten beyond its RPO and one in a hundred never computed, in an embedded PostgreSQL that
has gathered its statistics, with an audit log of 300,000 executions in the last eight hours for the page. Each is
repeated, and the median counts; ten times the series should cost about ten times as much.

    python -m benchmarks.staleness
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import psycopg

from benchmarks.place import NOW, REPOSITORY, running_server
from benchmarks.report import Measurement, show

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SIZES: Final = (5_000, 50_000)
TARGET_MS: Final = 150.0
TARGET_GROWTH: Final = 12.0  # linear is 10 from 5,000 to 50,000; a sort adds its logarithm
LISTED: Final = 100  # of each state, as on one screen of the report
TARGET_REPORT_MS: Final = 100.0
TARGET_PAGE_MS: Final = 500.0
TARGET_PAGE_KB: Final = 200.0
ROUNDS: Final = 21

_SYMBOLS: Final = """
insert into market_data.symbols
select 'S' || i, (array['critical', 'standard', 'low_priority'])[1 + i %% 3], 'us_equity', true, %(now)s
from generate_series(1, %(symbols)s) as i"""
_STATES: Final = """
insert into market_data.series_state (symbol, timeframe, tier, first_ts, last_ts, bar_count, verified_at,
    features_computed_at, next_due_at)
select symbol, timeframe, tier, %(now)s - interval '365 days', %(now)s - interval '1 hour', 48000, %(now)s, %(now)s,
    %(now)s + case when ordinal %% 10 = 0 then - interval '30 hours' else interval '5 minutes' end
from (
    select s.symbol, s.tier, t.timeframe, row_number() over (order by s.symbol, t.timeframe) as ordinal
    from market_data.symbols as s cross join unnest(array['5m', '15m', '1h', '4h', '1d']) as t (timeframe)
) as series where ordinal %% 100 <> 1"""
_LOG: Final = """
insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status, requests, rows_inserted)
select 'run ' || tick, t.symbol, t.timeframe, at - interval '3 minutes', at, 'ok', 1, 3
from generate_series(1, 30) as tick
cross join lateral (select %(now)s - tick * interval '15 minutes' as at) as a
cross join (select symbol, timeframe from market_data.series_state order by symbol, timeframe limit 10000) as t"""


class Asked(NamedTuple):
    """Milliseconds that each question took, and the kB of the page."""

    question: float
    report: float
    page: float
    page_kb: float


def main() -> int:
    """Measure, print and return the exit code."""
    return show("staleness", measure())


def measure() -> list[Measurement]:
    """Return the median milliseconds of the query at both sizes and their ratio, and those of the report and page."""
    with running_server() as place:
        small, large = [_ask(place.new_database(f"series_{size}", ()), size) for size in SIZES]
    of_all = f"of {SIZES[1]:,} series"
    return [
        Measurement(f"staleness of {SIZES[0]:,} series", small.question, "ms"),
        Measurement(f"staleness {of_all}", large.question, "ms", at_most=TARGET_MS),
        Measurement(
            "growth from the one to the other", large.question / small.question, "times", at_most=TARGET_GROWTH
        ),
        Measurement(f"report {of_all}, the worst {LISTED} of each state", large.report, "ms", at_most=TARGET_REPORT_MS),
        Measurement(f"status page {of_all}", large.page, "ms", at_most=TARGET_PAGE_MS),
        Measurement(f"size of the status page {of_all}", large.page_kb, "kB", at_most=TARGET_PAGE_KB),
    ]


def _ask(url: str, size: int) -> Asked:
    from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
    from market_data_pipeline.reports.freshness import staleness_report, tier_freshness
    from market_data_pipeline.serving.pages.status import read_status, render_status
    from market_data_pipeline.store.connection import engine

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SYMBOLS, {"now": NOW, "symbols": size // 5})
        connection.execute(_STATES, {"now": NOW})
        connection.execute(_LOG, {"now": NOW})
        connection.execute("vacuum analyze")
    asked, no_dagster = engine(url, as_of=NOW), StoredDagsterState(REPOSITORY / "nowhere", "")
    try:
        question, by_tier = _median_ms(lambda: tier_freshness(asked))
        answer, report = _median_ms(lambda: staleness_report(asked, LISTED))
        shown, page = _median_ms(
            lambda: render_status(read_status(asked, no_dagster, for_operator=True), NOW, wall=NOW)
        )
    finally:
        asked.dispose()
    if not sum(tier.series for tier in by_tier.values()) == report.summary.total_monitored == size:
        raise SystemExit("The query did not see every series.")
    return Asked(question, answer, shown, len(page.encode()) / 1e3)


def _median_ms(question: Callable[[], T]) -> tuple[float, T]:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        answer = question()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000, answer


if __name__ == "__main__":
    sys.exit(main())
