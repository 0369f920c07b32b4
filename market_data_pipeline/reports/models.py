"""The answers of the reports: one pydantic model each, from which OpenAPI, `--json`, the pages and the tests derive.

Instants are aware UTC datetimes, which become ISO 8601 with `Z` in JSON; rates and shares lie between 0 and 1.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from market_data_pipeline.reports.dagster_state import Daemon, Evaluation, Schedule


class Answer(BaseModel):
    """An answer, or a part of one: a value that does not change."""

    model_config = ConfigDict(frozen=True)


class SeriesFreshness(Answer):
    """One series in the staleness report."""

    symbol: str
    timeframe: str
    tier: str
    status: Literal["FRESH", "AGING", "STALE", "MISSING"]
    life: Literal["trading", "silent", "halted", "delisted", "unknown"] = "trading"
    life_since: datetime | None = None
    staleness_seconds: float | None
    age_seconds: float | None
    within_rpo: bool
    verified_at: datetime | None
    next_due_at: datetime | None
    features_computed_at: datetime | None
    last_ts: datetime | None
    consecutive_failures: int
    last_error_class: str | None
    last_error: str | None


class StalenessSummary(Answer):
    """How many series are in which state.

    `silent_count` is of those that have had no bars for longer than usual, whatever their state. Halted and delisted
    series, and those of a ticker that the vendor does not know, are in `not_expected_count` alone.
    """

    fresh_count: int
    aging_count: int
    stale_count: int
    missing_count: int
    silent_count: int
    not_expected_count: int
    total_monitored: int


class SeriesByStatus(Answer):
    """Series by state, worst first, each list capped by `limit`; `not_expected`: no bars of them are expected."""

    fresh: list[SeriesFreshness]
    aging: list[SeriesFreshness]
    stale: list[SeriesFreshness]
    missing: list[SeriesFreshness]
    not_expected: list[SeriesFreshness]


class StalenessReport(Answer):
    """How stale the series are: counts of all, and the worst of each state."""

    timestamp: datetime
    summary: StalenessSummary
    by_status: SeriesByStatus
    truncated: bool = Field(description="Whether there are more series of a state than are listed.")
    next: str | None = Field(description="Where the next ones are: a path from the host on; null without any.")


class HeldSeries(Answer):
    """What is held of a series: the starts of its first and last bar, and how many bars."""

    timeframe: Literal["5m", "15m", "1h", "4h", "1d"]
    first_ts: datetime
    last_ts: datetime
    bar_count: int
    life: Literal["trading", "silent", "halted", "delisted", "unknown"]


class FollowedSymbol(Answer):
    """A symbol that is followed; `series` are those of which bars are held."""

    symbol: str
    tier: Literal["critical", "standard", "low_priority"]
    asset_class: Literal["us_equity", "crypto", "forex", "index"]
    added_at: datetime
    series: list[HeldSeries]


class SymbolList(Answer):
    """The symbols that are followed, in alphabetical order; `next` is the address of the next page."""

    timestamp: datetime
    symbols_returned: int
    truncated: bool
    next: str | None
    symbols: list[FollowedSymbol]


class Execution(Answer):
    """One run of Dagster with what `ingest_log` has for it."""

    execution_id: str
    job: str
    trigger: str
    requested_by: str
    reason: str
    series: str
    started_at: datetime | None
    completed_at: datetime | None
    duration_seconds: float | None
    total_symbols: int
    successful_symbols: int
    failed_symbols: int
    total_records_processed: int
    status: str
    error_message: str | None
    success_rate: float | None


class ExecutionHistory(Answer):
    """Dagster's newest runs, newest first."""

    timestamp: datetime
    executions: list[Execution]


class SeriesExecution(Answer):
    """What one run did for one series: its row of `ingest_log`."""

    symbol: str
    timeframe: str
    status: str
    started_at: datetime
    finished_at: datetime
    requests: int
    rate_limited: int
    rows_fetched: int
    rows_inserted: int
    rows_updated: int
    features_written: int
    seconds: float
    error_class: str | None
    error: str | None
    warning: str | None


class ExecutionDetail(Answer):
    """One run and each of its series, failed ones first.

    Of an old run, series that were unchanged have no result any more and are in `unchanged_series`, as `AAPL|5m`.
    """

    timestamp: datetime
    execution: Execution
    results: list[SeriesExecution]
    unchanged_series: list[str] = []


class LastExecution(Answer):
    """The newest refresh."""

    execution_id: str
    started_at: datetime | None
    completed_at: datetime | None
    status: str
    successful_symbols: int
    failed_symbols: int


class RecentFailure(Answer):
    """One failed execution of one series."""

    execution_id: str
    symbol: str
    timeframe: str
    failed_at: datetime
    error_class: str | None
    error: str | None


class RecentWarning(Answer):
    """Something that went wrong without failing a series, and how many series it affected."""

    warning: str
    series: int
    example: str
    last_seen_at: datetime


class RateLimit(Answer):
    """How many requests the vendor answered with 429 during the last `window_hours`, each attempt counted."""

    window_hours: int
    total_requests: int
    rate_limited: int
    rate: float


class Attainment(Answer):
    """The share of time that a tier's series were within its RPO, in a window that ends now.

    `share` is that of all series together, `worst_share` that of `worst_series` (`AAPL|5m`); `series_outside` counts
    those that were outside at any time.
    """

    tier: str
    window: str
    rpo_seconds: float
    share: float
    series: int
    series_outside: int
    worst_series: str
    worst_share: float


class BarSource(Answer):
    """What the database holds bars of: a vendor's (with its `host`), the sandbox's, or recorded ones of a replay."""

    kind: Literal["vendor", "sandbox", "replay"]
    host: str | None
    plan: str
    since: datetime


class LastBackup(Answer):
    """The last finished backup; `late` when the next scheduled one has not come by `next_due_at`, null for none."""

    taken_at: datetime
    finished_at: datetime
    age_seconds: float
    location: str
    bytes: int
    next_due_at: datetime | None
    late: bool


class SchedulerHealth(Answer):
    """Whether the pipeline is working, and if not, why.

    `source` is None before the first bar, `last_backup` before the first backup.
    """

    status: Literal["healthy", "degraded"]
    reasons: list[str]
    timestamp: datetime
    daemons: list[Daemon]
    schedules: list[Schedule]
    evaluations: list[Evaluation]
    last_execution: LastExecution | None
    stale_features_count: int
    recent_failures: list[RecentFailure]
    recent_warnings: list[RecentWarning]
    rate_limit: RateLimit
    rpo_attainment: list[Attainment]
    total_symbols_monitored: int
    source: BarSource | None
    last_backup: LastBackup | None


class Dependency(Answer):
    """Whether something that the pipeline depends on answers."""

    reachable: bool
    detail: str


class HealthReport(Answer):
    """Whether the dependencies answer."""

    status: Literal["healthy", "unhealthy"]
    timestamp: datetime
    database: Dependency
    dagster_daemon: Dependency


class SeriesEstimate(Answer):
    """What one fetched series needs: session days, and the calls that fetch them.

    `calls` counts a page for every 50,000 minutes, as if each had a trade; `calls_at_least` one for each request.
    """

    symbol: str
    timeframe: str
    sessions: int
    calls: int
    calls_at_least: int


class WayIn(Answer):
    """What a backfill costs by one way in: requests (files among them), bytes as they come, and seconds, roughly."""

    requests: int
    files: int
    bytes: int
    seconds: float


class WaysIn(Answer):
    """What a backfill costs by REST and by the vendor's flat files, and which costs less and why.

    `files` is None where none can be read.
    """

    cheaper: Literal["rest", "files"]
    why: str
    rest: WayIn
    files: WayIn | None


class BackfillEstimate(Answer):
    """What a backfill would request from the vendor; each page is a call.

    Attributes:
        plan: the vendor's subscription.
        calls_per_minute: the limit in force; None for no limit.
        history_days: calendar days that the series should hold.
        calls: at most, see `SeriesEstimate`; for splits and dividends, as many as the last reading took.
        calls_at_least: the same if every answer fits on one page.
        pages: answers, which are as many as calls.
        seconds: how long the limit spreads the calls, from the first to the last; transfer not counted.
        reads_splits: whether the market's splits are due to be read.
        reads_dividends: whether dividends are.
        market_days: sessions whose day bars are fetched for the whole market, one call each.
        from_market_days: symbols that need no call of their own for day bars if those answers list them.
        series: those that need calls of their own.
        ways_in: which of REST and the flat files costs less for it.
    """

    plan: str
    calls_per_minute: int | None
    history_days: int
    calls: int
    calls_at_least: int
    pages: int
    seconds: float
    reads_splits: bool
    reads_dividends: bool
    market_days: list[date]
    from_market_days: list[str]
    series: list[SeriesEstimate]
    ways_in: WaysIn

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to request and nothing to take from answers for the whole market."""
        return not self.calls and not self.from_market_days


class GapReport(Answer):
    """A gap and why there is no bar; optional fields are present only for the reasons that they explain.

    Attributes:
        start: of the first missing slot.
        end: of the last one, exclusive.
        bars: missing slots; 0 where none can exist.
        reason: a `reports.gaps.Reason`.
        explanation: the same in words; times are the exchange's.
        confirmed_on: exchange date on which the vendor confirmed that it has none.
        error: why the last try failed.
        failed_at: when it did.
        next_try_by: when the tier's schedule tries again at the latest.
        last_asked_at: when the vendor last answered about a day that has not settled.
        settles_at: when that day settles.
        due_at: when the plan serves the first of the bars.
    """

    start: datetime
    end: datetime
    bars: int
    reason: str
    explanation: str
    confirmed_on: date | None = None
    error: str | None = None
    failed_at: datetime | None = None
    next_try_by: datetime | None = None
    last_asked_at: datetime | None = None
    settles_at: datetime | None = None
    due_at: datetime | None = None

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}


class GapCount(Answer):
    """How many gaps have the same reason, and how many bars are missing in them."""

    stretches: int
    bars: int


class SeriesGaps(Answer):
    """The gaps of one fetched series, `stretches`, in ascending order, and their counts by reason.

    `stray_bars` were sent by the vendor although they lie in no session: they are not part of the series.
    """

    timeframe: str
    history_start: datetime
    sessions: int
    settled_until: datetime | None
    bars_held: int
    bars_missing: int
    stray_bars: int
    weekends: int
    summary: dict[str, GapCount]
    stretches: list[GapReport]


class GapsReport(Answer):
    """Every gap of a symbol's fetched series."""

    symbol: str
    timestamp: datetime
    plan: str
    exchange_timezone: str
    timeframes: list[SeriesGaps]
