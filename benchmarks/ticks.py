"""What a refresh without news costs: seconds of the run, and bytes of Dagster's storage in a year of them.

25 symbols, 125 series, are loaded once through Dagster and then refreshed again and again at the same instant by the
daemon, as the schedule does every 15 minutes; each of these ticks finds everything current. Seconds are the medians of
the runs as Dagster records them; the part that is not Dagster's is measured by the same refresh without Dagster.

Storage: the bytes that a tick adds to each table, rows and indexes. Then half of the ticks are moved to a day long past
and half to the day before it, and the prune job's work is done; what is left shows what remains of a tick and of a day.
A year is 365 days of 96 pruned ticks, plus the last days, which are not pruned yet, in full. The daemon's sensors and
schedules run meanwhile; their ticks are counted as they occur and kept as `dagster.yaml` says.

    python -m benchmarks.ticks [TICKS]
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks.place import Place, now, running_place, symbol_requests, universe
from benchmarks.report import Measurement, show
from benchmarks.running_dagster import running_dagster

if TYPE_CHECKING:
    import dagster as dg
    from sqlalchemy import Engine

    from market_data_pipeline.ingest.outcome import SeriesOutcome

TICKS: Final = 20  # of about 7 s each; fewer would measure PostgreSQL's pages of 8 kB rather than a tick's rows
DAYS: Final = 30  # of history: a tick without news reads states, not bars
TICKS_A_DAY: Final = 96
TARGET_RUN_SECONDS: Final = 8.0
TARGET_DAGSTER_SECONDS: Final = 6.0
TARGET_GIGABYTES: Final = 2.0
KEPT_DAYS: Final = 7  # the default of MARKET_DATA_KEEP_EVENT_DAYS
_AGED_DAYS: Final = 100  # older than anything that is kept for a number of days

# The tables that grow with time; the others have one row per asset, partition or schedule.
_GROWING: Final = ("event_logs", "asset_check_executions", "runs", "run_tags")
_WEIGHT: Final = """
select c.relname as name, pg_total_relation_size(c.oid) as bytes, s.n_live_tup as rows
from pg_class as c join pg_stat_user_tables as s on s.relid = c.oid where c.relname = any(:names)"""


def main() -> int:
    """Measure, print and return the exit code."""
    return show("ticks", measure(int(sys.argv[1]) if len(sys.argv) > 1 else TICKS))


def measure(ticks: int = TICKS) -> list[Measurement]:
    """Return the seconds of a tick and the gigabytes of a year."""
    with running_place() as place:
        url = place.new_database("ticks", universe())
        with running_dagster(place, url, history_days=DAYS) as instance:
            _refresh(instance)
            storage = _engine(instance)
            before = _weigh(storage)
            done = [_refresh(instance) for _ in range(ticks)]
            after = _weigh(storage)
            alone, outcomes = _without_dagster(place, url)
        requests = sum(outcome.counters.requests for outcome in outcomes) + _requests(url)
        year = _year(storage, ticks, before, after)
        storage.dispose()
    run = statistics.median(tick["run"] for tick in done)
    what = f"a tick of {len(outcomes)} current series"
    return [
        Measurement(f"{what}: requests", requests, "", at_most=0),
        Measurement(f"{what}: the run", run, "s", at_most=TARGET_RUN_SECONDS),
        Measurement(f"{what}: the same without Dagster", alone, "s"),
        Measurement(f"{what}: Dagster's part of the run", run - alone, "s", at_most=TARGET_DAGSTER_SECONDS),
        Measurement(f"{what}: putting it into the queue", statistics.median(tick["queue"] for tick in done), "s"),
        Measurement(f"{what}: start of its process", statistics.median(tick["start"] for tick in done), "s"),
        *year,
    ]


def _refresh(instance: dg.DagsterInstance) -> dict[str, float]:
    """Refresh everything once, through the queue and the daemon, and return the seconds of its parts."""
    import dagster as dg

    from market_data_pipeline.orchestration.runs import submit_refresh, wait_for_runs

    began = time.perf_counter()
    run_ids = submit_refresh(instance, trigger="schedule")
    queued = time.perf_counter()
    wait_for_runs(instance, run_ids)
    (record,) = instance.get_run_records(_filter(run_ids))
    if not record.dagster_run.is_success or record.start_time is None or record.end_time is None:
        failed = dg.EventRecordsFilter(dg.DagsterEventType.STEP_FAILURE)
        why = [
            str(each.event_log_entry.dagster_event.event_specific_data.error)
            for each in instance.get_event_records(failed)
        ]
        raise SystemExit(f"The run ended as {record.dagster_run.status.value}. {' '.join(why)}")
    launched = record.create_timestamp.timestamp()
    return {
        "queue": queued - began,
        "start": record.start_time - launched - (queued - began),
        "run": record.end_time - record.start_time,
    }


def _filter(run_ids: list[str]) -> dg.RunsFilter:
    import dagster as dg

    return dg.RunsFilter(run_ids=run_ids)


def _without_dagster(place: Place, url: str) -> tuple[float, list[SeriesOutcome]]:
    """Return the seconds of the same refresh in this process, warmed up, and its outcomes."""
    from market_data_pipeline.ingest.shard import refresh_shard

    seconds, outcomes = [], []
    for turn in range(4):
        began = time.perf_counter()
        with place.pipeline(url, history_days=DAYS, threads=3) as pipeline:
            outcomes = list(refresh_shard(symbol_requests(universe()), pipeline=pipeline, run_id=f"alone {turn}"))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]), outcomes


def _requests(url: str) -> int:
    """Return the requests of all ticks: those in the audit log except the first run's."""
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute(
            "select coalesce(sum(requests), 0) from market_data.ingest_log where status = 'unchanged'"
        ).fetchone()
    return int(row[0]) if row else 0


def _engine(instance: dg.DagsterInstance) -> Engine:
    import sqlalchemy as sa

    storage: Any = instance.event_log_storage
    return sa.create_engine(storage.postgres_url, isolation_level="AUTOCOMMIT")


def _weigh(storage: Engine) -> dict[str, float]:
    """Return the bytes of each growing table, without what deleted rows leave behind."""
    import sqlalchemy as sa

    with storage.connect() as connection:
        for name in _GROWING:
            connection.execute(sa.text(f"vacuum full analyze {name}"))
        rows = connection.execute(sa.text(_WEIGHT), {"names": list(_GROWING)}).all()
    return {row.name: float(row.bytes) for row in rows}


def _year(storage: Engine, ticks: int, before: dict[str, float], after: dict[str, float]) -> list[Measurement]:
    """Return what a tick writes, what remains of it, and what a year of them amounts to."""
    from market_data_pipeline.orchestration.dagster_retention import prune_events

    written = {name: (after[name] - before[name]) / ticks for name in _GROWING}
    # Bytes of the table and its indexes per byte of its rows, of which it holds thousands by now.
    overhead = after["event_logs"] / _rows(storage, "")
    _age(storage, ticks)
    deleted = prune_events(storage, KEPT_DAYS)
    two_days = _weigh(storage)
    _age(storage, 0)  # all on one day now
    prune_events(storage, KEPT_DAYS)
    one_day = _weigh(storage)
    a_day = two_days["event_logs"] - one_day["event_logs"]
    # Of the events, only materializations and check results are kept per day; of a run, its row, tags and a few events.
    lasting = "where dagster_event_type not in ('ASSET_MATERIALIZATION', 'ASSET_CHECK_EVALUATION')"
    a_tick = {
        "event_logs": _rows(storage, lasting) * overhead / (ticks + 1),
        "runs": written["runs"],
        "run_tags": written["run_tags"],
    }
    kept = TICKS_A_DAY * sum(a_tick.values()) + a_day
    recent = KEPT_DAYS * TICKS_A_DAY * sum(written.values())
    total = (kept * 365 + recent) / 1e9
    details = {
        "last days in full GB": recent / 1e9,
        "kept of the year GB": kept * 365 / 1e9,
        "rows pruned": sum(deleted.values()),
    }
    what = "Dagster's storage"
    return [
        Measurement(f"{what}: written by a tick", sum(written.values()) / 1e3, "kB", details=_kb(written)),
        Measurement(f"{what}: kept of a tick", sum(a_tick.values()) / 1e3, "kB", details=_kb(a_tick)),
        Measurement(f"{what}: kept of a day beside", a_day / 1e3, "kB"),
        Measurement(f"{what}: a year of 15-minute ticks", total, "GB", at_most=TARGET_GIGABYTES, details=details),
    ]


def _rows(storage: Engine, where: str) -> float:
    """Return the bytes of the rows of `event_logs`, without indexes and pages."""
    import sqlalchemy as sa

    with storage.connect() as connection:
        statement = f"select sum(pg_column_size(e.*)) from event_logs as e {where}"  # noqa: S608 - ours
        return float(connection.execute(sa.text(statement)).scalar_one())


def _age(storage: Engine, ticks: int) -> None:
    """Move everything long into the past: the second half of `ticks` to one day and the rest to the day before it."""
    import sqlalchemy as sa

    with storage.connect() as connection:
        runs = connection.execute(sa.text("select run_id from runs order by id")).scalars().all()
        later = list(runs[len(runs) - ticks // 2 :]) if ticks else []
        for table, column in (("event_logs", "timestamp"), ("asset_check_executions", "evaluation_event_timestamp")):
            # Around noon of that day, in the order in which things happened.
            moved = f"cast(:day as date) - cast(:days as integer) + interval '12 hours' + {column}::time / 100"
            for days, chosen in ((_AGED_DAYS, "not (run_id = any(:later))"), (_AGED_DAYS - 1, "run_id = any(:later)")):
                connection.execute(
                    sa.text(f"update {table} set {column} = {moved} where {chosen}"),  # noqa: S608 - our names
                    {"day": now().date(), "days": days, "later": later},
                )


def _kb(by_table: dict[str, float]) -> dict[str, float]:
    return {f"{name} kB": value / 1e3 for name, value in by_table.items()}


if __name__ == "__main__":
    sys.exit(main())
