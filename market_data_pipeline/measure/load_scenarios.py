"""What a load test asks the read API, and what is made of the times it took.

Add here: a scenario. Keep out: sending requests (load_generator) and what they are sent to (loadtest).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, product
from typing import TYPE_CHECKING, Any, Final, Literal

from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Sequence

Verdict = Literal["good", "warning", "critical"]

# Seconds of the 95th percentile. A person waits for a second without losing the thread (Nielsen, 1993); after three a
# program's own timeout is near.
GOOD_BELOW: Final = 1.0
CRITICAL_ABOVE: Final = 3.0
# Of all requests; a client that retries once does not notice fewer failures.
LEAST_SUCCESS: Final = 0.99

FEATURES: Final = "/api/v1/features/quant"
ADMIN: Final = (
    "/api/v1/admin/features/staleness?limit=100",
    "/api/v1/admin/scheduler-health",
    "/api/v1/admin/scheduler/execution-history?limit=20",
)
QUIET: Final = "reads_quiet"
REFRESH: Final = "reads_during_refresh"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load.

    Attributes:
        name: for programs.
        title: for people.
        users: that ask at the same time, each anew as soon as it is answered.
        paths: what is asked, in turn.
        unique: whether every request gets a `start` of its own, so that no two ask for the same answer.
        past: whether every request gets an `end` of its own, so long ago (shortest, longest; in days) that its records
            are none of the newest, which the API has in memory.
        rate: requests a second of each user at most; None for as many as are answered.
    """

    name: str
    title: str
    users: int
    paths: tuple[str, ...]
    unique: bool = False
    past: tuple[float, float] | None = None
    rate: float | None = None


def scenarios(symbols: Sequence[str], users: int = 100, days: int = 365) -> tuple[Scenario, ...]:
    """Return the scenarios about `symbols` with `days` of history, with `users` at the same time in the widest."""
    frames = [str(timeframe) for timeframe in Timeframe]
    mixed = tuple(f"{FEATURES}/{symbol}?timeframe={frame}&limit=500" for symbol, frame in product(symbols, frames))
    half = max(users // 2, 1)
    limits = zip(product(symbols, frames), cycle((100, 500, 1000)), strict=False)
    every = tuple(f"{FEATURES}/{symbol}?timeframe={frame}&limit=100" for frame, symbol in product(frames, symbols))
    few = max(users // 5, 1)
    return (
        Scenario("cached_symbol", "one symbol from memory, 100 records", users, (every[0],)),
        Scenario("uncached_mixed", "mixed symbols, no answer asked for twice, 500 records", half, mixed, unique=True),
        Scenario(
            "past_windows",
            "mixed symbols, windows of the past, each read from the database, 500 records",
            half,
            tuple(path for path in mixed if "timeframe=4h" not in path and "timeframe=1d" not in path),
            past=(days / 6, days / 1.5),
        ),
        Scenario(
            "variable_limits",
            "100, 500 and 1,000 records",
            few,
            tuple(f"{FEATURES}/{symbol}?timeframe={frame}&limit={limit}" for (symbol, frame), limit in limits),
        ),
        Scenario("all_timeframes", "every timeframe, 100 records", few, every),
        Scenario("admin_endpoints", "staleness, health, history", max(users // 10, 1), ADMIN),
        # Ten requests a second each: what is compared is how long an answer takes, not how many fit in.
        Scenario(QUIET, "every series, ten times a second each, nothing else going on", few, every, rate=10.0),
        Scenario(REFRESH, "the same while all series are refreshed", few, every, rate=10.0),
    )


def measured(scenario: Scenario, times: Sequence[float], failures: int, seconds: float) -> dict[str, Any]:
    """Return what a scenario came to; `times` in seconds, one of each request, failed ones included."""
    ordered = sorted(times)
    requests = len(ordered)
    success = 1 - failures / requests if requests else 0.0
    p95 = _percentile_ms(ordered, 95)
    return {
        "name": scenario.name,
        "title": scenario.title,
        "users": scenario.users,
        "requests": requests,
        "failures": failures,
        "success_rate": success,
        "mean_ms": 1000 * sum(ordered) / requests if requests else None,
        "p50_ms": _percentile_ms(ordered, 50),
        "p95_ms": p95,
        "p99_ms": _percentile_ms(ordered, 99),
        "throughput_per_second": requests / seconds,
        "duration_seconds": seconds,
        "verdict": verdict(p95, success),
    }


def verdict(p95_ms: float | None, success_rate: float) -> Verdict:
    """Return good, warning or critical, by the 95th percentile and the share of requests that succeeded."""
    if p95_ms is None or p95_ms > 1000 * CRITICAL_ABOVE or success_rate < LEAST_SUCCESS:
        return "critical"
    return "good" if p95_ms <= 1000 * GOOD_BELOW and success_rate == 1 else "warning"


def _percentile_ms(ordered: Sequence[float], share: int) -> float | None:
    """Return the smallest time that at least `share` percent of the requests kept to."""
    return 1000 * ordered[max(-(-share * len(ordered) // 100), 1) - 1] if ordered else None
