"""A series is a security's history: what its ticker was before is cut off, what it was under another one is joined."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from market_data_pipeline import read_bars
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.identity import Identity, Tenure
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reading.connections import close_connections
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.scenario import Scenario
from market_data_pipeline.sandbox.staged import staged
from market_data_pipeline.sandbox.view import Source, to_ms
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.domain.strategies import EQUITIES, new_york
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, Exchange, FaultyVendor
from market_data_pipeline_tests.polygon.faulty_server import send

TRUTH = SyntheticMarket()

# What happened to META and FB, with another fund: META was a fund that is IWM now, and FB is META.
REUSED = date(2026, 11, 12)
RENAMES = (
    {"ticker": "META", "was": "FB", "day": REUSED},
    {"ticker": "IWM", "was": "META", "day": REUSED},
)
BEFORE = new_york("2026-11-11 20:30")
NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)


def world_of(make_world: MakeWorld, now: datetime, *renames: dict[str, object], **events: object) -> World:
    clock: list[World] = []
    scenario = Scenario.model_validate({"renames": renames, **events})
    world = make_world(now, source=staged(TRUTH, scenario, lambda: clock[0].now))
    clock.append(world)
    return world


def closes(world: World, symbol: str, timeframe: str = "1d", as_of: datetime | None = None) -> dict[date, float]:
    rows = world.query(
        "select ts, close from market_data.bars_as_of(%s, %s, coalesce(%s, 'infinity'::timestamptz))",
        symbol, timeframe, as_of,
    )  # fmt: skip
    return {EQUITIES.session_date(row["ts"]): float(row["close"]) for row in rows}  # type: ignore[arg-type]


def true_closes(source: Source, ticker: str, first: date, last: date) -> dict[date, float]:
    start, end = EQUITIES.midnight(first), EQUITIES.midnight(last)
    found = source.days(ticker, to_ms(start), to_ms(end))
    days = [EQUITIES.session_date(datetime.fromtimestamp(t / 1000, NEW_YORK)) for t in found.t.tolist()]
    return dict(zip(days, found.c.tolist(), strict=True))


def history(world: World, table: str = "superseded_at is null") -> list[tuple[object, ...]]:
    rows = world.query(
        f"select symbol, security, valid_from, valid_until from market_data.symbol_history where {table} order by 3, 1"
    )
    return [tuple(row.values()) for row in rows]


DAYS = (Timeframe.D1,)
FIRST, TODAY = date(2026, 10, 21), date(2026, 11, 20)


def test_a_first_load_holds_the_history_of_the_security_under_all_its_tickers(make_world: MakeWorld) -> None:
    world = world_of(make_world, NOON, *RENAMES)
    outcomes = world.refresh("META", timeframes=DAYS, history_days=30)
    assert not any(outcome.failed for outcome in outcomes.values())
    assert closes(world, "META") == pytest.approx(true_closes(TRUTH, "META", FIRST, TODAY))
    asked = world.query(
        "select session_date < %s as before, ticker, count(*) as days from market_data.coverage"
        " where timeframe = '1d' group by 1, 2 order by 1 desc",
        REUSED,
    )  # fmt: skip
    assert [(row["before"], row["ticker"]) for row in asked] == [(True, "FB"), (False, None)]


def test_a_ticker_that_was_another_security_is_cut_off_there(make_world: MakeWorld) -> None:
    world = world_of(make_world, NOON, RENAMES[1], listings=[{"ticker": "META", "first": REUSED}])
    world.refresh("META", timeframes=DAYS, history_days=30)
    assert closes(world, "META") == pytest.approx(true_closes(TRUTH, "META", REUSED, TODAY))
    gaps = world.query("select distinct ticker, rows from market_data.coverage where session_date < %s", REUSED)
    assert [tuple(row.values()) for row in gaps] == [("", 0)]


def test_where_the_vendor_does_not_say_since_when_a_ticker_is_a_security_that_is_told_once(
    make_world: MakeWorld,
) -> None:
    world = world_of(make_world, NOON, {**RENAMES[0], "unlisted": True}, RENAMES[1])

    def doubted() -> bool:
        outcomes = world.refresh("META", timeframes=DAYS, history_days=30)
        said = outcomes["META|1d"].warning or ""
        return "META was another security on 2026-10-21 (IWM (synthetic))" in said and "corporate_actions.yaml" in said

    assert [doubted(), doubted()] == [True, False]


AS_TICKER = {"META": Identity("", (Tenure("META"),), "override", "as if it had always been META")}


def test_a_mixed_history_is_cut_and_joined_and_what_it_was_is_kept(make_world: MakeWorld, tmp_path: Path) -> None:
    world = world_of(make_world, NOON, *RENAMES)
    world.overrides = AS_TICKER
    world.refresh("META", history_days=30)
    fund, truth = true_closes(TRUTH, "IWM", FIRST, REUSED), true_closes(TRUTH, "META", FIRST, TODAY)
    mixed = fund | true_closes(TRUTH, "META", REUSED, TODAY)
    assert closes(world, "META") == pytest.approx(mixed)
    with world.connect() as connection:  # as in a database from before there were securities
        connection.execute("alter table market_data.symbol_history disable trigger all")
        connection.execute("delete from market_data.symbol_history")
        connection.execute("alter table market_data.symbol_history enable trigger all")
        connection.execute("delete from market_data.identity_checks")
    known_until, world.now, world.overrides = world.now, NOON + timedelta(hours=1), {}
    outcomes = world.refresh("META", history_days=30)
    assert {(outcome.status, outcome.error) for outcome in outcomes.values()} == {("ok", None)}

    assert closes(world, "META") == pytest.approx(truth)
    assert closes(world, "META", as_of=known_until) == pytest.approx(mixed)
    for timeframe in ("5m", "1h"):
        for day, close in closes(world, "META", timeframe).items():
            assert close == pytest.approx(truth.get(day, close), rel=0.1), (timeframe, day)
    returns = {
        EQUITIES.session_date(row["ts"]): row["return_1d"]  # type: ignore[arg-type]
        for row in world.query("select ts, return_1d from market_data.features where timeframe = '1d'")
    }
    days = sorted(truth)
    assert [returns[day] for day in days[1:]] == pytest.approx(
        [truth[day] / truth[before] - 1 for before, day in pairwise(days)], rel=1e-9
    )
    kept = world.query("select ts, close from market_data.bar_revisions where timeframe = '1d'")
    assert {EQUITIES.session_date(row["ts"]): row["close"] for row in kept} == pytest.approx(fund)  # type: ignore[arg-type]
    assert [row["change"] for row in world.query("select change from market_data.identity_news")] == [
        "was FB until 2026-11-12: that history is part of its series",
        "has been this security since 2026-11-12: what the ticker was before is kept apart",
    ]
    settings = Settings(database_url=world.database_url, as_of=world.now, project_root=tmp_path)
    read = {name: read_bars(name, "1d", settings=settings) for name in ("FB", "META")}
    assert read["FB"]["close"].to_list() == pytest.approx([truth[day] for day in days])
    assert read["FB"].equals(read["META"])
    assert read_bars(["FB"], "1d", settings=settings)["symbol"].unique().tolist() == ["FB"]
    with pytest.raises(UsageError, match="'FB' is not tracked here"):  # nobody knew then
        read_bars("FB", "1d", as_of=known_until, settings=settings)
    close_connections()

    again = world.refresh("META", history_days=30)
    assert {(outcome.status, outcome.counters.requests) for outcome in again.values()} == {("unchanged", 0)}


def test_splits_and_dividends_are_those_of_the_security_on_their_day(make_world: MakeWorld) -> None:
    """The vendor lists each under the ticker of its day: META's first ones under FB, and IWM's first one under META."""
    actions = [("META", date(2026, 11, 4)), ("IWM", date(2026, 11, 5)), ("META", date(2026, 11, 17))]
    world = world_of(
        make_world, NOON, *RENAMES,
        splits=[{"ticker": ticker, "day": day, "split_to": 2} for ticker, day in actions],
        dividends=[{"ticker": ticker, "ex": day, "amount": 0.5} for ticker, day in actions],
    )  # fmt: skip
    world.refresh("META", timeframes=DAYS, history_days=30)
    own = [day for ticker, day in actions if ticker == "META"]
    for relation, day in (("splits", "execution_date"), ("dividends", "ex_date")):
        found = world.query(
            f"select {day} as day from market_data.{relation} where symbol = 'META' and {day} > %s", FIRST
        )
        assert sorted(row["day"] for row in found) == own, relation  # type: ignore[type-var]
    adjusted = world.query("select ts, close from market_data.bars_adjusted where symbol = 'META' order by ts")
    # The scenario halves the prices from each split on, which the adjustment takes back: the truth, but for its scale.
    truth = true_closes(TRUTH, "META", FIRST, TODAY)
    scales = [float(row["close"]) / truth[EQUITIES.session_date(row["ts"])] for row in adjusted]  # type: ignore[arg-type]
    assert scales == pytest.approx([0.25] * len(truth), rel=1e-9)


def test_a_followed_symbol_goes_on_under_its_new_ticker(make_world: MakeWorld) -> None:
    world = world_of(make_world, BEFORE, {"ticker": "META", "was": "FB", "day": REUSED})
    world.refresh("FB", "KO", timeframes=DAYS, history_days=10)
    assert history(world)[0][0] == "FB"
    for world.now in (
        new_york("2026-11-13 00:20"), new_york("2026-11-13 11:20"), new_york("2026-11-14 11:20"),
        new_york("2026-11-14 11:35"),
    ):  # fmt: skip
        world.refresh("FB", "KO", timeframes=DAYS, history_days=10)
    assert closes(world, "FB") == pytest.approx(true_closes(TRUTH, "META", date(2026, 11, 2), date(2026, 11, 14)))
    (change,) = world.query("select symbol, change from market_data.identity_news")
    assert tuple(change.values()) == (
        "FB", "has traded as META since 2026-11-12: its series go on under that ticker",
    )  # fmt: skip
    (state,) = world.query(
        "select life, last_error from market_data.series_state where symbol = 'FB' and bar_count > 0"
    )
    assert tuple(state.values()) == ("trading", None)


def test_a_page_of_the_list_a_day_finds_a_ticker_that_became_another_security(make_world: MakeWorld) -> None:
    """Without a day of silence: one security gives the ticker to another, as GOOG was in April 2014."""
    world = world_of(make_world, BEFORE, *RENAMES)
    world.refresh("META", "KO", timeframes=DAYS, history_days=10)
    fund = history(world)[1]
    for world.now in (new_york("2026-11-13 11:20"), new_york("2026-11-14 11:20"), new_york("2026-11-15 11:20")):
        asked = world.refresh("META", "KO", timeframes=DAYS, history_days=10, reverify=True)
    assert not any(outcome.failed for outcome in asked.values())
    assert closes(world, "META") == pytest.approx(true_closes(TRUTH, "META", date(2026, 11, 2), date(2026, 11, 14)))
    known = history(world)
    assert ("META", fund[1], fund[2], REUSED) in known
    assert [row[0] for row in known if row[1] != fund[1]] == ["FB", "KO", "META"]


@pytest.mark.parametrize(
    ("failing", "status", "body"), [(("AAPL",), 500, b"{}"), (("AAPL", "KO"), 200, b"<html>Sign in</html>")]
)
def test_a_symbol_of_which_the_answer_fails_stops_no_other_and_is_told_once(
    make_world: MakeWorld, failing: tuple[str, ...], status: int, body: bytes
) -> None:
    world, others = make_world(NOON), {"AAPL", "KO", "MSFT"}.difference(failing)

    def applies(exchange: Exchange) -> bool:
        return exchange.kind == "reference" and any(f"/tickers/{symbol}" in exchange.target for symbol in failing)

    def known() -> set[object]:
        rows = world.query("select symbol from market_data.identity_checks where error is null")
        return {row["symbol"] for row in rows}

    def refresh(*, reverify: bool) -> str:
        outcomes = world.refresh("AAPL", "KO", "MSFT", timeframes=DAYS, history_days=10, reverify=reverify)
        assert not any(outcome.failed for outcome in outcomes.values())
        return " ".join(outcome.warning or "" for outcome in outcomes.values())

    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        vendor.inject(lambda _: send(status, body), applies, ALWAYS)
        assert "Which security AAPL is could not be read: " in refresh(reverify=False)
        assert known() == (others if len(failing) == 1 else set())  # after two in a row, the run asks no more
        assert "Which security" not in refresh(reverify=True)
        assert known() == others
        vendor.heal()
        world.now += timedelta(days=1)
        assert "Which security" not in refresh(reverify=True)
        assert known() == {"AAPL", "KO", "MSFT"}


@pytest.mark.parametrize(
    "events", ["", '{"type":"ticker_change","date":"2027-01-04","ticker_change":{"ticker":"AAPL"}}', '{"date":"soon"}']
)
def test_a_list_of_no_change_by_today_leaves_a_series_its_bars(make_world: MakeWorld, events: str) -> None:
    world = make_world(NOON)
    said = f'{{"status":"OK","results":{{"composite_figi":"BBG000000001","events":[{events}]}}}}'.encode()
    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        vendor.inject(lambda _: send(200, said), lambda exchange: "/AAPL/events" in exchange.target, ALWAYS)
        world.refresh("AAPL", timeframes=DAYS, history_days=10)
    assert closes(world, "AAPL") == pytest.approx(true_closes(TRUTH, "AAPL", date(2026, 11, 10), TODAY))
    assert [(symbol, since, until) for symbol, _, since, until in history(world)] == [("AAPL", None, None)]


def test_a_list_that_cannot_be_read_is_told(make_world: MakeWorld) -> None:
    world = make_world(NOON)
    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        world.refresh("KO", timeframes=DAYS, history_days=10)
        vendor.inject(lambda _: send(500, b"{}"), lambda exchange: "/tickers?" in exchange.target, ALWAYS)
        world.now += timedelta(hours=1)
        told = world.refresh("KO", timeframes=DAYS, history_days=10, reverify=True)["KO|1d"]
    assert not told.failed
    assert (told.warning or "").startswith("New renames and reused tickers are not noticed, because a list could")


def news(world: World) -> list[tuple[object, ...]]:
    return [
        tuple(row.values()) for row in world.query("select symbol, change from market_data.identity_news order by id")
    ]


def test_a_symbol_that_begins_to_trade_while_it_is_followed_is_told_once(make_world: MakeWorld) -> None:
    world = world_of(make_world, BEFORE, listings=[{"ticker": "AAPL", "first": date(2026, 11, 13)}])
    for world.now in (BEFORE, *(new_york(f"2026-11-{day} 11:20") for day in (13, 14, 15, 16))):
        outcomes = world.refresh("AAPL", "KO", history_days=10, reverify=True)
        assert not any(outcome.failed for outcome in outcomes.values())
    assert news(world) == [("AAPL", "has been listed since 2026-11-13: its series begin there")]
    assert ("AAPL", None) in {(symbol, until) for symbol, _, _, until in history(world)}  # it is known by now


def test_a_security_that_is_followed_under_two_names_is_told_once(make_world: MakeWorld) -> None:
    world = world_of(make_world, NOON, *RENAMES)
    for _ in range(2):
        world.refresh("META", "FB", timeframes=DAYS, history_days=30)
        world.now += timedelta(days=1)
    (told,) = [change for symbol, change in news(world) if "same security" in str(change)]
    assert str(told).startswith("is the same security as FB (BBG")


def test_two_tickers_that_the_vendor_gives_one_figi_are_kept_apart_and_that_is_told_once(make_world: MakeWorld) -> None:
    world = make_world(NOON)
    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        for ticker in ("AAPL", "KO"):
            event = f'{{"type":"ticker_change","date":"2003-09-10","ticker_change":{{"ticker":"{ticker}"}}}}'
            said = f'{{"status":"OK","results":{{"composite_figi":"BBG000000001","events":[{event}]}}}}'.encode()
            vendor.inject(
                lambda _, said=said: send(200, said),
                lambda exchange, ticker=ticker: f"/{ticker}/events" in exchange.target,
                ALWAYS,
            )
        for _ in range(2):
            outcomes = world.refresh("AAPL", "KO", timeframes=DAYS, history_days=10)
            assert not any(outcome.failed for outcome in outcomes.values())
            world.now += timedelta(days=1)
    assert news(world) == [
        ("KO", "has the FIGI of AAPL, too, according to the vendor (BBG000000001): the two are kept apart")
    ]
    assert {(symbol, security) for symbol, security, _, _ in history(world)} == {
        ("AAPL", "BBG000000001"), ("KO", "KO@2003-09-10"),
    }  # fmt: skip
    assert len(closes(world, "KO")) == len(closes(world, "AAPL"))


@pytest.mark.parametrize("status", [404, 403])
def test_a_vendor_without_changes_of_tickers_is_told_once_for_all(make_world: MakeWorld, status: int) -> None:
    world = make_world(NOON)
    refusal = b'{"status":"NOT_AUTHORIZED","message":"You are not entitled to this data."}'
    with FaultyVendor(TRUTH, world.clock) as vendor:
        world.base_url = vendor.url
        vendor.inject(lambda _: send(status, refusal), lambda exchange: "/events" in exchange.target, ALWAYS)
        told = []
        for symbols in (("AAPL", "KO", "MSFT"), ("AAPL", "KO", "MSFT", "JPM")):
            outcomes = world.refresh(*symbols, timeframes=DAYS, history_days=10)
            assert not any(outcome.failed for outcome in outcomes.values())
            told.append(sum(bool(outcome.warning) for outcome in outcomes.values()))
        assert told == [1, 0]
        (failure,) = world.query("select error from market_data.reference_failures where name = 'ticker events'")
        assert ("no changes of ticker of any of 4 stocks" if status == 404 else "not") in str(failure["error"])
        vendor.heal()
        world.now += timedelta(days=2)
        world.refresh("AAPL", "KO", "MSFT", "JPM", "XOM", timeframes=DAYS, history_days=10, reverify=True)
    assert world.query("select name from market_data.reference_failures") == []
