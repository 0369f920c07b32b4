"""Each rule finds the fault that it is for and names the rows, and finds nothing in sound data."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
import vl_convert
from PIL import Image

from market_data_pipeline.domain.adjustments import adjust
from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for, from_us
from market_data_pipeline.domain.jumps import jumps
from market_data_pipeline.domain.series import AssetClass, Series, Tier, Timeframe
from market_data_pipeline.orchestration.checks import charts
from market_data_pipeline.orchestration.checks.charts import price_and_volume
from market_data_pipeline.orchestration.checks.expectations import SAMPLE, Inspector, Verdict
from market_data_pipeline.reports.quality import ACROSS_RULES, BAR_RULES, FEATURE_RULES, Rule
from market_data_pipeline.reports.quality_splits import SPLIT_RULES
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.store.bars import read_bars
from market_data_pipeline.store.calendar import sync_sessions
from market_data_pipeline.store.connection import engine
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.reference import read_splits
from market_data_pipeline_tests import recorded
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.conftest import World

BARS, FEATURES = (*BAR_RULES, *ACROSS_RULES, *SPLIT_RULES), FEATURE_RULES
# Clocks went back on 2 November, the market was closed on the 27th and closed early on the 28th.
NOW = datetime(2025, 12, 2, 12, 0, tzinfo=NEW_YORK).astimezone(UTC)
HISTORY_DAYS = 34
BAR = "symbol = 'AAPL' and timeframe = '5m' and ts = '2025-11-20 15:00Z'"
DAY = "symbol = 'AAPL' and timeframe = '1d' and ts = '2025-11-20 05:00Z'"


def sane(database_url: str) -> None:
    """Fill a database with a US equity and a round-the-clock market, as a refresh does."""
    world = World("", database_url, NOW)
    with running_server(open_source(None), world.clock, plan="advanced") as world.base_url:
        assert not any(
            outcome.failed for outcome in world.refresh("AAPL", "X:BTCUSD", history_days=HISTORY_DAYS).values()
        )
    know_sessions(database_url)


def know_sessions(database_url: str) -> None:
    made = engine(database_url)
    sync_sessions(made)
    with made.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("analyze"))  # as the server does automatically, within a minute
    made.dispose()


@pytest.fixture(scope="module")
def sane_template(postgres_url: str, migrated_template: str) -> Iterator[str]:
    name = copy_database(postgres_url, migrated_template)
    sane(with_database(postgres_url, name))
    yield name
    drop_database(postgres_url, name)


@pytest.fixture
def sane_url(postgres_url: str, sane_template: str) -> Iterator[str]:
    name = copy_database(postgres_url, sane_template)
    yield with_database(postgres_url, name)
    drop_database(postgres_url, name)


def broken(url: str, now: datetime = NOW, table: str = "", rules: Sequence[Rule] = ()) -> dict[str, Verdict]:
    """Return the verdicts, by rule, that are not clean."""
    inspector = Inspector(url, now)
    looked = [(table, rules)] if table else [("bars", BARS), ("features", FEATURES)]
    verdicts = [verdict for name, some in looked for verdict in inspector.inspect(Tier.CRITICAL, name, some)]
    assert [verdict.error for verdict in verdicts if verdict.error] == []
    return {verdict.rule.name: verdict for verdict in verdicts if verdict.broken_by}


def test_what_a_refresh_stores_breaks_no_rule(sane_url: str) -> None:
    assert broken(sane_url) == {}


class Fault(NamedTuple):
    rule: str
    statements: str
    count: int
    key: tuple[str, str]  # symbol and timeframe of the first row of the sample
    shows: str  # a column of the sample


STORED_TWICE = f"""
    alter table market_data.records drop constraint records_pkey;
    insert into market_data.records select r.* from market_data.records as r
    join market_data.series as s on s.id = r.series where {BAR}
"""
BAR_FAULTS = (
    Fault(
        "keys_are_unique",
        STORED_TWICE,
        1,
        ("AAPL", "5m"),
        "copies",
    ),
    Fault(
        "bars_are_in_order",
        f"update market_data.bars set ts = ts + interval '2 minutes' where {BAR}",
        1,
        ("AAPL", "5m"),
        "previous_ts",
    ),
    Fault("prices_are_positive", f"update market_data.bars set low = 0 where {BAR}", 1, ("AAPL", "5m"), "low"),
    Fault("prices_are_positive", f"update market_data.bars set close = 'nan' where {DAY}", 1, ("AAPL", "1d"), "close"),
    Fault(
        "prices_are_positive", f"update market_data.bars set high = 'infinity' where {DAY}", 1, ("AAPL", "1d"), "high"
    ),
    Fault("prices_are_consistent", f"update market_data.bars set high = low where {BAR}", 1, ("AAPL", "5m"), "high"),
    Fault(
        "volume_is_not_negative", f"update market_data.bars set volume = -1 where {BAR}", 1, ("AAPL", "5m"), "volume"
    ),
    Fault(
        "volume_is_not_negative", f"update market_data.bars set volume = 'nan' where {BAR}", 1, ("AAPL", "5m"), "volume"
    ),
    Fault(
        "vwap_lies_within_the_bar",
        f"update market_data.bars set vwap = 2 * high where {BAR}",
        1,
        ("AAPL", "5m"),
        "vwap",
    ),
    Fault(
        "no_bar_from_the_future",
        f"update market_data.bars set ingested_at = ts + interval '1 minute' where {BAR}",
        1,
        ("AAPL", "5m"),
        "ingested_at",
    ),
    Fault(
        "bars_lie_in_sessions",  # Thanksgiving
        f"update market_data.bars set ts = '2025-11-27 15:00Z' where {BAR}",
        1,
        ("AAPL", "5m"),
        "session_date",
    ),
    Fault(
        "bars_lie_in_sessions",  # after the early close, 17:00 New York
        f"update market_data.bars set ts = '2025-11-28 22:00Z' where {BAR}",
        1,
        ("AAPL", "5m"),
        "closes_at",
    ),
    Fault(
        "bars_lie_in_sessions",  # as if the clocks had not gone back: 03:00 New York
        f"update market_data.bars set ts = '2025-11-20 08:00Z' where {BAR}",
        1,
        ("AAPL", "5m"),
        "opens_at",
    ),
    Fault(
        "bars_lie_in_sessions",  # a four-hour bar on the vendor's grid instead of ours
        "update market_data.bars set ts = ts - interval '1 hour'"
        " where symbol = 'AAPL' and timeframe = '4h' and ts = '2025-11-20 13:00Z'",
        1,
        ("AAPL", "4h"),
        "opens_at",
    ),
    Fault(
        "bars_lie_in_sessions",  # a day bar at the UTC midnight
        f"update market_data.bars set ts = '2025-11-20 00:00Z' where {DAY}",
        1,
        ("AAPL", "1d"),
        "opens_at",
    ),
    Fault(
        "bars_lie_in_sessions",
        "update market_data.bars set ts = ts + interval '5 hours' where symbol = 'X:BTCUSD' and timeframe = '1d'"
        " and ts = '2025-11-20 00:00Z'",
        1,
        ("X:BTCUSD", "1d"),
        "opens_at",
    ),
    Fault("every_session_has_its_day_bar", f"delete from market_data.bars where {DAY}", 1, ("AAPL", "1d"), "coverage"),
    Fault("coverage_counts_its_bars", f"delete from market_data.bars where {BAR}", 1, ("AAPL", "5m"), "covered"),
    Fault(
        "coverage_counts_its_bars",
        "delete from market_data.coverage where symbol = 'AAPL' and timeframe = '1d' and session_date = '2025-11-20'",
        1,
        ("AAPL", "1d"),
        "held",
    ),
    Fault(
        "state_agrees_with_the_bars",
        "update market_data.series_state set bar_count = bar_count + 1 where symbol = 'AAPL' and timeframe = '1h'",
        1,
        ("AAPL", "1h"),
        "state_bars",
    ),
    Fault(
        "state_agrees_with_the_bars",
        "delete from market_data.bars where symbol = 'X:BTCUSD' and timeframe = '4h'",
        1,
        ("X:BTCUSD", "4h"),
        "held",
    ),
    Fault(
        "day_volume_holds_the_minutes",  # it still holds the regular hours and most of the others
        f"update market_data.bars set volume = volume * 0.99 where {DAY}",
        1,
        ("AAPL", "1d"),
        "minutes",
    ),
    Fault(
        "resampled_bars_equal_their_minutes",  # the bar is part of one of 15m, one of 1h and one of 4h
        f"update market_data.bars set volume = volume + 1000 where {BAR}",
        3,
        ("AAPL", "15m"),
        "volume_of_5m",
    ),
    Fault(
        "closes_have_no_unexplained_jump",  # a split of which the list knows nothing
        "update market_data.bars set close = close / 10, volume = volume * 10"
        " where symbol = 'AAPL' and timeframe = '1d' and ts >= '2025-11-20 05:00Z'",
        1,
        ("AAPL", "1d"),
        "resembles",
    ),
    Fault(
        "splits_are_beyond_doubt",
        "insert into market_data.splits values ('AAPL', '2025-11-20', 1, 1, now());"
        "update market_data.splits set doubt = 'The rows contradict each other.' where execution_date = '2025-11-20'",
        1,
        ("AAPL", "1d"),
        "doubt",
    ),
    Fault(
        "splits_are_beyond_doubt",
        "insert into market_data.reference_failures values ('splits', '2025-12-01 15:00Z', 'HTTP 404')",
        1,
        ("AAPL", "1d"),
        "doubt",
    ),
)
FEATURE_FAULTS = (
    Fault(
        "keys_are_unique",
        STORED_TWICE,
        1,
        ("AAPL", "5m"),
        "copies",
    ),
    Fault("every_bar_has_features", f"delete from market_data.features where {BAR}", 1, ("AAPL", "5m"), "ts"),
    Fault(
        "features_are_filled_after_warm_up",
        f"update market_data.features set volatility_regime = null where {BAR}",
        1,
        ("AAPL", "5m"),
        "volatility_regime",
    ),
    Fault(
        "features_are_filled_after_warm_up",  # the second bar of the series, the first one with a return
        "update market_data.features set log_return = null where (symbol, timeframe, ts) ="
        " (select symbol, timeframe, ts"
        " from market_data.features where symbol = 'AAPL' and timeframe = '1h' order by ts offset 1 limit 1)",
        1,
        ("AAPL", "1h"),
        "log_return",
    ),
    Fault(
        "features_are_filled_after_warm_up",
        f"update market_data.features set return_1d = null where {DAY}",
        1,
        ("AAPL", "1d"),
        "symbol",
    ),
    Fault("values_are_bounded", f"update market_data.features set atr = -1 where {BAR}", 1, ("AAPL", "5m"), "atr"),
    Fault(
        "values_are_bounded",
        f"update market_data.features set volatility_20 = 'nan' where {BAR}",
        1,
        ("AAPL", "5m"),
        "volatility_20",
    ),
    Fault(
        "values_are_bounded",
        f"update market_data.features set log_return = '-infinity' where {BAR}",
        1,
        ("AAPL", "5m"),
        "log_return",
    ),
    Fault(
        "labels_are_known",
        "update market_data.features set structure_label = case structure_label when 'range' then 'bullish'"
        f" else 'range' end where {BAR}",
        1,
        ("AAPL", "5m"),
        "structure_label",
    ),
    Fault(
        "labels_are_known",
        f"update market_data.features set hh = true, lh = true where {BAR}",
        1,
        ("AAPL", "5m"),
        "hh",
    ),
    Fault(
        "features_follow_their_bars",
        f"update market_data.features set features_computed_at = features_computed_at - interval '1 hour' where {BAR}",
        1,
        ("AAPL", "5m"),
        "bar_ingested_at",
    ),
)


@pytest.mark.parametrize(
    ("table", "rules", "fault"),
    [("bars", BARS, fault) for fault in BAR_FAULTS] + [("features", FEATURES, fault) for fault in FEATURE_FAULTS],
    ids=lambda value: value.rule if isinstance(value, Fault) else "",
)
def test_a_planted_fault_is_found_counted_and_shown(
    sane_url: str, table: str, rules: Sequence[Rule], fault: Fault
) -> None:
    with psycopg.connect(sane_url) as connection:
        connection.execute(fault.statements)
    rule = next(rule for rule in rules if rule.name == fault.rule)
    verdict = broken(sane_url, table=table, rules=[rule])[fault.rule]
    assert verdict.broken_by == fault.count
    first = verdict.sample[0]
    assert (first["symbol"], first["timeframe"]) == fault.key
    assert fault.shows in first


def test_every_rule_has_a_fault_that_it_finds() -> None:
    assert {fault.rule for fault in BAR_FAULTS} | {"instants_agree_with_the_database"} == {rule.name for rule in BARS}
    assert {fault.rule for fault in FEATURE_FAULTS} == {rule.name for rule in FEATURES}


def test_a_bar_stored_as_if_at_another_time_is_found_unless_the_clock_stands_still(sane_url: str) -> None:
    with psycopg.connect(sane_url) as connection:  # all of it says that it was stored last year
        connection.execute("alter table market_data.ingest_log disable trigger all")
        connection.execute("update market_data.ingest_log set recorded_at = finished_at")
        connection.execute("alter table market_data.dividend_changes disable trigger all")
        connection.execute("update market_data.dividend_changes set recorded_at = first_seen_at")
        connection.execute("update market_data.records set recorded_at = ingested_at + interval '4 minutes'")
        connection.execute(f"update market_data.bars set recorded_at = ingested_at + interval '6 minutes' where {BAR}")
    rules = [rule for rule in BARS if rule.name == "instants_agree_with_the_database"]
    (verdict,) = broken(sane_url, datetime.now(UTC), "bars", rules).values()
    assert verdict.broken_by == 1
    assert (verdict.sample[0]["relation"], verdict.sample[0]["instant"]) == ("bars", "ingested_at")
    assert broken(sane_url, NOW, "bars", rules) == {}


def test_the_count_is_exact_and_the_sample_short(sane_url: str) -> None:
    with psycopg.connect(sane_url) as connection:
        planted = connection.execute(
            "update market_data.records set volume = -1"
            " where series in (select id from market_data.series where symbol = 'X:BTCUSD')"
        ).rowcount
    verdict = broken(sane_url)["volume_is_not_negative"]
    assert verdict.broken_by == planted > SAMPLE == len(verdict.sample)


def test_a_tiers_verdicts_leave_out_the_faults_of_others(sane_url: str) -> None:
    with psycopg.connect(sane_url) as connection:
        connection.execute(f"update market_data.bars set volume = -1 where {BAR}")
        connection.execute("update market_data.symbols set tier = 'standard' where symbol = 'AAPL'")
    assert broken(sane_url) == {}


def test_a_day_that_the_vendor_confirmed_empty_needs_no_bar(sane_url: str) -> None:
    with psycopg.connect(sane_url) as connection:
        connection.execute(f"delete from market_data.bars where {DAY}")
        connection.execute(
            "update market_data.coverage set status = 'empty_confirmed', rows = 0"
            " where symbol = 'AAPL' and timeframe = '1d' and session_date = '2025-11-20'"
        )
    assert "every_session_has_its_day_bar" not in broken(sane_url)


def test_recorded_bars_break_no_rule(database_url: str) -> None:
    now = datetime(2014, 6, 10, 12, 0, tzinfo=NEW_YORK).astimezone(UTC)
    world = World("", database_url, now)
    with running_server(open_source(recorded.SAMPLE), world.clock, plan="advanced") as world.base_url:
        world.refresh("AAPL", history_days=200)
    know_sessions(database_url)
    assert broken(database_url, now) == {}


@recorded.needs_full
def test_twenty_years_of_recorded_bars_break_no_rule(database_url: str) -> None:
    world = World("", database_url, datetime(2014, 6, 10, 12, 0, tzinfo=NEW_YORK).astimezone(UTC))
    with running_server(open_source(recorded.FULL), world.clock, plan="advanced") as world.base_url:
        world.refresh("AAPL", history_days=10)
        world.now = datetime(2013, 10, 13, 12, 0, tzinfo=NEW_YORK).astimezone(UTC)
        world.refresh("SPY", history_days=12)
        world.now = datetime(2021, 3, 31, 12, 0, tzinfo=NEW_YORK).astimezone(UTC)
        world.refresh("AAPL", "SPY", "QQQ", "GOOG", history_days=8480)
    know_sessions(database_url)
    assert broken(database_url, world.now) == {}


def test_the_calendar_in_the_database_is_the_pipelines_own(database_url: str) -> None:
    made = engine(database_url)
    assert sync_sessions(made)
    assert not sync_sessions(made)
    expected = calendar_for(AssetClass.US_EQUITY).session_on(date(2025, 11, 28))
    assert expected is not None
    statement = "select {} from market_data.sessions where asset_class = 'us_equity' and session_date = '2025-11-28'"
    with made.begin() as connection:
        row: Any = connection.execute(sa.text(statement.format("*"))).one()
        assert (row.opens_at, row.closes_at, row.early_close) == (expected.start, expected.end, True)
        assert connection.execute(sa.text(statement.format("1").replace("28'", "27'"))).one_or_none() is None
        connection.execute(sa.text("delete from market_data.sessions where session_date = '2025-11-28'"))
    assert sync_sessions(made)
    made.dispose()


def test_the_charts_of_a_tier_are_small_and_show_what_is_held(sane_url: str) -> None:
    made = engine(sane_url, as_of=NOW)
    for draw in (charts.prices, charts.coverage):
        drawn = draw(made, Tier.CRITICAL)
        assert drawn is not None
        found = re.fullmatch(r"!\[.+\]\(data:image/png;base64,(.+)\)", drawn)
        assert found is not None
        with Image.open(io.BytesIO(base64.b64decode(found[1]))) as chart:
            assert chart.width > 400
            assert len(chart.getcolors(maxcolors=256) or ()) > 3
        assert len(drawn) < 100_000
        assert draw(made, Tier.STANDARD) is None
    made.dispose()


def test_a_symbol_too_young_for_its_features_is_charted_without_them() -> None:
    days = pd.date_range("2026-01-05", periods=3, tz="UTC")
    young = {"symbol": "AAPL", "ts": days, "close": [1.0, 2.0, 3.0], "volume": [5.0, 6.0, 7.0]}
    drawn = price_and_volume(pd.DataFrame({**young, "atr": [np.nan] * 3, "trend_regime": [None] * 3}))
    assert drawn.startswith("![Close by trend")


def test_jumps_are_shown_worst_first_and_are_those_that_commits_warn_of(sane_url: str) -> None:
    with psycopg.connect(sane_url) as connection:
        for factor, day in ((4, "2025-11-12"), (15, "2025-11-20"), (2, "2025-11-25")):
            connection.execute(
                "update market_data.bars set open = open / %(by)s, high = high / %(by)s, low = low / %(by)s,"
                " close = close / %(by)s, volume = volume * %(by)s"
                " where symbol = 'AAPL' and timeframe = '1d' and ts >= %(day)s",
                {"by": factor, "day": f"{day} 05:00Z"},
            )
    verdict = broken(sane_url, table="bars", rules=SPLIT_RULES)["closes_have_no_unexplained_jump"]
    with StoreConnection(sane_url, NOW) as connection:
        bars = read_bars(connection, Series("AAPL", Timeframe.D1), NOW - timedelta(days=60), NOW)
        found = jumps(adjust(bars, read_splits(connection, "AAPL"), NOW.date()))
    assert [row["resembles"] for row in verdict.sample] == ["15:1", "4:1", "2:1"]
    assert [(row["ts"], row["resembles"]) for row in verdict.sample] == [
        (from_us(jump.ts_us), jump.resembles) for jump in found
    ]


@pytest.mark.parametrize("days", [3, 20, 61, 75, 183])
def test_no_label_of_a_charts_time_stands_there_twice(days: int) -> None:
    begins = datetime(2026, 8, 20, tzinfo=UTC)
    rows = pd.DataFrame({"ts": [begins + timedelta(days=day) for day in range(days)], "close": 1.0})
    span = rows["ts"].max() - rows["ts"].min()
    drawn = alt.Chart(rows).mark_bar().encode(alt.X("ts:T", title=None, axis=charts.time_axis(span)))
    picture = vl_convert.vegalite_to_svg(drawn.properties(width=170, height=80).to_json())
    labels = re.findall(r">(\d* ?[A-Z][a-z]{2})</text>", picture)
    assert labels
    assert len(set(labels)) == len(labels)
