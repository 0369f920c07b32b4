"""Rows of the audit log that say "unchanged", summed up by day: nothing else is lost, and every reader stays right."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.attainment import rpo_attainment
from market_data_pipeline.reports.audit_chain import audit_problems
from market_data_pipeline.reports.dagster_state import Run
from market_data_pipeline.reports.executions import join_runs
from market_data_pipeline.store import log_rollup
from market_data_pipeline.store.changes import stored_series
from market_data_pipeline.store.connection import Role, engine
from market_data_pipeline.store.copy import StoreConnection

NOW = datetime(2026, 3, 20, 12, 0, tzinfo=UTC)
SYMBOLS = ["AAPL", "MSFT", "NVDA"]
DAYS = 3
KEPT = 7
# Three days of four ticks of three symbols in two timeframes, ten days ago, and one tick yesterday.
TICKS = """
insert into market_data.run_log (run_id, started_at, job, trigger, requested_by, reason, series)
select 'run ' || to_char(t at time zone 'UTC', 'DD HH24'), t, 'critical_refresh', 'schedule', 'me', 'why', 'all'
from unnest(%(ticks)s::timestamptz[]) as t;
insert into market_data.ingest_log
(run_id, symbol, timeframe, started_at, finished_at, status, requests, rows_fetched, bytes, pages, fetch_seconds)
select
    'run ' || to_char(t at time zone 'UTC', 'DD HH24'), symbol, timeframe, t, t + interval '10 seconds', 'unchanged',
    case timeframe when '5m' then 1 else 0 end, 5, 100, 1, 0.25
from unnest(%(ticks)s::timestamptz[]) as t
cross join unnest(%(symbols)s::text[]) as symbol
cross join unnest(array['5m', '1h']) as timeframe
order by t, symbol, timeframe;
"""
AT = [NOW.replace(hour=hour) - timedelta(days=12 - day) for day in range(DAYS) for hour in (0, 9, 15, 23)]
ROWS = len(AT) * len(SYMBOLS) * 2
NEWS = """
update market_data.ingest_log
set status = 'ok', rows_inserted = 3, changed_from = started_at, changed_until = finished_at
where symbol = 'AAPL' and timeframe = '5m' and run_id = 'run 09 09';
update market_data.ingest_log set status = 'failed', error_class = 'VendorError', error = 'The vendor refused.'
where symbol = 'MSFT' and timeframe = '5m' and run_id = 'run 09 09';
update market_data.ingest_log set warning = 'A feature raised.'
where symbol = 'NVDA' and timeframe = '5m' and run_id = 'run 09 09';
update market_data.ingest_log set outside_rpo_since = started_at - interval '3 hours'
where symbol = 'NVDA' and timeframe = '1h' and run_id = 'run 09 15';
update market_data.ingest_log set days_refused = 1
where symbol = 'MSFT' and timeframe = '1h' and run_id = 'run 09 23';
"""
NEWS_ROWS = 5


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute(
            "insert into market_data.symbols (symbol, tier, asset_class, active, added_at)"
            " select s, 'critical', 'us_equity', true, %s from unnest(%s::text[]) as s",
            (NOW - timedelta(days=20), SYMBOLS),
        )
        connection.execute(
            "insert into market_data.series_state (symbol, timeframe, tier, verified_at, next_due_at)"
            " select s, t, 'critical', %s, %s from unnest(%s::text[]) as s cross join unnest(array['5m', '1h']) as t",
            (NOW, NOW, SYMBOLS),
        )
        connection.execute("alter table market_data.ingest_log disable trigger user")
        connection.execute(TICKS, {"ticks": [*AT, NOW - timedelta(days=1)], "symbols": SYMBOLS})
        connection.execute(NEWS)
        connection.execute("alter table market_data.ingest_log enable always trigger ingest_log_append_only")
        connection.execute("alter table market_data.ingest_log enable always trigger ingest_log_keeps_news")
        yield connection


@pytest.fixture
def writer(database_url: str, owner: psycopg.Connection) -> Iterator[StoreConnection]:
    with StoreConnection(database_url, NOW) as made:
        yield made


def count(owner: psycopg.Connection, query: str) -> int:
    row = owner.execute(f"select count(*) from {query}").fetchone()
    assert row is not None
    return int(row[0])


def roll_up(writer: StoreConnection) -> int:
    return sum(log_rollup.roll_up(writer, NOW, KEPT))


def test_unchanged_rows_are_summed_up_by_series_and_day(owner: psycopg.Connection, writer: StoreConnection) -> None:
    backup = owner.execute(
        "select encode(sha256(convert_to(string_agg(to_jsonb(l)::text, chr(10) order by id), 'UTF8')), 'hex')"
        " from market_data.ingest_log as l where symbol = 'NVDA' and timeframe = '5m' and finished_at < '2026-03-09'"
    ).fetchone()
    assert roll_up(writer) == ROWS - NEWS_ROWS
    day = owner.execute(
        "select refreshes, requests, rows_fetched, bytes, pages, fetch_seconds, first_started_at, last_finished_at,"
        " encode(digest, 'hex'), last_recorded_at is not null, rolled_up_at is not null"
        " from market_data.ingest_log_days where symbol = 'NVDA' and timeframe = '5m' and day = %s",
        (date(2026, 3, 8),),
    ).fetchall()
    assert backup is not None
    first, last = AT[0], AT[3] + timedelta(seconds=10)
    assert day == [(4, 4, 20, 400, 4, 1.0, first, last, backup[0], True, True)]
    assert count(owner, "market_data.ingest_log_days") == len(SYMBOLS) * 2 * DAYS
    assert roll_up(writer) == 0


def test_what_changed_failed_was_warned_of_or_late_stays_and_so_does_what_is_recent(
    owner: psycopg.Connection, writer: StoreConnection
) -> None:
    news = "market_data.ingest_log where run_id <> 'run 19 12'"
    roll_up(writer)
    assert count(owner, news) == NEWS_ROWS
    assert count(owner, f"{news} and status = 'unchanged'") == 3
    assert count(owner, "market_data.ingest_log where run_id = 'run 19 12'") == len(SYMBOLS) * 2


def test_a_series_newest_row_stays_however_old_it_is(owner: psycopg.Connection, writer: StoreConnection) -> None:
    owner.execute("alter table market_data.ingest_log disable trigger user")
    owner.execute("delete from market_data.ingest_log where run_id = 'run 19 12' and symbol = 'AAPL'")
    owner.execute("alter table market_data.ingest_log enable always trigger ingest_log_append_only")
    roll_up(writer)
    left = owner.execute(
        "select run_id, timeframe from market_data.ingest_log where symbol = 'AAPL' and status = 'unchanged' order by 2"
    ).fetchall()
    assert left == [("run 10 23", "1h"), ("run 10 23", "5m")]


def test_reports_say_the_same_as_before(database_url: str, owner: psycopg.Connection, writer: StoreConnection) -> None:
    runs = [
        Run(
            run_id=f"run {at:%d %H}",
            job="critical_refresh",
            trigger="schedule",
            requested_by="me",
            reason="why",
            series="all",
            status="SUCCESS",
            created_at=at,
            started_at=at,
            completed_at=at,
            failure=None,
        )
        for at in AT
    ]

    def said() -> tuple[object, ...]:
        asked = engine(database_url, role=Role.READER, as_of=NOW)
        with asked.connect() as connection:
            answers = join_runs(connection, runs), rpo_attainment(connection), list(audit_problems(connection))
        asked.dispose()
        return *answers, stored_series(writer, list(Timeframe))

    before = said()
    assert roll_up(writer) > 0
    assert said() == before
    assert before[2] == []


def test_a_roll_up_that_is_cut_off_goes_on_the_next_night(
    owner: psycopg.Connection, writer: StoreConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_rollup, "BATCH", 5)
    first = next(log_rollup.roll_up(writer, NOW, KEPT))
    assert 0 < first <= 8  # one symbol's day
    assert first + roll_up(writer) == ROWS - NEWS_ROWS
    assert count(owner, "market_data.ingest_log_days") == len(SYMBOLS) * 2 * DAYS
    sums = owner.execute(
        "select (select sum(refreshes) from market_data.ingest_log_days),"
        " (select sum(cardinality(series)) from market_data.ingest_log_runs)"
    ).fetchone()
    assert sums == (ROWS - NEWS_ROWS, ROWS - NEWS_ROWS)


def test_rows_leave_the_log_in_no_other_way(owner: psycopg.Connection, writer: StoreConnection) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        owner.execute("delete from market_data.ingest_log where status = 'unchanged'")
    owner.execute("begin")
    owner.execute("select set_config('market_data.rolls_up', pg_current_xact_id()::text, true)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="keeps what changed"):
        owner.execute("delete from market_data.ingest_log where status = 'failed'")
    owner.execute("rollback")
    roll_up(writer)
    for table in ("ingest_log_days", "ingest_log_runs"):
        for change in (f"delete from market_data.{table}", f"update market_data.{table} set requests = 0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                owner.execute(change)


def test_a_day_that_reports_still_read_is_not_summed_up(writer: StoreConnection) -> None:
    with pytest.raises(Exception, match="too recent"):
        writer.rows(
            "select market_data.roll_up_ingest_log(%(day)s, array['AAPL'], array['5m'], 0, 1000)::text as n",
            {"day": date(2026, 3, 19)},
        )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("delete from market_data.ingest_log_days where symbol = 'AAPL'", "rows of one of them are lost"),
        ("update market_data.ingest_log_runs set requests = 0", "rows of one of them are lost"),
        ("delete from market_data.run_log where run_id = 'run 09 00'", "not in market_data.run_log"),
    ],
)
def test_the_audit_chain_finds_sums_that_were_tampered_with(
    database_url: str, owner: psycopg.Connection, writer: StoreConnection, damage: str, said: str
) -> None:
    roll_up(writer)
    tables = ("ingest_log_days", "ingest_log_runs", "run_log")
    for table in tables:
        owner.execute(f"alter table market_data.{table} disable trigger user")
    owner.execute(damage)
    for table in tables:
        owner.execute(f"alter table market_data.{table} enable always trigger {table}_append_only")
    with sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database_url)
    ).connect() as connection:
        problems = list(audit_problems(connection))
    assert any(said in problem for problem in problems)
