"""A stock that is delisted is followed from its past: its history is loaded, and nothing of it is ever late."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from market_data_pipeline import read_bars, read_universe
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.ingest.delisted import Choice, check_is_free, look_up, write_ends, write_securities
from market_data_pipeline.reading.connections import close_connections
from market_data_pipeline.reports.estimate import estimate_backfill
from market_data_pipeline.reports.freshness import alert_changes, series_freshness
from market_data_pipeline.reports.gaps import gaps_report
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.connection import engine
from market_data_pipeline.store.universe import UniverseChange, add_symbols
from market_data_pipeline_tests.domain.strategies import EQUITIES
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, FaultyVendor
from market_data_pipeline_tests.polygon.faulty_server import send

TRUTH = SyntheticMarket()
NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
LAST = date(2008, 9, 16)
HISTORY = 20
ANY = Choice()


def settings_of(world: World, tmp_path: Path, **others: object) -> Settings:
    return Settings(
        database_url=world.database_url, as_of=world.now, project_root=tmp_path, history_days=HISTORY, plan=world.plan,
        **others,
    )  # fmt: skip


def follow(world: World, settings: Settings, *symbols: str, choice: Choice = ANY) -> UniverseChange:
    with world.pipeline(HISTORY) as pipeline:
        found = look_up(pipeline.client, settings, symbols, choice)
    check_is_free(settings, found)
    learned = {symbol: each for symbol, (_, each) in found.items()}
    write_securities(settings, learned.values())
    database = engine(world.database_url, as_of=world.now)
    securities = {symbol: each.identity.security for symbol, each in learned.items()}
    change = add_symbols(database, Tier.CRITICAL, symbols, world.now, securities=securities)
    database.dispose()
    write_ends(settings, learned)
    return change


def late(world: World) -> list[tuple[str, str]]:
    database = engine(world.database_url, as_of=world.now)
    with database.connect() as connection:
        found = [(one.symbol, one.timeframe) for one in alert_changes(connection).late]
    database.dispose()
    return found


def test_its_history_before_its_end_is_loaded_and_nothing_is_ever_late(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(NOON)
    settings = settings_of(world, tmp_path)
    assert follow(world, settings, "LEH").added == ("LEH",)
    world.track("KO")
    database = engine(world.database_url, as_of=world.now)
    plan = {each.timeframe: each.sessions for each in estimate_backfill(database, settings, ["LEH"]).series}
    world.now += timedelta(days=1)
    assert {symbol for symbol, _ in late(world)} == {"KO"}, "the first load of what ended can wait"
    world.now -= timedelta(days=1)
    with database.connect() as connection:
        missing = [one.timeframe for one in series_freshness(connection, "LEH") if one.status == "MISSING"]
    assert missing == list(Timeframe), "but it is still to be loaded"

    outcomes = world.refresh("LEH", "KO", history_days=HISTORY)
    assert not [outcome.error for outcome in outcomes.values() if outcome.failed]
    sessions = EQUITIES.sessions(LAST + timedelta(days=1 - HISTORY), LAST + timedelta(days=1))
    bars = read_bars("LEH", "1d", settings=settings)
    days = EQUITIES.session_days(bars.index.as_unit("us").asi8).tolist()
    assert days == [session.date for session in sessions]
    assert plan == {"5m": len(sessions) + 1, "1d": len(sessions) + 1}  # and the day of the delisting
    truth = TRUTH.days("LEH", 0, 2**43)
    assert bars["close"].to_list() == truth.c.tolist()[-len(sessions) :]
    assert len(read_bars("LEH", "5m", settings=settings)) > 150 * len(sessions)

    for world.now in (world.now + timedelta(days=hours) for hours in (1, 2, 30)):
        again = world.refresh("LEH", history_days=HISTORY, reverify=True)
        assert not [outcome.error for outcome in again.values() if outcome.failed]
    assert late(world) == [("KO", str(each)) for each in Timeframe]
    asked = world.query("select max(session_date) as last from market_data.coverage where symbol = 'LEH'")
    assert asked == [{"last": LAST + timedelta(days=1)}]
    (life,) = world.query("select distinct life, life_since from market_data.series_state where symbol = 'LEH'")
    assert life["life"] == "delisted"
    report = gaps_report(database, settings_of(world, tmp_path), "LEH")
    assert {gap.reason for one in report.timeframes for gap in one.stretches} <= {"not_expected", "no_session"}
    database.dispose()

    found = read_universe(settings=settings)
    assert found.loc["LEH", ["followed", "listed"]].tolist() == [True, False]
    then = read_universe(on=LAST, settings=settings)
    assert then.loc[["LEH", "KO"], "listed"].tolist() == [True, True]
    assert then.loc["LEH", "ticker"] == "LEH"
    close_connections()
    quiet = world.refresh("LEH", history_days=HISTORY)
    assert {outcome.counters.requests for outcome in quiet.values()} == {0}


def refused(world: World, settings: Settings, *symbols: str, choice: Choice = ANY) -> str:
    with pytest.raises(UsageError) as caught:
        follow(world, settings, *symbols, choice=choice)
    assert world.query("select symbol from market_data.symbols where symbol = any(%s)", list(symbols)) == []
    return str(caught.value)


def test_what_cannot_be_followed_so_is_refused_with_what_to_do(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(NOON)
    settings = settings_of(world, tmp_path)
    assert refused(world, settings, "KO") == (
        "KO is not delisted: follow it without --delisted. Nothing was added."
    )  # fmt: skip
    assert "knows no delisted stock NOSUCH" in refused(world, settings, "LEH", "NOSUCH")
    assert "only stocks" in refused(world, settings, "X:BTCUSD")
    short = settings_of(world, tmp_path).model_copy(update={"plan": "starter"})
    assert "ended before the history of the plan starter, which begins on 2021-" in refused(world, short, "LEH")


def row(ticker: str, name: str, figi: str, day: str) -> dict[str, object]:
    return {
        "ticker": ticker, "name": name, "composite_figi": figi, "active": False, "delisted_utc": f"{day}T00:00:00Z",
    }  # fmt: skip


def test_one_of_several_that_had_the_ticker_is_chosen_by_figi_or_day(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(NOON)
    settings = settings_of(world, tmp_path)
    rows = [row("LEH", "Lehman", "BBG000BM1VH8", "2008-09-17"), row("LEH", "Lehigh", "BBG00000LHG1", "2004-03-01")]
    said = json.dumps({"status": "OK", "results": rows}).encode()
    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        vendor.inject(lambda _: send(200, said), lambda exchange: "active=false" in exchange.target, ALWAYS)
        sentence = refused(world, settings, "LEH")
        assert "Lehman, delisted on 2008-09-17, FIGI BBG000BM1VH8; Lehigh, delisted on 2004-03-01" in sentence
        assert "--figi or --delisted-on" in sentence
        assert "there is Lehman" in refused(world, settings, "LEH", choice=Choice(delisted_on=date(2001, 1, 1)))
        follow(world, settings, "LEH", choice=Choice(delisted_on=date(2008, 9, 17)))
        world.refresh("LEH", timeframes=(Timeframe.D1,), history_days=HISTORY)
        (held,) = world.query("select security, max(last_ts) as last from market_data.symbols"
            " inner join market_data.series_state using (symbol) group by 1")  # fmt: skip
        assert (held["security"], held["last"].date()) == ("BBG000BM1VH8", LAST)  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match="stands for another security here"):
            follow(world, settings, "LEH", choice=Choice(figi="BBG00000LHG1"))


def test_a_ticker_that_lives_on_under_another_name_is_refused(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(NOON)
    figi = TRUTH.security("META").figi  # type: ignore[union-attr]
    rows = {"status": "OK", "results": [{**row("FB", "META (synthetic)", figi, "2022-06-09")}]}
    events = [
        {"date": day, "ticker_change": {"ticker": ticker}}
        for day, ticker in (("2012-05-18", "FB"), ("2022-06-09", "META"))
    ]
    answers: dict[str, Callable[[], bytes]] = {
        "active=false": lambda: json.dumps(rows).encode(),
        "/events": lambda: json.dumps({"status": "OK", "results": {"composite_figi": figi, "events": events}}).encode(),
    }
    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        for part, body in answers.items():
            said = body()
            vendor.inject(
                lambda _, said=said: send(200, said), lambda exchange, part=part: part in exchange.target, ALWAYS
            )
        sentence = refused(world, settings_of(world, tmp_path), "FB")
    assert sentence.startswith("FB is not delisted: the security has traded as META since 2022-06-09. Follow META")


def test_whoever_has_the_ticker_now_is_no_part_of_its_series(make_world: MakeWorld, tmp_path: Path) -> None:
    """KO is listed; a company of that ticker, which ended long ago, is followed all the same."""
    world = make_world(NOON)
    said = json.dumps({"status": "OK", "results": [row("KO", "Old Coke", "BBG000OLDKO1", "2010-03-01")]}).encode()
    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        vendor.inject(lambda _: send(200, said), lambda exchange: "active=false" in exchange.target, ALWAYS)
        follow(world, settings_of(world, tmp_path), "KO")
        for _ in range(2):
            world.refresh("KO", timeframes=(Timeframe.D1,), history_days=HISTORY, reverify=True)
            world.now += timedelta(days=1)
    (held,) = world.query("select min(ts) as first, max(ts) as last from market_data.bars where symbol = 'KO'")
    assert held["last"] < datetime(2010, 3, 2, tzinfo=UTC)  # type: ignore[operator]
    assert [row["security"] for row in world.query("select security from market_data.symbols")] == ["BBG000OLDKO1"]
