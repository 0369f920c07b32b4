"""Currency pairs and indices through the whole pipeline: bars, features, gaps and freshness of each market."""

from __future__ import annotations

from datetime import date, datetime

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.checks.expectations import Inspector
from market_data_pipeline.reports.gaps import gaps_report
from market_data_pipeline.reports.quality import ACROSS_RULES, BAR_RULES, FEATURE_RULES
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.calendar import sync_sessions
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

# A Sunday evening, three hours after the week of forex opened; two days after the exchange closed early.
SUNDAY = datetime(2026, 11, 29, 20, 0, 30, tzinfo=NEW_YORK)
VOLUMES = ("rolling_volume_20", "volume_ratio")


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(SUNDAY)


def reasons(world: World, symbol: str) -> dict[tuple[str, str], int]:
    """Return how many gaps a symbol has, by timeframe and reason."""
    settings = Settings(
        base_url=world.base_url,
        api_key=SecretStr("sandbox"),
        plan=world.plan,
        database_url=world.database_url,
        as_of=world.now,
        history_days=30,
    )
    database = engine(world.database_url)
    try:
        found = gaps_report(database, settings, symbol).timeframes
    finally:
        database.dispose()
    return {(one.timeframe, reason): count.bars for one in found for reason, count in one.summary.items()}


def test_a_currency_pair_and_an_index_are_filled_each_on_its_own_calendar(world: World) -> None:
    outcomes = world.refresh("C:EURUSD", "I:SPX", history_days=30)
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}

    spans = {
        (row["symbol"], row["timeframe"]): f"{row['first']:%a %H:%M} {row['last']:%a %H:%M} {row['volumes']}"
        for row in world.query(
            """
            select symbol, timeframe, (min(ts) at time zone 'America/New_York') as first, count(volume) > 0 as volumes,
                (max(ts) at time zone 'America/New_York') as last
            from market_data.bars where ts > '2026-11-22' group by symbol, timeframe
            """
        )
    }
    # Days of forex are the vendor's, UTC's: the bar of Sunday the 29th begins on Saturday evening.
    assert spans["C:EURUSD", "5m"] == "Sun 17:00 Sun 19:55 True"
    assert spans["C:EURUSD", "1h"] == "Sun 17:00 Sun 19:00 True"
    assert spans["C:EURUSD", "1d"] == "Sun 19:00 Sat 19:00 True"
    assert spans["I:SPX", "5m"] == "Mon 09:30 Fri 12:55 False"
    assert spans["I:SPX", "1h"] == "Mon 09:00 Fri 12:00 False"
    assert spans["I:SPX", "4h"] == "Mon 08:00 Fri 12:00 False"
    assert spans["I:SPX", "1d"] == "Mon 00:00 Fri 00:00 False"

    filled = world.query(
        f"""
        select symbol, {", ".join(f"count({name}) as {name}" for name in FEATURE_NAMES)}
        from market_data.features where timeframe = '5m' group by symbol order by symbol
        """
    )
    assert [[row[name] for name in VOLUMES] for row in filled][1] == [0, 0]
    assert all(row[name] for row in filled for name in FEATURE_NAMES if row["symbol"] == "C:EURUSD")
    assert all(filled[1][name] for name in FEATURE_NAMES if name not in VOLUMES)

    late = world.query("select symbol, timeframe from market_data.series_state where next_due_at <= %s", world.now)
    assert late == []
    days = world.query("select session_date from market_data.coverage where symbol = 'C:EURUSD' and timeframe = '1d'")
    assert {row["session_date"].weekday() for row in days} == {0, 1, 2, 3, 4, 6}  # type: ignore[attr-defined]

    assert reasons(world, "C:EURUSD") == {("5m", "not_due"): 1, ("1d", "not_due"): 1}
    # Thanksgiving, and the afternoon after it; no gap before the open and after the close, when it has no value.
    assert reasons(world, "I:SPX") == {("5m", "no_session"): 0, ("5m", "early_close"): 0, ("1d", "no_session"): 0}

    # Four weeks with a clock change, a holiday and an early close break no rule.
    made = engine(world.database_url)
    sync_sessions(made)
    made.dispose()
    inspector = Inspector(world.database_url, world.now)
    looked = {"bars": (*BAR_RULES, *ACROSS_RULES), "features": FEATURE_RULES}
    verdicts = [each for name, rules in looked.items() for each in inspector.inspect(Tier.CRITICAL, name, rules)]
    assert [(each.rule.name, each.error) for each in verdicts if each.error or each.broken_by] == []


def test_an_index_has_no_volume_and_no_other_series_lacks_one(world: World) -> None:
    insert = """
        insert into market_data.bars (symbol, timeframe, ts, open, high, low, close, volume, ingested_at)
        values (%s, '1d', '2026-11-27 05:00Z', 1, 1, 1, 1, null, '2026-11-28')
    """
    world.query(f"{insert} returning symbol", "I:SPX")
    with pytest.raises(Exception, match="volume_unless_index"):
        world.query(f"{insert} returning symbol", "SPY")


def test_a_second_refresh_changes_nothing(world: World) -> None:
    symbols = ("C:EURUSD", "I:SPX")
    world.refresh(*symbols, timeframes=(Timeframe.M5, Timeframe.D1), history_days=4)
    again = world.refresh(*symbols, timeframes=(Timeframe.M5, Timeframe.D1), history_days=4, full=True)
    assert {one.status for one in again.values()} == {"unchanged"}
    assert world.query("select count(*) as n from market_data.bar_revisions") == [{"n": 0}]
    assert date(2026, 11, 29) in {
        row["session_date"] for row in world.query("select session_date from market_data.coverage")
    }
