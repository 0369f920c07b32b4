"""What a refresh leaves behind: bars, features, coverage, state and audit log rows that agree with each other."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import TransientError
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest import fetch_plan
from market_data_pipeline.polygon.client import PolygonClient
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

if TYPE_CHECKING:
    from market_data_pipeline.domain.intervals import Interval

# A Friday in New York's winter time, in the middle of the session.
NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)


def stored(world: World) -> list[list[dict[str, object]]]:
    """Return everything that a series consists of, except when it was stored."""
    return [
        world.query(
            "select symbol, timeframe, ts, open, high, low, close, volume, vwap, trades from market_data.bars"
            " order by symbol, timeframe, ts"
        ),
        world.query(
            f"select symbol, timeframe, ts, {', '.join(FEATURE_NAMES)} from market_data.features"
            " order by symbol, timeframe, ts"
        ),
        world.query(
            "select symbol, timeframe, session_date, status, rows from market_data.coverage"
            " order by symbol, timeframe, session_date"
        ),
        world.query(
            "select symbol, timeframe, first_ts, last_ts, bar_count, feature_count, quiet_slots, next_due_at"
            " from market_data.series_state order by symbol, timeframe"
        ),
    ]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(NOON)


@pytest.fixture
def either_way(make_world: MakeWorld, files_folder: Path | None) -> World:
    """The same by REST, and by the vendor's flat files up to yesterday."""
    return make_world(NOON, files_folder=files_folder)


def test_a_first_refresh_fills_every_timeframe(either_way: World) -> None:
    outcomes = either_way.refresh("AAPL")
    assert {key: outcome.status for key, outcome in outcomes.items()} == {
        f"AAPL|{timeframe}": "ok" for timeframe in Timeframe
    }
    counts = either_way.query(
        """
        select s.timeframe, s.bar_count, s.feature_count, count(b.*) as bars, count(f.*) as features
        from market_data.series_state as s
        left join market_data.bars as b using (symbol, timeframe)
        left join market_data.features as f using (symbol, timeframe, ts)
        group by s.timeframe, s.bar_count, s.feature_count
        """
    )
    assert len(counts) == len(Timeframe)
    for row in counts:
        assert row["bar_count"] == row["bars"] == row["feature_count"] == row["features"] > 0


def test_nothing_that_is_still_in_progress_is_stored(world: World) -> None:
    world.refresh("AAPL")
    last = {
        row["timeframe"]: row["last_ts"].astimezone(NEW_YORK).strftime("%a %H:%M")  # type: ignore[attr-defined]
        for row in world.query("select timeframe, max(ts) as last_ts from market_data.bars group by timeframe")
    }
    expected = {"5m": "Fri 11:55", "15m": "Fri 11:45", "1h": "Fri 11:00", "4h": "Fri 08:00", "1d": "Thu 00:00"}
    assert {timeframe: last[timeframe] for timeframe in expected} == expected


def test_resampled_bars_equal_sql_over_the_5m_bars(either_way: World) -> None:
    either_way.refresh("AAPL")
    differences = either_way.query(
        """
        with made as (
            select
                date_bin('15 minutes', ts, '2000-01-01') as ts,
                (array_agg(open order by ts))[1] as open,
                max(high) as high,
                min(low) as low,
                (array_agg(close order by ts desc))[1] as close,
                sum(volume) as volume,
                sum(trades)::bigint as trades
            from market_data.bars where timeframe = '5m' group by 1
        )

        select *
        from market_data.bars as b
        full join made as m using (ts)
        where b.timeframe = '15m' and (
            (b.open, b.high, b.low, b.close, b.trades) is distinct from (m.open, m.high, m.low, m.close, m.trades)
            or abs(b.volume - m.volume) > 1e-6 * m.volume
        )
        """
    )
    assert differences == []


def test_a_second_refresh_sends_no_request_and_still_records_that_it_ran(either_way: World) -> None:
    either_way.refresh("AAPL", "MSFT")
    before = stored(either_way)
    outcomes = either_way.refresh("AAPL", "MSFT")
    assert {outcome.status for outcome in outcomes.values()} == {"unchanged"}
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == 0
    assert stored(either_way) == before
    assert len(either_way.query("select * from market_data.ingest_log where run_id = 'run-2'")) == 2 * len(Timeframe)


def test_a_tick_costs_one_request_per_symbol(world: World) -> None:
    world.refresh("AAPL")
    world.now += timedelta(minutes=15)
    outcomes = world.refresh("AAPL")
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == 1
    assert outcomes["AAPL|5m"].counters.rows_inserted == 3
    assert outcomes["AAPL|15m"].counters.rows_inserted == 1
    assert outcomes["AAPL|1d"].status == "unchanged"


@pytest.mark.parametrize("minutes", [5, 65, 8 * 60, 3 * 24 * 60])
def test_appending_leaves_what_one_backfill_leaves(world: World, minutes: int) -> None:
    """The first law of features, end to end: however the bars arrived, the rows are the same."""
    first_day = datetime(2026, 11, 9, tzinfo=NEW_YORK)
    end = world.now

    def refresh() -> None:
        world.refresh("AAPL", history_days=(world.now.astimezone(NEW_YORK).date() - first_day.date()).days)

    for steps in (3, 2, 1, 0):
        world.now = end - timedelta(minutes=steps * minutes)
        refresh()
    appended = stored(world)
    with world.connect() as connection:
        connection.execute("truncate market_data.records, market_data.coverage")
        connection.execute("delete from market_data.series_state")
    refresh()
    at_once = stored(world)
    assert appended[0] == at_once[0]
    pd.testing.assert_frame_equal(pd.DataFrame(appended[1]), pd.DataFrame(at_once[1]), rtol=1e-9, atol=0)
    assert appended[3] == at_once[3]


def test_a_long_history_stored_in_parts_equals_one_stored_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an interruption between two parts, which keeps what came before it."""
    days = 40
    at_once = world.refresh("AAPL", history_days=days)
    expected = stored(world)
    with world.connect() as connection:
        connection.execute("truncate market_data.records, market_data.coverage")
        connection.execute("delete from market_data.series_state")
    monkeypatch.setattr(fetch_plan, "PART_BASE_BARS", 6 * 960)
    bars = PolygonClient.bars

    def lost(client: PolygonClient, symbol: str, timeframe: Timeframe, interval: Interval, **more: Any) -> Any:
        if timeframe is Timeframe.M5 and interval.start > NOON - timedelta(days=20):
            raise TransientError("the vendor is gone")
        return bars(client, symbol, timeframe, interval, **more)

    with monkeypatch.context() as gone:
        gone.setattr(PolygonClient, "bars", lost)
        broken = world.refresh("AAPL", history_days=days)
    assert {key for key, outcome in broken.items() if outcome.failed} == {
        f"AAPL|{t}" for t in Timeframe if t is not Timeframe.D1
    }
    kept = broken["AAPL|5m"]
    held = world.query("select count(*) as bars from market_data.bars where timeframe = '5m'")
    assert kept.counters.rows_inserted == kept.bar_count == held[0]["bars"] != 0
    rest = world.refresh("AAPL", history_days=days)
    assert (
        kept.counters.rows_inserted + rest["AAPL|5m"].counters.rows_inserted
        == at_once["AAPL|5m"].counters.rows_inserted
    )
    assert all(not outcome.failed for outcome in rest.values())
    parts = world.query(
        "select count(*) as rows from market_data.ingest_log where run_id = 'run-3' and timeframe = '5m'"
    )
    assert parts[0]["rows"] > 1
    found = stored(world)
    assert found[0] == expected[0]
    pd.testing.assert_frame_equal(pd.DataFrame(found[1]), pd.DataFrame(expected[1]), rtol=1e-9, atol=0)
    assert found[2:] == expected[2:]


def test_a_resampled_series_alone_brings_its_base_and_is_found_by_its_siblings(world: World) -> None:
    alone = world.refresh("AAPL", timeframes=(Timeframe.H1,))
    assert {key: outcome.status for key, outcome in alone.items()} == {"AAPL|5m": "ok", "AAPL|1h": "ok"}
    rest = world.refresh("AAPL", timeframes=(Timeframe.M15, Timeframe.H4))
    assert sum(outcome.counters.requests for outcome in rest.values()) == 0
    at_once = world.query("select timeframe, bar_count from market_data.series_state order by 1")
    assert [row["timeframe"] for row in at_once] == ["15m", "1h", "4h", "5m"]
    assert rest["AAPL|15m"].counters.rows_inserted > rest["AAPL|4h"].counters.rows_inserted > 0


def test_an_interrupted_resample_is_caught_up(either_way: World) -> None:
    either_way.refresh("AAPL", timeframes=tuple(t for t in Timeframe if t is not Timeframe.D1))
    expected = stored(either_way)
    with either_way.connect() as connection:
        connection.execute("delete from market_data.bars where timeframe in ('1h', '4h') and ts > '2026-11-16'")
        connection.execute("delete from market_data.features where timeframe in ('1h', '4h') and ts > '2026-11-16'")
        for timeframe in ("1h", "4h"):
            connection.execute(
                """
                update market_data.series_state as s
                set
                    base_revision = 0,
                    (last_ts, bar_count) = (
                        select max(b.ts), count(*) from market_data.bars as b
                        where b.symbol = s.symbol and b.timeframe = s.timeframe
                    )
                where timeframe = %s
                """,
                (timeframe,),
            )
    outcomes = either_way.refresh("AAPL")
    assert outcomes["AAPL|1h"].status == outcomes["AAPL|4h"].status == "ok"
    restored = [[row for row in rows if row["timeframe"] != "1d"] for rows in stored(either_way)]
    assert restored == expected


def test_a_correction_is_stored_and_the_old_value_kept(either_way: World) -> None:
    either_way.refresh("AAPL")
    truth = stored(either_way)
    with either_way.connect() as connection:
        # What the vendor served before it corrected itself: one wrong close, and one bar that it withdrew.
        connection.execute(
            "update market_data.bars set close = close * 0.999 where timeframe = '5m' and ts = '2026-11-19 14:30Z'"
        )
        connection.execute("delete from market_data.bars where timeframe = '5m' and ts = '2026-11-19 15:00Z'")
        connection.execute("delete from market_data.features where timeframe = '5m' and ts = '2026-11-19 15:00Z'")
        connection.execute("update market_data.series_state set bar_count = bar_count - 1 where timeframe = '5m'")
    outcomes = either_way.refresh("AAPL", full=True)
    assert (outcomes["AAPL|5m"].counters.rows_inserted, outcomes["AAPL|5m"].counters.rows_updated) == (1, 1)
    after = stored(either_way)
    assert after[0] == truth[0]
    pd.testing.assert_frame_equal(pd.DataFrame(after[1]), pd.DataFrame(truth[1]), rtol=1e-9)
    revisions = either_way.query("select ts, close, run_id from market_data.bar_revisions where timeframe = '5m'")
    assert [(row["ts"].isoformat(), row["run_id"]) for row in revisions] == [  # type: ignore[attr-defined]
        ("2026-11-19T14:30:00+00:00", "run-2")
    ]


def test_state_says_when_the_next_bar_falls_due(world: World) -> None:
    outcomes = world.refresh("AAPL")
    due = {key.split("|")[1]: outcome.next_due_at.astimezone(NEW_YORK) for key, outcome in outcomes.items()}  # type: ignore[union-attr]
    assert due["5m"] == datetime(2026, 11, 20, 12, 7, tzinfo=NEW_YORK)
    assert due["1h"] == datetime(2026, 11, 20, 13, 2, tzinfo=NEW_YORK)
    assert due["1d"] == datetime(2026, 11, 21, 0, 2, tzinfo=NEW_YORK)


def test_state_says_which_bars_may_still_change(world: World) -> None:
    def settled() -> dict[object, object]:
        rows = world.query("select timeframe, settled_until from market_data.series_state")
        return {row["timeframe"]: row["settled_until"].astimezone(NEW_YORK).strftime("%a %H:%M") for row in rows}  # type: ignore[attr-defined]

    world.refresh("AAPL")
    assert settled() == dict.fromkeys(map(str, Timeframe), "Fri 00:00")
    world.now = datetime(2026, 11, 21, 10, 0, tzinfo=NEW_YORK)
    world.refresh("AAPL")
    assert settled() == dict.fromkeys(map(str, Timeframe), "Fri 00:00")
    world.now += timedelta(hours=1)
    world.refresh("AAPL")
    assert settled() == dict.fromkeys(map(str, Timeframe), "Sat 00:00")


def test_audit_log_rows_add_up_to_what_the_vendor_counted(world: World) -> None:
    import requests

    world.refresh("AAPL", "MSFT", "SPY")
    status = requests.get(f"{world.base_url}/_sandbox/status", timeout=10).json()
    logged = world.query("select sum(requests)::int as requests from market_data.ingest_log")
    assert logged[0]["requests"] == status["requests"]


def test_a_day_before_the_plans_history_is_not_fetched(make_world: MakeWorld) -> None:
    world = make_world(NOON, plan="basic")
    world.refresh("AAPL", timeframes=(Timeframe.D1,), history_days=740)
    coverage = world.query("select status, count(*) as days from market_data.coverage group by status order by status")
    assert {row["status"] for row in coverage} == {"clamped", "complete"}
    assert next(row["days"] for row in coverage if row["status"] == "clamped") == 7


def test_crypto_follows_utc_days_and_never_closes(world: World) -> None:
    world.now = datetime(2026, 11, 22, 10, 0, 30, tzinfo=UTC)  # a Sunday
    outcomes = world.refresh("X:BTCUSD", history_days=3)
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    last = outcomes["X:BTCUSD|5m"].last_ts
    assert last is not None
    assert world.now - last < timedelta(minutes=20)
    assert outcomes["X:BTCUSD|1d"].last_ts == datetime(2026, 11, 21, tzinfo=UTC)


def test_every_counter_of_a_refresh_has_its_column_in_the_audit_log(world: World) -> None:
    outcome = world.refresh("AAPL", timeframes=(Timeframe.D1,))["AAPL|1d"]
    (row,) = world.query("select * from market_data.ingest_log")
    counted = asdict(outcome.counters)
    assert all(counted[name] for name in ("requests", "bytes", "rows_inserted", "features_written", "fetch_seconds"))
    del counted["store_seconds"]  # the row is written within them
    assert {name: row[name] for name in counted} == counted
