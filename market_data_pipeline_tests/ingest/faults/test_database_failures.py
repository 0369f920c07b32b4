"""What PostgreSQL can do to a run halfway: which class of failure it is, what else it stops, what is kept."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    PipelineError,
    TransactionConflictError,
    TransientError,
)
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest
from market_data_pipeline.ingest.shard import refresh_shard
from market_data_pipeline.store import copy
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline_tests.ingest.faults.conftest import DAYS
from market_data_pipeline_tests.ingest.faults.processes import advisory_locks, sessions, wire
from market_data_pipeline_tests.ingest.faults.vendor import Exchange, later_page
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, Snapshot
from market_data_pipeline_tests.polygon.faulty_server import Answer, send
from market_data_pipeline_tests.waiting import until

SYMBOLS = ("AAPL", "MSFT", "NVDA", "AMZN")


def refuse(world: FaultyWorld, relation: str, sqlstate: str, times: int = 1 << 30) -> None:
    """Make the database refuse the next statements that write rows to a relation, with a given SQLSTATE."""
    with world.connect() as connection:
        connection.execute("create sequence public.refusals")  # counts refusals: it is not rolled back
        connection.execute("grant usage on sequence public.refusals to public")
        connection.execute(
            f"""
            create function public.refuse() returns trigger language plpgsql as $$ begin
                if nextval('public.refusals') <= {times} then
                    raise exception 'no' using errcode = '{sqlstate}';
                end if;
                return new;
            end $$
            """
        )
        connection.execute(
            f"create trigger refuse before insert on market_data.{relation} for each row"
            " execute function public.refuse()"
        )


def accept(world: FaultyWorld, relation: str) -> None:
    with world.connect() as connection:
        connection.execute(f"drop trigger refuse on market_data.{relation}")


@pytest.fixture
def connection(world: FaultyWorld) -> Iterator[StoreConnection]:
    with StoreConnection(world.database_url) as made:
        yield made


def caught(work: Callable[[], object]) -> PipelineError:
    with pytest.raises(PipelineError) as error:
        work()
    return error.value


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_a_conflict_with_another_transaction_is_retried_at_once_with_the_same_bars(
    world: FaultyWorld, truth: Snapshot, sqlstate: str
) -> None:
    refuse(world, "records_5m", sqlstate, times=2)
    outcomes = world.refresh("AAPL", history_days=DAYS)
    assert not any(outcome.failed for outcome in outcomes.values())
    assert world.snapshot() == truth
    assert len({seen.target for seen in world.vendor.seen}) == len(world.vendor.seen)


@pytest.mark.parametrize(
    ("sqlstate", "error_class", "words"),
    [
        ("40001", "TransactionConflictError", "in favour of another one"),
        ("57014", "TransientError", "SQLSTATE 57014"),
        ("55P03", "TransientError", "SQLSTATE 55P03"),
        ("53200", "TransientError", "SQLSTATE 53200"),
        ("58030", "TransientError", "SQLSTATE 58030"),
        ("42P01", "ConfigurationError", "market-data migrate"),
        ("23514", "PipelineError", "refused a statement"),
    ],
)
def test_a_refused_statement_fails_its_series_and_the_next_run_completes_it(
    world: FaultyWorld, truth: Snapshot, sqlstate: str, error_class: str, words: str
) -> None:
    refuse(world, "records_1h", sqlstate)
    outcomes = world.refresh("AAPL", history_days=DAYS)
    assert {key for key, outcome in outcomes.items() if outcome.failed} == {"AAPL|1h"}
    logged = next(row for row in world.log() if row["timeframe"] == "1h")
    assert (logged["status"], logged["error_class"]) == ("failed", error_class)
    assert words in str(logged["error"])
    accept(world, "records_1h")
    world.refresh("AAPL", history_days=DAYS)
    assert world.snapshot() == truth


def test_a_full_disk_stops_the_run_before_more_is_fetched_in_vain(world: FaultyWorld) -> None:
    world.threads = 1
    refuse(world, "records_5m", "53100")
    outcomes = world.refresh(*SYMBOLS, history_days=DAYS)
    assert {outcome.error_class for outcome in outcomes.values()} == {"DatabaseFullError"}
    assert "disk is full" in str(outcomes["AMZN|1d"].error)
    assert {exchange.symbol for exchange in world.vendor.exchanges if exchange.kind == "5m"} == {"AAPL"}
    assert len(world.log()) == len(outcomes)
    accept(world, "records_5m")
    assert not any(outcome.failed for outcome in world.refresh(*SYMBOLS, history_days=DAYS).values())


def test_a_database_without_room_for_an_audit_row_still_says_why_to_the_caller(world: FaultyWorld) -> None:
    refuse(world, "ingest_log", "53100")
    outcomes = world.refresh("AAPL", "MSFT", history_days=DAYS)
    assert {outcome.error_class for outcome in outcomes.values()} == {"DatabaseFullError"}
    assert world.log() == []
    assert world.snapshot()["bars"] == []


def end_connections(world: FaultyWorld) -> None:
    world.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'market-data refresh'"
        " and datname = current_database()"
    )
    until(lambda: not sessions(world))


def test_a_connection_ended_during_a_fetch_is_replaced_and_the_symbol_refreshed_again(
    world: FaultyWorld, truth: Snapshot
) -> None:
    def disconnect(exchange: Exchange) -> Answer:
        end_connections(world)
        return send(exchange.status, exchange.body)

    world.vendor.inject(disconnect, later_page)
    outcomes = world.refresh("AAPL", history_days=DAYS)
    assert not any(outcome.failed for outcome in outcomes.values())
    assert advisory_locks(world) == []
    assert world.snapshot() == truth
    assert [row["status"] for row in world.log()] == ["ok"] * len(outcomes)
    assert sum(int(str(row["requests"])) for row in world.log()) == len(world.vendor.seen)


def test_a_database_lost_during_a_fetch_stops_the_run_and_the_next_run_completes_it(
    world: FaultyWorld, truth: Snapshot, postgres_url: str
) -> None:
    name = urlsplit(world.database_url).path[1:]

    def lose(exchange: Exchange) -> Answer:
        end_connections(world)
        administrator.execute(f"alter database {name} allow_connections false")
        return send(exchange.status, exchange.body)

    world.vendor.inject(lose, later_page)
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        outcomes = world.refresh("AAPL", history_days=DAYS)
        administrator.execute(f"alter database {name} allow_connections true")
    assert {outcome.error_class for outcome in outcomes.values()} == {"DatabaseUnavailableError"}
    assert advisory_locks(world) == []
    world.refresh("AAPL", history_days=DAYS)
    assert world.snapshot() == truth


@pytest.mark.parametrize("relation", ["records_5m", "ingest_log"])
def test_a_connection_lost_in_the_middle_of_a_transaction_leaves_nothing_of_it(
    world: FaultyWorld, truth: Snapshot, relation: str
) -> None:
    outcomes: dict[str, SeriesOutcome] = {}
    run = threading.Thread(target=lambda: outcomes.update(world.refresh("AAPL", history_days=DAYS)))
    with wire(world, relation) as stopped:
        run.start()
        for _ in range(2):  # the symbol is tried once more
            until(stopped)
            for session in sessions(world):
                world.query("select pg_terminate_backend(%s, 10000)", session["pid"])
        run.join()
    assert {outcome.error_class for outcome in outcomes.values()} == {"DatabaseUnavailableError"}
    assert world.snapshot()["bars"] == []
    world.refresh("AAPL", history_days=DAYS)
    assert world.snapshot() == truth


def test_a_symbols_connection_is_never_idle_for_long_while_the_vendor_is_slow(
    world: FaultyWorld, truth: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "_HEARTBEAT_SECONDS", 0.01)

    def wait_for_heartbeats(exchange: Exchange) -> Answer:
        changed = (
            "select state_change from pg_stat_activity where application_name = 'market-data refresh'"
            " and datname = current_database()"
        )
        before = world.query(changed)
        until(lambda: world.query(changed) != before)
        return send(exchange.status, exchange.body)

    world.vendor.inject(wait_for_heartbeats, later_page)
    assert not any(outcome.failed for outcome in world.refresh("AAPL", history_days=DAYS).values())
    assert world.snapshot() == truth


def test_a_locked_table_fails_the_series_after_a_while(
    world: FaultyWorld, truth: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "_LOCK_TIMEOUT", "100ms")
    with world.connect() as other, other.transaction():
        other.execute("lock table market_data.records_4h in exclusive mode")
        outcomes = world.refresh("AAPL", history_days=DAYS)
    assert {key for key, outcome in outcomes.items() if outcome.failed} == {"AAPL|4h"}
    assert "lock timeout" in str(outcomes["AAPL|4h"].error)
    world.refresh("AAPL", history_days=DAYS)
    assert world.snapshot() == truth


def test_a_symbol_lock_that_is_never_released_is_reported_with_its_holder(
    world: FaultyWorld, connection: StoreConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "_SYMBOL_LOCK_TIMEOUT", "100ms")
    with connection.symbol_lock("AAPL"):
        outcomes = world.refresh("AAPL", "MSFT", history_days=DAYS)
    held = connection.rows("select pg_backend_pid() as pid")[0]["pid"]
    assert {key.split("|")[0] for key, outcome in outcomes.items() if outcome.failed} == {"AAPL"}
    assert f"another run, process {held} of market-data refresh since" in str(outcomes["AAPL|5m"].error)
    assert outcomes["AAPL|5m"].error_class == "TransientError"
    assert not any(outcome.failed for outcome in world.refresh("AAPL", history_days=DAYS).values())


def test_a_statement_over_its_time_is_transient_and_leaves_the_connection_usable(connection: StoreConnection) -> None:
    connection.execute("select set_config('statement_timeout', '50ms', true)")  # gone with the transaction
    error = caught(lambda: connection.execute("select pg_sleep(5)"))
    assert type(error) is TransientError
    assert not error.stops_run
    aborted = caught(lambda: connection.execute("select 1"))
    assert not isinstance(aborted, DatabaseUnavailableError)
    connection.rollback()
    connection.execute("select 1")


def test_a_real_serialization_failure_is_a_conflict(world: FaultyWorld, connection: StoreConnection) -> None:
    world.track("AAPL")
    connection.execute("set transaction isolation level repeatable read")
    connection.rows("select * from market_data.symbols")
    world.query("update market_data.symbols set tier = 'standard' returning 1")
    error = caught(lambda: connection.execute("update market_data.symbols set active = false"))
    assert isinstance(error, TransactionConflictError)


def test_a_standby_cannot_be_written_to(connection: StoreConnection) -> None:
    connection.execute("set transaction read only")
    error = caught(lambda: connection.execute("insert into market_data.rate_limit_pauses values ('x', now())"))
    assert isinstance(error, DatabaseUnavailableError)
    assert "DATABASE_URL" in str(error)


def test_a_missing_table_asks_for_the_migrations(connection: StoreConnection) -> None:
    error = caught(lambda: connection.rows("select * from market_data.no_such_relation"))
    assert isinstance(error, ConfigurationError)
    assert "market-data migrate" in str(error)


def test_a_lost_connection_says_so_once_and_is_unusable_afterwards(
    world: FaultyWorld, connection: StoreConnection
) -> None:
    pid = connection.rows("select pg_backend_pid() as pid")[0]["pid"]
    world.query("select pg_terminate_backend(%s)", pid)
    until(lambda: not world.query("select 1 from pg_stat_activity where pid = %s", pid))
    assert isinstance(caught(connection.commit), DatabaseUnavailableError)
    connection.rollback()  # it has already been rolled back
    assert connection.closed
    assert isinstance(caught(lambda: connection.execute("select 1")), DatabaseUnavailableError)
    connection.close()


class Relay:
    """Stands between a client and the server, and keeps the client's connection open when the server ends its own."""

    def __init__(self, url: str) -> None:
        to = psycopg.conninfo.conninfo_to_dict(url)
        self._listening = socket.create_server(("127.0.0.1", 0))
        if str(to["host"]).startswith("/"):
            self._server = socket.socket(socket.AF_UNIX)
            self._server.connect(f"{to['host']}/.s.PGSQL.{to.get('port', 5432)}")
        else:
            self._server = socket.create_connection((str(to["host"]), int(to.get("port") or 5432)))
        port = self._listening.getsockname()[1]
        self.url = sa.make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        self.has_passed_on_the_end = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def end(self) -> None:
        """End the client's connection."""
        self._client.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        self._client = self._listening.accept()[0]
        threading.Thread(target=self._pass_on, args=(self._client, self._server), daemon=True).start()
        self._pass_on(self._server, self._client)
        self.has_passed_on_the_end.set()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)


def test_a_connection_counts_as_lost_when_the_server_says_so_before_it_ends_it(world: FaultyWorld) -> None:
    relay = Relay(world.database_url)
    with StoreConnection(relay.url) as connection:
        pid = connection.rows("select pg_backend_pid() as pid")[0]["pid"]
        connection.commit()

        def work() -> None:
            with connection.together():
                connection.execute("select pg_sleep(600)")
                sleeps = "select 1 from pg_stat_activity where pid = %s and wait_event = 'PgSleep'"
                until(lambda: world.query(sleeps, pid))
                world.query("select pg_terminate_backend(%s)", pid)
                until(relay.has_passed_on_the_end.is_set)
                try:
                    connection.execute("select 2")
                finally:
                    relay.end()

        assert isinstance(caught(work), DatabaseUnavailableError)
        assert connection.closed


def test_what_fails_under_a_symbol_lock_is_raised_as_it_is_and_frees_the_lock(
    world: FaultyWorld, connection: StoreConnection
) -> None:
    def fail_inside() -> None:
        with connection.symbol_lock("AAPL"):
            connection.execute("select 1 / 0")

    error = caught(fail_inside)
    assert "division by zero" in str(error)
    assert advisory_locks(world) == []
    connection.execute("select 1")  # not aborted


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    error = caught(lambda: StoreConnection("postgresql://market_data:s3cretpassword@127.0.0.1:9/market_data"))
    assert isinstance(error, DatabaseUnavailableError)
    assert "127.0.0.1:9" in str(error)
    assert "s3cretpassword" not in str(error)


def test_a_run_whose_server_is_not_there_fails_every_series_without_a_request(world: FaultyWorld) -> None:
    world.track(*SYMBOLS)
    nowhere = replace(world.pipeline(DAYS), database_url="postgresql://nobody@127.0.0.1:9/nowhere")
    with nowhere as pipeline:
        requests = [SymbolRequest(symbol, Tier.CRITICAL) for symbol in SYMBOLS]
        outcomes = list(refresh_shard(requests, pipeline=pipeline, run_id="run-1"))
    assert {outcome.error_class for outcome in outcomes} == {"DatabaseUnavailableError"}
    assert len(outcomes) == 5 * len(SYMBOLS)
    assert world.vendor.seen == []


def test_settings_of_a_url_win_over_ours_except_the_zone_that_dates_depend_on(world: FaultyWorld) -> None:
    settings = {"application_name": "mine", "options": "-ctimezone=America/New_York"}
    url = sa.make_url(world.database_url).update_query_dict(settings).render_as_string(hide_password=False)
    with StoreConnection(url) as mine:
        shown = mine.rows("select current_setting('application_name') as name, current_setting('timezone') as zone")
    assert shown == [{"name": "mine", "zone": "UTC"}]
