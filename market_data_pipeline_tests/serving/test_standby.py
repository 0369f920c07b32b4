"""A standby to read from, and to go on with when the primary is lost."""

from __future__ import annotations

import threading
from datetime import datetime
from itertools import cycle
from pathlib import Path

import psycopg

from market_data_pipeline import read_bars
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.reading import close_connections
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import SQL
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.serving.conftest import BARS, serve
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.serving.standby import PRIMARY, STANDBY, running_pair
from market_data_pipeline_tests.store.writable_views import make_views_writable
from market_data_pipeline_tests.waiting import until

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
FIRST = datetime.fromisoformat("2026-03-11T13:30:00Z")


def test_api_and_readers_read_from_the_standby_see_each_commit_and_go_on_without_the_primary(tmp_path: Path) -> None:
    with running_pair() as pair:
        migrate_database(pair.url(PRIMARY), SQL)
        make_views_writable(pair.url(PRIMARY))
        seed = Seed(pair.url(PRIMARY))
        seed.series("AAPL", first=FIRST, count=3)
        seed.symbol("MSFT")
        settings = Settings(
            database_url=pair.url(PRIMARY), standby_url=pair.url(STANDBY), as_of=NOW, project_root=tmp_path
        )

        def close() -> object:
            return api.get(f"{BARS}/AAPL", timeframe="5m").json()["bars"][0]["close"]

        with serve(settings) as api:
            until(lambda: api.get(f"{BARS}/AAPL", timeframe="5m").status_code == 200)
            api.wait_for_cache()
            assert (close(), close()) == (100.0, 100.0)
            assert api.hits() > 0
            with psycopg.connect(pair.url(STANDBY), autocommit=True) as standby:
                standby.execute("select pg_wal_replay_pause()")
                seed.run("set synchronous_commit to local")  # so that it does not wait for the standby
                seed.correct("AAPL", "5m", FIRST, 55.5, NOW)
                assert (close(), close()) == (100.0, 100.0)  # as the standby has it
                standby.execute("select pg_wal_replay_resume()")
            until(lambda: close() == 55.5)
            assert read_bars("AAPL", "5m", settings=settings)["close"].to_list() == [55.5, 101.0, 102.0]

            assert api.get(f"{BARS}/MSFT", timeframe="5m").status_code == 404  # and a backfill is queued, which writes
            assert seed.run("select symbol, status from market_data.backfill_requests") == [("MSFT", "queued")]

            seed.connection.close()
            pair.control(PRIMARY, "stop", "-m", "immediate")
            until(lambda: "market_data_cache_open 0.0" in api.get("/metrics").text)
            assert close() == 55.5
            assert api.get(f"{BARS}/MSFT", timeframe="5m").status_code == 503
            assert read_bars("AAPL", "5m", settings=settings)["close"].to_list() == [55.5, 101.0, 102.0]
        close_connections()


def test_a_promoted_standby_has_every_commit_that_was_acknowledged_and_takes_the_rest_once(tmp_path: Path) -> None:
    symbols = ["AAPL", "MSFT", "NVDA", "GOOGL", "AMZN", "META", "TSLA", "SPY"]
    with running_pair() as pair, running_server(open_source(None), lambda: NOON) as vendor:
        whichever = pair.url(PRIMARY, STANDBY, more="&target_session_attrs=read-write")
        migrate_database(whichever, SQL)
        world = World(vendor, whichever, NOON)
        world.track(*symbols)
        done: dict[str, int] = {}

        def refresh() -> None:
            for symbol in cycle(symbols):
                try:
                    outcomes = world.refresh(symbol, full=True)
                except DatabaseUnavailableError:
                    return
                if any(outcome.error for outcome in outcomes.values()):
                    return
                done.update({key: outcome.bar_count for key, outcome in outcomes.items()})

        thread = threading.Thread(target=refresh)
        thread.start()
        until(lambda: len(done) >= 15)
        pair.control(PRIMARY, "stop", "-m", "immediate")
        thread.join()
        pair.control(STANDBY, "promote")
        with psycopg.connect(pair.url(STANDBY), autocommit=True) as connection:
            # What was its standby is gone: from now on no commit waits for one.
            connection.execute("alter system reset synchronous_standby_names")
            connection.execute("select pg_reload_conf()")
        held = {
            f"{row['symbol']}|{row['timeframe']}": row["count"]
            for row in world.query("select symbol, timeframe, count(*) from market_data.bars group by 1, 2")
        }
        assert min(done.values()) > 0
        assert held.items() >= done.items()

        world.refresh(*symbols)

        assert (
            world.query(
                "select s.symbol from market_data.series_state as s where s.bar_count <> (select count(*) from"
                " market_data.bars as b where b.symbol = s.symbol and b.timeframe = s.timeframe) or s.bar_count = 0"
            )
            == []
        )
        assert world.query("select count(*) from market_data.series_state")[0]["count"] == 5 * len(symbols)
        assert world.query("select count(*) from market_data.bar_revisions")[0]["count"] == 0
