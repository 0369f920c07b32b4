"""Symbols and markets that fall silent, seen through the staleness sensor: one alert for each real change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime

import dagster as dg
import pytest
import sqlalchemy as sa

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure.alert_receiver import AlertReceiver as Webhook
from market_data_pipeline.measure.alert_receiver import alert_receiver as webhook
from market_data_pipeline.orchestration.checks.freshness import table_of
from market_data_pipeline.reports.freshness import series_freshness
from market_data_pipeline.reports.gaps import gaps_report
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.scenario import Closing, Delisting, Rename, Scenario, Withheld
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.staged import staged
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World, make_world
from market_data_pipeline_tests.ingest.nights.replay import moving_engine
from market_data_pipeline_tests.orchestration.conftest import StandIn

__all__ = ["make_world"]  # the fixture: a vendor, a database and a clock


HISTORY_DAYS = 5  # a session before the first look settles, and the bars that its features need


def at(day: int, hour: int, minute: int = 1) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=NEW_YORK).astimezone(UTC)


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as made:
        yield made


@pytest.fixture(scope="module")
def sensor() -> dg.SensorDefinition:
    return build_defs().get_repository_def().get_sensor_def("staleness_sensor")


class Watched:
    """A world in which a run and a tick of the staleness sensor follow each other at the instants that a test names."""

    def __init__(
        self,
        world: World,
        database: sa.Engine,
        instance: dg.DagsterInstance,
        sensor: dg.SensorDefinition,
        hook: Webhook,
        symbols: tuple[str, ...],
    ) -> None:
        self.world, self.database, self.instance, self.sensor = world, database, instance, sensor
        self.hook, self.symbols = hook, symbols
        self.cursor: str | None = None

        class Pipeline(StandIn):
            @contextmanager
            def database(self) -> Iterator[sa.Engine]:
                yield database.execution_options()  # what a tick listens to ends with it

        self.pipeline = Pipeline

    def go(self, now: datetime, *, reverify: bool = False) -> list[str]:
        """Refresh at `now`, look at the result, and return the titles of the alerts."""
        self.world.now = now
        outcomes = self.world.refresh(*self.symbols, history_days=HISTORY_DAYS, reverify=reverify)
        assert {outcome.status for outcome in outcomes.values()} <= {"ok", "unchanged"}
        pipeline = self.pipeline(url=self.world.database_url, alert_urls=[self.hook.address()], now=now.isoformat())
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, resources={"pipeline": pipeline})
        result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return self.hook.titles()

    def through(self, first: int, last: int) -> list[str]:
        """Return the alerts of some days of the month, each looked at when something can change."""
        titles = []
        for day in range(first, last + 1):
            if date(2026, 11, day).weekday() < 5:
                titles += self.go(at(day, 0, 31))  # the day bar
                titles += self.go(at(day, 4, 46))  # the first bars are half an hour late, if they are
                titles += self.go(at(day, 6, 1))  # and longer than the RPO
                titles += self.go(at(day, 11, 1))  # the day before settles
            titles += self.go(at(day, 11, 21), reverify=True)
        return titles

    def states(self, symbol: str) -> dict[str, tuple[str, str]]:
        with self.database.connect() as connection:
            return {one.timeframe: (one.status, one.life) for one in series_freshness(connection, symbol)}

    def shown(self, symbol: str) -> list[str]:
        """Return the symbol's cells in the table of Dagster's check."""
        table = table_of(self.database, Tier.CRITICAL)
        assert table is not None
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {symbol} |")]
        return line.removesuffix(" |").split(" | ")[1:]


Watch = Callable[..., Watched]


@pytest.fixture
def watch(
    instance: dg.DagsterInstance, sensor: dg.SensorDefinition, make_world: MakeWorld, hook: Webhook
) -> Iterator[Watch]:
    with ExitStack() as stack:

        def watching(*symbols: str, **events: object) -> Watched:
            source = staged(open_source(None), Scenario.model_validate(events), lambda: world.now)
            world = make_world(at(9, 12), source=source)  # a Monday
            world.threads = 1
            watched = Watched(world, stack.enter_context(moving_engine(world)), instance, sensor, hook, symbols)
            assert watched.go(at(9, 12)) == []
            return watched

        yield watching


def test_a_renamed_symbol_is_alerted_once_and_trades_on(watch: Watch) -> None:
    watched = watch("MSFT", "FB", renames=[Rename(ticker="META", was="FB", day=date(2026, 11, 11))])
    assert watched.through(10, 13) == ["FB has traded as META since 2026-11-11: its series go on under that ticker"]
    assert set(watched.states("FB").values()) == {("FRESH", "trading")}


def test_a_delisted_symbol_is_alerted_once_and_never_late(watch: Watch) -> None:
    watched = watch("MSFT", "PFE", delistings=[Delisting(ticker="PFE", last=date(2026, 11, 10))])
    assert watched.through(10, 15) == ["PFE has been delisted since 2026-11-11, according to the vendor"]
    assert set(watched.states("PFE").values()) == {("STALE", "delisted")}
    assert set(watched.states("MSFT").values()) == {("FRESH", "trading")}
    last_bars = ("Nov 11 00:55", "Nov 11 00:45", "Nov 11 00:00", "Nov 10 21:00", "Nov 10")
    assert watched.shown("PFE") == [f"{bar}, delisted" for bar in last_bars]
    before = watched.world.query("select sum(requests) as n from market_data.ingest_log where symbol = 'PFE'")
    assert watched.go(at(15, 21)) == watched.go(at(15, 22)) == []
    after = watched.world.query("select sum(requests) as n from market_data.ingest_log where symbol = 'PFE'")
    assert before == after


def test_a_ticker_that_the_vendor_purges_is_alerted_once_and_left_alone_but_for_a_look_a_day(watch: Watch) -> None:
    purged = Delisting(ticker="PFE", last=date(2026, 11, 10), purged=at(11, 0))
    watched = watch("MSFT", "PFE", delistings=[purged])
    gone = "PFE is no longer known to the vendor and has had no bars since 2026-11-10"
    assert watched.through(10, 13) == [gone]
    assert set(watched.states("PFE").values()) == {("STALE", "unknown")}
    held = "select count(*) as bars from market_data.bars where symbol = 'PFE' and timeframe = '5m' and ts >= %s"
    assert watched.world.query(held, at(10, 0)) == [{"bars": 88}]  # until the last look
    of_a_day = "select sum(requests) as n from market_data.ingest_log where symbol = 'PFE' and started_at >= %s"
    (spent,) = watched.world.query(of_a_day, at(13, 0))
    assert int(str(spent["n"])) <= 6  # each fetched series, both lists of tickers, and what the run asked for all


def test_symbols_that_are_all_delisted_at_once_are_alerted_once(watch: Watch) -> None:
    symbols = ("PFE", "MSFT")
    watched = watch(*symbols, delistings=[Delisting(ticker=each, last=date(2026, 11, 10)) for each in symbols])
    assert watched.through(10, 13) == ["No more bars are expected of 2 symbols"]
    assert {life for symbol in watched.symbols for _, life in watched.states(symbol).values()} == {"delisted"}


def test_a_symbol_that_falls_silent_is_alerted_once_stays_stale_over_a_weekend_and_comes_back(watch: Watch) -> None:
    lost = Withheld(tickers=("PFE",), start=at(12, 0, 0), end=at(17, 0, 0))
    watched = watch("MSFT", "PFE", withheld=[lost])
    assert watched.through(10, 11) == []
    assert watched.through(12, 16) == ["2 of 10 critical series are more than 1 hour behind"]
    assert set(watched.states("PFE").values()) == {("STALE", "silent")}
    assert watched.through(17, 18) == ["5 critical series are back within 1 hour"]
    assert set(watched.states("PFE").values()) == {("FRESH", "trading")}


def test_an_unscheduled_closing_is_one_alert_and_no_symbol_is_called_silent(watch: Watch) -> None:
    watched = watch("MSFT", "PFE", closings=[Closing(day=date(2026, 11, 11))])
    assert watched.through(10, 13) == [
        "The vendor has had no bars of any of 2 US stocks since 2026-11-11 00:55Z",
        "The vendor sends bars of US stocks again, but has none of 2026-11-11",
    ]
    assert {state for symbol in watched.symbols for state in watched.states(symbol).values()} == {("FRESH", "trading")}


@pytest.mark.parametrize("announced", [at(10, 9), at(11, 4, 30)], ids=["the day before", "in the morning"])
def test_an_announced_closing_makes_nothing_late_and_is_shown(watch: Watch, announced: datetime) -> None:
    closing = Closing(day=date(2026, 11, 11), announced=announced)
    watched = watch("MSFT", "PFE", closings=[closing])
    assert watched.through(10, 10) == []
    early = announced < at(11, 0)
    for hour, minute in ((4, 21), (4, 46), (5, 46), (11, 21), (16, 1), (20, 16)):
        assert watched.go(at(11, hour, minute), reverify=(hour, minute) == (11, 21)) == []
        if early or (hour, minute) != (4, 21):
            shown = {state for symbol in watched.symbols for state in watched.states(symbol).values()}
            assert shown == {("FRESH", "trading")}
    assert watched.through(12, 13) == []

    settings = Settings(database_url=watched.world.database_url, as_of=watched.world.now, history_days=5)
    report = gaps_report(watched.database, settings, "MSFT")
    for of_series in report.timeframes:
        (gap,) = [gap for gap in of_series.stretches if gap.reason == "announced"]
        assert gap.bars == (192 if of_series.timeframe == "5m" else 1)
        assert "the vendor announced (Closing)" in gap.explanation
    known = watched.world.query(
        "select source, first_seen_at from market_data.announcements where session_date = '2026-11-11' order by 1 desc"
    )
    warned = watched.world.query("select warning from market_data.ingest_log where warning is not null")
    assert warned == [
        {
            "warning": "The vendor announced that US stocks do not trade on 2026-11-11 (Closing), "
            "where the calendar has a session."
        }
    ]
    assert known[0] == {"source": "upcoming", "first_seen_at": at(10, 11, 21) if early else at(11, 4, 46)}


def test_an_announcement_that_the_vendor_withdraws_is_kept_with_its_time(watch: Watch) -> None:
    closing = Closing(day=date(2026, 11, 16), announced=at(10, 9), withdrawn=at(11, 9))
    watched = watch("MSFT", closings=[closing])
    watched.through(10, 11)
    known = watched.world.query(
        "select first_seen_at, withdrawn_at from market_data.announcements where session_date = '2026-11-16'"
    )
    assert known == [{"first_seen_at": at(10, 11, 21), "withdrawn_at": at(11, 11, 21)}]


def test_two_days_that_the_vendor_lost_for_all_are_back_only_when_they_are_there(watch: Watch) -> None:
    lost = Withheld(start=at(11, 0, 0), end=at(13, 0, 0), until=at(13, 6, 0))
    watched = watch("MSFT", "PFE", withheld=[lost])
    assert watched.through(10, 12) == ["The vendor has had no bars of any of 2 US stocks since 2026-11-11 00:55Z"]
    assert watched.go(at(13, 4, 31)) == watched.go(at(13, 5, 46)) == []
    assert watched.go(at(13, 6, 46)) == ["The bars of US stocks that the vendor lacked are back"]
    assert watched.go(at(13, 11, 1)) == watched.go(at(13, 11, 21), reverify=True) == []
    assert watched.through(14, 16) == []


def test_a_ticker_that_the_vendor_does_not_know_is_said_to_be_that(watch: Watch) -> None:
    watched = watch("MSFT")
    watched.symbols = ("MSFT", "NOSUCH")
    assert watched.go(at(9, 12, 16)) == ["NOSUCH is unknown to the vendor"]
    assert watched.through(10, 10) == []
    assert set(watched.states("NOSUCH").values()) == {("MISSING", "unknown")}


def test_a_delisted_symbol_that_trades_again_is_alerted(watch: Watch) -> None:
    watched = watch("MSFT", "PFE", delistings=[Delisting(ticker="PFE", last=date(2026, 11, 10))])
    assert watched.go(at(10, 20, 16)) == []
    assert watched.go(at(11, 4, 46)) == []  # it might have another ticker: the next refresh asks that first
    assert watched.go(at(11, 5, 1)) == ["PFE has been delisted since 2026-11-11, according to the vendor"]
    # From now on the vendor has bars of it, as after a halt that its reference data called a delisting.
    with running_server(open_source(None), watched.world.clock) as watched.world.base_url:
        assert watched.go(at(11, 9)) == []
        assert watched.go(at(12, 4, 46)) == ["PFE trades again"]
    assert set(watched.states("PFE").values()) == {("FRESH", "trading")}
