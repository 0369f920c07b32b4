"""Several hosts: what becomes of the work when a host, a link, Redis or PostgreSQL is lost.

The vendor's calls are paused while something is taken away, so that no run ends before that: each is in the middle of
its work then, on whatever machine.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator

import dagster as dg
import pytest

from market_data_pipeline_tests.hosts.cluster import Cluster, cluster, needed
from market_data_pipeline_tests.waiting import until

pytestmark = pytest.mark.end_to_end

SYMBOLS = ("AAPL", "AMD", "AMZN", "BAC", "GOOGL", "JNJ", "JPM", "KO", "MSFT", "NVDA", "PEP", "XOM")  # of one tier
RUNS = {"alpha": 1, "beta": 2, "gamma": 1}
SERIES = 5 * len(SYMBOLS)
LIMIT = 60  # calls in a minute
SOME = 6  # calls; each run of three symbols needs 12, so none has ended then
PROCESS = ".dagster/market_data_process"
# A host is given up for lost after 100 to 115 s; looking for it takes processor time from what is waited for.
LOOK = {"every": 2.0, "patience": 600.0}
# What daemon and UI do, on a host that has neither now: a run is handed to the workers, and terminated while it works.
TERMINATE = """
import os, time
import dagster as dg
from market_data_pipeline.orchestration.runs import submit_refresh
from market_data_pipeline.settings import load_settings, process_environment
os.environ.update(process_environment(load_settings()))
with dg.DagsterInstance.get() as instance:
    run_id = submit_refresh(instance, symbols=["AAPL"], full=True)[0]
    instance.launch_run(run_id, None)
    while ".dagster/market_data_process" not in instance.get_run_by_id(run_id).tags:
        time.sleep(0.1)
    assert instance.run_launcher.terminate(run_id)
    print(run_id)
"""


def hosts_of(instance: dg.DagsterInstance, *statuses: dg.DagsterRunStatus) -> dict[str, str]:
    """Return the runs that have these statuses and have noted their process, with the host of each."""
    runs = instance.get_runs(dg.RunsFilter(statuses=list(statuses)))
    noted = {run.run_id: json.loads(run.tags.get(PROCESS, "[0, 0]")) for run in runs}
    return {run_id: host for run_id, (whose, host, *_) in noted.items() if whose == run_id}


def status_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def retry_of(instance: dg.DagsterInstance, run_id: str) -> str | None:
    found = instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run_id}))
    return found[0].run_id if found else None


def is_complete(made: Cluster) -> bool:
    """Return whether every series is held up to now, each bar was inserted once, and each has its features."""
    ((fresh, bars, features, failed),) = made.query(
        "select count(*) filter (where next_due_at > '2026-03-11T15:30:00Z'), sum(bar_count), sum(feature_count),"
        " count(*) filter (where last_error is not null) from market_data.series_state"
    )
    ((stored,),) = made.query("select count(*) from market_data.bars")
    ((inserted,),) = made.query("select sum(rows_inserted) from market_data.ingest_log")
    return (fresh, failed) == (SERIES, 0) and bars == features == stored == inserted > 0


def hold_calls(made: Cluster) -> None:
    """Let no run call the vendor from now on, as if it had answered 429."""
    made.query(
        "insert into market_data.rate_limit_pauses values ('polygon', now() + interval '1 day')"
        " on conflict (bucket) do update set until = excluded.until returning 1"
    )


def let_calls(made: Cluster) -> None:
    made.query("update market_data.rate_limit_pauses set until = now() returning 1")


def calls(made: Cluster) -> int:
    """Return how many calls the vendor has answered."""
    return made.vendor.text.count(" 200 OK")


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    """The servers, with a slow plan of the vendor's."""
    needed()
    settings = {
        "MARKET_DATA_HISTORY_DAYS": 30,
        "MARKET_DATA_SHARD_SYMBOLS": len(SYMBOLS) // sum(RUNS.values()),
        "POLYGON_CALLS_PER_MINUTE": LIMIT,
    }
    universe = f"tiers:\n  critical: [{', '.join(SYMBOLS)}]\n"
    with cluster(universe=universe, **settings) as made:
        # Calls of a machine that is busy with other tests arrive late, and so closer together than they were sent.
        made.start_servers("--calls-per-minute", str(LIMIT * 4 // 3))
        yield made


def test_a_load_survives_lost_hosts_a_cut_link_and_restarts_and_a_run_is_terminated(made: Cluster) -> None:
    head = made.host("head")
    alpha, beta, gamma = (made.host(name, MARKET_DATA_WORKER_RUNS=runs) for name, runs in RUNS.items())
    workers = {host.name: host.market_data("worker") for host in (alpha, beta, gamma)}
    hold_calls(made)
    load = head.market_data("backfill")
    workers["beta"].says("beta carries up to 2 runs at once")
    (password,) = re.findall(r"redis://:([^@]+)@", (beta.root / ".env").read_text())
    assert not any(password in line for line in beta.run("ps", "-eo", "args").stdout.splitlines())
    with made.instance() as instance:

        def running() -> dict[str, str]:
            assert load.process.poll() is None, load.text
            return hosts_of(instance, dg.DagsterRunStatus.STARTED)

        until(lambda: len(running()) == sum(RUNS.values()), every=1.0)
        # Four processes on three hosts share the limit: with one for each it would take a quarter of the time.
        began = time.monotonic()
        let_calls(made)
        until(lambda: calls(made) >= SOME, every=0.5)
        assert time.monotonic() - began >= (SOME - 1) * 60 / LIMIT
        hold_calls(made)

        of_alpha, of_gamma = (next(each for each, on in running().items() if on == name) for name in ("alpha", "gamma"))
        alpha.kill()
        gamma.cut()
        beta.cut()
        made.stop_redis()
        time.sleep(3)  # the length of the cut: shorter than what makes a host lost
        made.start_redis()
        beta.restore()
        cut = time.monotonic()
        let_calls(made)
        until(lambda: status_of(instance, of_alpha) is dg.DagsterRunStatus.FAILURE, **LOOK)
        until(lambda: status_of(instance, of_gamma) is dg.DagsterRunStatus.FAILURE, **LOOK)
        failed = time.monotonic() - cut
        until(lambda: retry_of(instance, of_gamma) in hosts_of(instance, *dg.DagsterRunStatus), **LOOK)
        print(f"failed after {failed:.0f} s, retried elsewhere after {time.monotonic() - cut:.0f} s")
        assert not {of_alpha, of_gamma} & {
            each.run_id for each in instance.event_log_storage.get_concurrency_info("polygon").claimed_slots
        }
        gamma.restore()  # its process is ended, and what it may say changes nothing
        assert load.process.wait() == 0, load.text
        ended = hosts_of(instance, dg.DagsterRunStatus.SUCCESS)
        for lost in (of_alpha, of_gamma):
            assert ended[str(retry_of(instance, lost))] != "alpha"
            assert status_of(instance, lost) is dg.DagsterRunStatus.FAILURE
        pid = json.loads(instance.get_run_by_id(of_gamma).tags[PROCESS])[3]  # type: ignore[union-attr]
        until(lambda: gamma.run("kill", "-0", str(pid)).returncode)
        assert is_complete(made)
        # What a run printed on another host is where the head, whose UI shows it, looks for it.
        retry = retry_of(instance, of_alpha)
        assert head.run("ls", f".market-data/compute-logs/{retry}/compute_logs").stdout.split()

        made.stop_postgres()
        made.start_postgres()
        hold_calls(made)
        terminated = head.start(sys.executable, "-c", TERMINATE)
        assert terminated.process.wait() == 0, terminated.text
        let_calls(made)
        stopped = terminated.text.split()[-1]
        until(lambda: status_of(instance, stopped) is dg.DagsterRunStatus.CANCELED)
    assert is_complete(made)
    assert " 429 " not in made.vendor.text

    for name in ("beta", "gamma"):
        workers[name].send(signal.SIGTERM)
        assert workers[name].process.wait() == 0, workers[name].text
