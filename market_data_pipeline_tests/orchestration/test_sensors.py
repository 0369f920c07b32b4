"""What the sensors and schedules request, on a real instance and a real database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.tags import SCHEDULED_EXECUTION_TIME_TAG

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.dagster_internals import enqueue
from market_data_pipeline.orchestration.partitions import features_key, symbols_of, sync_partitions
from market_data_pipeline.orchestration.runs import submit_refresh
from market_data_pipeline.store.universe import add_symbols
from market_data_pipeline_tests.orchestration.conftest import NOW, StandIn


class Ticks:
    """Ticks of the sensors and schedules, as the daemon would make them."""

    def __init__(self, instance: dg.DagsterInstance, url: str) -> None:
        self.instance = instance
        self.pipeline = StandIn(url=url)
        self.definitions = build_defs(resource_overrides={"pipeline": self.pipeline})
        self.repository = self.definitions.get_repository_def()

    def sensor(self, name: str, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
        context = dg.build_sensor_context(
            self.instance, cursor=cursor, definitions=self.definitions, resources={"pipeline": self.pipeline}
        )
        result: Any = self.repository.get_sensor_def(name)(context)
        return result

    def schedule(self, name: str) -> list[dg.RunRequest] | dg.SkipReason:
        # One that is closed only when it is collected resets what Dagster keeps of a later test's instance.
        with dg.build_schedule_context(
            self.instance, scheduled_execution_time=NOW, resources={"pipeline": self.pipeline}
        ) as context:
            result: Any = self.repository.get_schedule_def(name)(context)
        return result


@pytest.fixture
def ticks(registered: dg.DagsterInstance, database_url: str) -> Ticks:
    return Ticks(registered, database_url)


@pytest.fixture
def market(database: sa.Engine) -> Iterator[sa.Connection]:
    """A connection in autocommit mode; every series has its next bar due in five minutes."""
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            sa.text(
                "update market_data.series_state"
                " set verified_at = :now, features_computed_at = :now, next_due_at = :due"
            ),
            {"now": NOW, "due": NOW + timedelta(minutes=5)},
        )
        yield connection


def make_late(market: sa.Connection, symbol: str, timeframe: str, by: timedelta) -> None:
    market.execute(
        sa.text("update market_data.series_state set next_due_at = :due where (symbol, timeframe) = (:s, :t)"),
        {"due": NOW - by, "s": symbol, "t": timeframe},
    )


def events_by_tier(result: dg.SensorResult | dg.SkipReason) -> dict[str, dg.AssetCheckEvaluation]:
    assert isinstance(result, dg.SensorResult)
    return {
        event.asset_key.path[0]: event for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)
    }


def test_a_fresh_tier_passes_and_starts_nothing(ticks: Ticks, market: sa.Connection) -> None:
    result = ticks.sensor("staleness_sensor")
    assert isinstance(result, dg.SensorResult)
    assert not result.run_requests
    assert {tier: event.passed for tier, event in events_by_tier(result).items()} == dict.fromkeys(Tier, True)


def test_a_series_beyond_its_tiers_rpo_fails_the_check_and_is_refreshed(ticks: Ticks, market: sa.Connection) -> None:
    make_late(market, "AAPL", "1h", timedelta(hours=2))  # the critical RPO is 1 hour
    make_late(market, "AMD", "1h", timedelta(hours=2))  # the standard one is 4
    result = ticks.sensor("staleness_sensor")

    verdicts = events_by_tier(result)
    assert {tier: event.passed for tier, event in verdicts.items()} == {
        "critical": False,
        "standard": True,
        "low_priority": True,
    }
    worst = verdicts["critical"].metadata["worst"]
    assert isinstance(worst, dg.TableMetadataValue)
    assert [(row.data["series"], row.data["staleness_hours"]) for row in worst.records] == [("AAPL|1h", 2.0)]
    assert isinstance(result, dg.SensorResult)
    assert result.run_requests is not None
    (run,) = result.run_requests
    assert run.job_name == "critical_refresh"
    assert run.run_config == {"ops": {"critical_series": {"config": {"symbols": ["AAPL"], "timeframes": ["1h"]}}}}


def test_a_verdict_shows_each_symbol_by_timeframe_the_worst_first(ticks: Ticks, market: sa.Connection) -> None:
    market.execute(sa.text("update market_data.series_state set last_ts = '2026-03-11 15:20Z'"))
    market.execute(sa.text("update market_data.series_state set last_ts = '2026-03-10 20:55Z' where timeframe = '1h'"))
    market.execute(sa.text("update market_data.series_state set last_ts = '2026-03-10 04:00Z' where timeframe = '1d'"))
    make_late(market, "MSFT", "1h", timedelta(hours=2))
    make_late(market, "NVDA", "5m", timedelta(hours=7, minutes=30))
    market.execute(sa.text("delete from market_data.series_state where (symbol, timeframe) = ('NVDA', '4h')"))
    table = events_by_tier(ticks.sensor("staleness_sensor"))["critical"].metadata["freshness"]
    assert isinstance(table, dg.MarkdownMetadataValue)
    assert table.value.splitlines() == [
        "Start of the last bar held, UTC, on 2026-03-11 at 15:30. Bold: not fresh.",
        "",
        "| symbol | 5m | 15m | 1h | 4h | 1d |",
        "|---|---|---|---|---|---|",
        "| NVDA | 15:20 **stale 7.5 h** | 15:20 | Mar 10 20:55 | **missing** | Mar 10 |",
        "| MSFT | 15:20 | 15:20 | Mar 10 20:55 **aging 2.0 h** | 15:20 | Mar 10 |",
        "| AAPL | 15:20 | 15:20 | Mar 10 20:55 | 15:20 | Mar 10 |",
    ]


def test_a_table_stays_small_however_many_symbols_a_tier_has(ticks: Ticks, market: sa.Connection) -> None:
    market.execute(
        sa.text(
            "insert into market_data.symbols (symbol, tier, asset_class, active, added_at)"
            " select 'S' || n, 'low_priority', 'us_equity', true, :now from generate_series(1000, 1999) as n"
        ),
        {"now": NOW},
    )
    table = events_by_tier(ticks.sensor("staleness_sensor"))["low_priority"].metadata["freshness"]
    assert isinstance(table, dg.MarkdownMetadataValue)
    assert table.value.endswith("… and 976 more symbols, none staler than these.")
    assert len(table.value) < 3_000


def test_the_worst_twenty_are_named_worst_first_with_the_reason_of_each(ticks: Ticks, market: sa.Connection) -> None:
    statements = (
        "insert into market_data.symbols (symbol, tier, asset_class, active, added_at)"
        " select 'S' || n, 'critical', 'us_equity', true, :now from generate_series(10, 39) as n",
        "insert into market_data.series_state"
        " (symbol, timeframe, tier, features_computed_at, next_due_at, verified_at, last_ts, consecutive_failures)"
        " select 'S' || n, t, 'critical', :now, :now - make_interval(hours => case t when '5m' then n else 0 end),"
        " :now, '2026-03-01 15:25Z', 0"
        " from generate_series(10, 39) as n cross join unnest(array['5m', '15m', '1h', '4h', '1d']) as t",
        "update market_data.series_state set last_error_class = 'RateLimitedError', consecutive_failures = 3,"
        " last_error = 'The vendor refused five times.' where (symbol, timeframe) = ('S38', '5m')",
        "update market_data.series_state set verified_at = '2026-03-10 00:00Z'"
        " where (symbol, timeframe) = ('S37', '5m')",
        "delete from market_data.series_state where (symbol, timeframe) = ('NVDA', '1d')",
    )
    for statement in statements:
        market.execute(sa.text(statement), {"now": NOW})
    metadata = events_by_tier(ticks.sensor("staleness_sensor"))["critical"].metadata
    assert (metadata["late"].value, metadata["stale"].value, metadata["missing"].value) == (31, 30, 1)
    worst = metadata["worst"]
    assert isinstance(worst, dg.TableMetadataValue)
    shown = [(row.data["series"], row.data["state"], row.data["reason"]) for row in worst.records]
    assert shown[:4] == [
        ("NVDA|1d", "MISSING", "Never computed: no run has reached it."),
        ("S39|5m", "STALE", "No bars from the vendor since 2026-03-01 15:25Z, last asked at 2026-03-11 15:30Z."),
        ("S38|5m", "STALE", "RateLimitedError: The vendor refused five times. (3 times in a row)"),
        ("S37|5m", "STALE", "Not refreshed since 2026-03-10 00:00Z: no run has reached it."),
    ]
    assert [series for series, _, _ in shown] == ["NVDA|1d", *(f"S{n}|5m" for n in range(39, 20, -1))]


def test_a_series_that_was_just_tried_waits_and_its_verdict_is_not_repeated(
    ticks: Ticks, market: sa.Connection
) -> None:
    make_late(market, "AAPL", "1h", timedelta(hours=2))
    first = ticks.sensor("staleness_sensor")
    assert isinstance(first, dg.SensorResult)
    second = ticks.sensor("staleness_sensor", cursor=first.cursor)
    assert isinstance(second, dg.SensorResult)
    assert not second.run_requests
    assert not second.asset_events


def test_no_late_series_is_refreshed_while_the_whole_tier_is(ticks: Ticks, market: sa.Connection) -> None:
    make_late(market, "AAPL", "1h", timedelta(hours=2))
    submit_refresh(ticks.instance, build_defs())
    result = ticks.sensor("staleness_sensor")
    assert isinstance(result, dg.SensorResult)
    assert not result.run_requests
    assert events_by_tier(result)["critical"].passed is False


def test_a_series_that_was_never_computed_counts_as_late_and_missing(ticks: Ticks, market: sa.Connection) -> None:
    market.execute(sa.text("delete from market_data.series_state where symbol = 'NVDA'"))
    metadata = events_by_tier(ticks.sensor("staleness_sensor"))["critical"].metadata
    assert (metadata["series"].value, metadata["late"].value, metadata["missing"].value) == (15, 5, 5)


def request(market: sa.Connection, symbol: str, timeframe: str) -> int:
    return int(
        market.execute(
            sa.text("""
                insert into market_data.backfill_requests (symbol, timeframe, requested_at, requested_by)
                values (:s, :t, :now, 'test') returning id
            """),
            {"s": symbol, "t": timeframe, "now": NOW},
        ).scalar_one()
    )


def statuses(market: sa.Connection) -> dict[str, str]:
    rows = market.execute(sa.text("select symbol, timeframe, status from market_data.backfill_requests"))
    return {f"{row.symbol}|{row.timeframe}": row.status for row in rows}


def test_requests_for_a_symbol_become_one_run_with_the_same_key_until_it_exists(
    ticks: Ticks, market: sa.Connection
) -> None:
    first = request(market, "AAPL", "5m")
    request(market, "AAPL", "1h")
    for _ in range(2):
        result = ticks.sensor("backfill_request_sensor")
        assert isinstance(result, dg.SensorResult)
        assert result.run_requests is not None
        (run,) = result.run_requests
        assert run.run_key == f"backfill-request:{first}"
        assert run.run_config == {
            "ops": {"critical_series": {"config": {"symbols": ["AAPL"], "timeframes": ["5m", "1h"]}}}
        }
    assert statuses(market) == {"AAPL|5m": "queued", "AAPL|1h": "queued"}


def test_a_request_follows_its_run_to_the_end(ticks: Ticks, market: sa.Connection) -> None:
    request(market, "AAPL", "5m")
    result = ticks.sensor("backfill_request_sensor")
    assert isinstance(result, dg.SensorResult)
    assert result.run_requests is not None
    (run,) = result.run_requests
    job = ticks.definitions.resolve_job_def("critical_refresh")
    done = job.execute_in_process(
        instance=ticks.instance, run_config=run.run_config, tags=dict(run.tags), raise_on_error=False
    )
    request(market, "AAPL", "1h")

    seen = []
    for _ in range(3):
        ticks.sensor("backfill_request_sensor")
        seen.append(statuses(market)["AAPL|5m"])
    assert seen == ["running", "done", "done"]
    row = market.execute(sa.text("select run_id from market_data.backfill_requests where timeframe = '5m'"))
    assert row.scalar_one() == done.run_id
    assert statuses(market)["AAPL|1h"] == "queued"


def test_a_request_for_an_untracked_symbol_is_rejected(ticks: Ticks, market: sa.Connection) -> None:
    request(market, "GME", "5m")
    assert isinstance(ticks.sensor("backfill_request_sensor"), dg.SkipReason)
    assert statuses(market) == {"GME|5m": "rejected"}


def test_the_universe_sensor_registers_and_drops_symbols(ticks: Ticks, market: sa.Connection) -> None:
    assert isinstance(ticks.sensor("universe_sensor"), dg.SkipReason)
    market.execute(sa.text("update market_data.symbols set tier = 'standard' where symbol = 'AAPL'"))
    result = ticks.sensor("universe_sensor")
    assert isinstance(result, dg.SensorResult)
    changed = {
        (type(request).__name__, request.partitions_def_name, *request.partition_keys)
        for request in result.dynamic_partitions_requests or ()
    }
    assert changed == {
        ("DeleteDynamicPartitionsRequest", "critical_symbols", "AAPL"),
        ("AddDynamicPartitionsRequest", "standard_symbols", "AAPL"),
    }


def test_a_schedule_starts_every_shard_of_its_tier(ticks: Ticks) -> None:
    requests = ticks.schedule("critical_schedule")
    assert isinstance(requests, list)
    assert [request.tags["market_data/shard"] for request in requests] == ["AAPL to NVDA"]
    assert list(symbols_of(ticks.instance, Tier.CRITICAL))[-1] == "NVDA"


def test_a_schedule_waits_for_the_tiers_last_refresh(ticks: Ticks) -> None:
    (run_id, *_) = submit_refresh(ticks.instance, build_defs())
    skipped = ticks.schedule("critical_schedule")
    assert isinstance(skipped, dg.SkipReason)
    assert run_id in (skipped.skip_message or "")


def queue(ticks: Ticks, request: dg.RunRequest, *, of_tick: bool = True) -> str:
    """Queue a run as the daemon does, with the tags that it adds."""
    added = {"dagster/run_key": str(request.run_key), SCHEDULED_EXECUTION_TIME_TAG: NOW.isoformat()}
    return enqueue(ticks.instance, ticks.repository, request, added if of_tick else {})


def of_shards(requests: list[dg.RunRequest] | dg.SkipReason) -> list[tuple[str | None, list[str]]]:
    assert isinstance(requests, list)
    steps = [next(iter(request.run_config["ops"].values())) for request in requests]
    return [(request.run_key, step["config"]["symbols"]) for request, step in zip(requests, steps, strict=True)]


def test_a_tick_that_was_cut_off_goes_on_with_the_shards_that_are_missing(
    ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_DATA_SHARD_SYMBOLS", "1")
    first = ticks.schedule("critical_schedule")
    assert isinstance(first, list)
    done, created = queue(ticks, first[0]), queue(ticks, first[1])
    ticks.instance.report_run_canceled(ticks.instance.get_run_by_id(done))  # one of them has ended meanwhile
    assert created
    # The daemon finds the runs of the first two by their keys, and queues what is missing.
    assert of_shards(ticks.schedule("critical_schedule")) == [
        ("AAPL..AAPL", ["AAPL"]),
        ("MSFT..MSFT", ["MSFT"]),
        ("NVDA..NVDA", ["NVDA"]),
    ]
    queue(ticks, first[2])
    again = ticks.schedule("critical_schedule")
    assert sorted(key or "" for key, _ in of_shards(again)) == sorted(str(one.run_key) for one in first)


def test_a_tick_that_was_cut_off_requests_no_symbol_twice_when_the_universe_changed(
    ticks: Ticks, database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_DATA_SHARD_SYMBOLS", "2")
    first = ticks.schedule("critical_schedule")
    assert of_shards(first) == [("AAPL..AAPL", ["AAPL"]), ("MSFT..NVDA", ["MSFT", "NVDA"])]
    assert isinstance(first, list)
    queue(ticks, first[0])
    add_symbols(database, Tier.CRITICAL, ["SPY"], NOW)
    sync_partitions(ticks.instance, database)
    requested = of_shards(ticks.schedule("critical_schedule"))
    assert requested[0] == ("AAPL..AAPL", ["AAPL"])
    assert sorted(symbol for _, symbols in requested[1:] for symbol in symbols) == ["MSFT", "NVDA", "SPY"]


def test_one_unfinished_shard_holds_up_its_own_symbols_only(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_SHARD_SYMBOLS", "1")
    first = ticks.schedule("critical_schedule")
    assert isinstance(first, list)
    queue(ticks, first[1], of_tick=False)
    assert of_shards(ticks.schedule("critical_schedule")) == [("AAPL..AAPL", ["AAPL"]), ("NVDA..NVDA", ["NVDA"])]


def test_a_schedule_without_symbols_says_how_to_add_some(instance: dg.DagsterInstance, database_url: str) -> None:
    skipped = Ticks(instance, database_url).schedule("standard_schedule")
    assert isinstance(skipped, dg.SkipReason)
    assert "market-data universe add" in (skipped.skip_message or "")


def test_tiers_that_fall_due_together_leave_the_queue_by_their_urgency_and_no_tick_or_run_waits(
    ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slept(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr("time.sleep", slept)
    requests = [ticks.schedule(f"{tier}_schedule") for tier in Tier]
    assert all(isinstance(of_tier, list) for of_tier in requests)
    priorities = [int(of_tier[0].tags["dagster/priority"]) for of_tier in requests]  # type: ignore[index]
    assert priorities == sorted(set(priorities), reverse=True)
    for of_tier in requests:
        assert of_tier[0].tags["dagster/max_runtime"] == "7200"  # type: ignore[index]
    job = ticks.definitions.resolve_job_def("standard_refresh")
    assert job.execute_in_process(instance=ticks.instance, tags=dict(requests[1][0].tags)).success  # type: ignore[index]


def test_a_symbol_that_moves_to_another_tier_keeps_its_data_and_its_history(
    ticks: Ticks, market: sa.Connection, database: sa.Engine
) -> None:
    job = ticks.definitions.resolve_job_def("critical_refresh")
    made = job.execute_in_process(instance=ticks.instance)
    market.execute(
        sa.text(
            "insert into market_data.bars (symbol, timeframe, ts, open, high, low, close, volume, ingested_at)"
            " values ('AAPL', '5m', :ts, 1, 1, 1, 1, 1, :now)"
        ),
        {"ts": NOW - timedelta(minutes=10), "now": NOW},
    )
    market.execute(sa.text("update market_data.series_state set first_ts = :now, last_ts = :now"), {"now": NOW})
    held = rows_of(market, "AAPL")
    aapl = {f"AAPL|{timeframe}" for timeframe in Timeframe}

    def shown(tier: Tier) -> set[str]:
        return ticks.instance.get_materialized_partitions(features_key(tier)) & aapl

    assert (shown(Tier.CRITICAL), shown(Tier.STANDARD)) == (aapl, set())
    for tier, says in ((Tier.STANDARD, "carried over"), (Tier.CRITICAL, None)):  # there, and back again
        add_symbols(database, tier, ["AAPL"], NOW)
        happen(ticks.instance, ticks.sensor("universe_sensor"))
        assert "AAPL" in symbols_of(ticks.instance, tier)
        assert shown(tier) == aapl
        assert rows_of(market, "AAPL") == held
        newest = ticks.instance.fetch_materializations(
            dg.AssetRecordsFilter(features_key(tier), asset_partitions=["AAPL|5m"]), limit=1
        ).records[0]
        assert newest.asset_materialization is not None
        assert newest.run_id == (made.run_id if says is None else newest.run_id)
        if says:
            assert newest.asset_materialization.metadata["status"].value == says
    assert isinstance(ticks.sensor("universe_sensor"), dg.SkipReason)


def rows_of(market: sa.Connection, symbol: str) -> list[Any]:
    """Return what is held of a symbol, without the tier that it is in."""
    bars = market.execute(sa.text("select * from market_data.bars where symbol = :s order by ts"), {"s": symbol})
    states = market.execute(
        sa.text(
            "select timeframe, first_ts, last_ts, verified_at, next_due_at, features_computed_at, revision"
            " from market_data.series_state where symbol = :s order by timeframe"
        ),
        {"s": symbol},
    )
    return [*bars.all(), *states.all()]


def happen(instance: dg.DagsterInstance, result: dg.SensorResult | dg.SkipReason) -> None:
    """Do what the daemon does with a result: change the partitions, and store the events."""
    assert isinstance(result, dg.SensorResult)
    for request in result.dynamic_partitions_requests or ():
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        else:
            for key in request.partition_keys:
                instance.delete_dynamic_partition(request.partitions_def_name, key)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
