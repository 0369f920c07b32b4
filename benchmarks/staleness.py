"""How long the staleness query and the report that an operator reads take.

The query is the one behind the asset check, the sensor and the alerts. It reads generated series of 1,000 and 10,000
symbols in three tiers, one in ten beyond its RPO and one in a hundred never computed, in an embedded PostgreSQL that
has gathered its statistics. Both are repeated, and the median counts; ten times the series should cost about ten times
as much.

    python -m benchmarks.staleness
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg

from benchmarks.place import NOW, running_server
from benchmarks.report import Measurement, show

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SIZES: Final = (5_000, 50_000)
TARGET_MS: Final = 150.0
TARGET_GROWTH: Final = 12.0  # linear is 10 from 5,000 to 50,000; a sort adds its logarithm
LISTED: Final = 100  # of each state, as on one screen of the report
TARGET_REPORT_MS: Final = 100.0
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


def main() -> int:
    """Measure, print and return the exit code."""
    return show("staleness", measure())


def measure() -> list[Measurement]:
    """Return the median milliseconds of the query at both sizes and their ratio, and those of the report."""
    with running_server() as place:
        (small, _), (large, report) = [_ask(place.new_database(f"series_{size}", ()), size) for size in SIZES]
    return [
        Measurement(f"staleness of {SIZES[0]:,} series", small, "ms"),
        Measurement(f"staleness of {SIZES[1]:,} series", large, "ms", at_most=TARGET_MS),
        Measurement("growth from the one to the other", large / small, "times", at_most=TARGET_GROWTH),
        Measurement(
            f"report of {SIZES[1]:,} series, the worst {LISTED} of each state", report, "ms", at_most=TARGET_REPORT_MS
        ),
    ]


def _ask(url: str, size: int) -> tuple[float, float]:
    from market_data_pipeline.reports.freshness import staleness_report, tier_freshness
    from market_data_pipeline.store.connection import engine

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SYMBOLS, {"now": NOW, "symbols": size // 5})
        connection.execute(_STATES, {"now": NOW})
        connection.execute("vacuum analyze")
    asked = engine(url, as_of=NOW)
    try:
        question, by_tier = _median_ms(lambda: tier_freshness(asked))
        answer, report = _median_ms(lambda: staleness_report(asked, LISTED))
    finally:
        asked.dispose()
    if not sum(tier.series for tier in by_tier.values()) == report.summary.total_monitored == size:
        raise SystemExit("The query did not see every series.")
    return question, answer


def _median_ms(question: Callable[[], T]) -> tuple[float, T]:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        answer = question()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000, answer


if __name__ == "__main__":
    sys.exit(main())
