"""Several hosts: what becomes of the work when a host, a link, Redis or PostgreSQL is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator

import dagster as dg
import pytest

from market_data_pipeline_tests.hosts.cluster import Cluster, Host, cluster, needed
from market_data_pipeline_tests.waiting import until

pytestmark = pytest.mark.end_to_end

UNIVERSE = "tiers:\n  critical: [AAPL, MSFT]\n  standard: [KO, PEP]\n  low_priority: [XOM]\n"
SERIES = 25
PROCESS = ".dagster/market_data_process"
# What daemon and UI do, on a host that has neither now: a run is handed to the workers, and terminated while it works.
TERMINATE = """
import json, os, time
import dagster as dg
from market_data_pipeline.orchestration.runs import submit_refresh
from market_data_pipeline.settings import load_settings, process_environment
os.environ.update(process_environment(load_settings()))
with dg.DagsterInstance.get() as instance:
    run_id = submit_refresh(instance, symbols=["AAPL", "MSFT"], full=True)[0]
    instance.launch_run(run_id, None)
    while ".dagster/market_data_process" not in instance.get_run_by_id(run_id).tags:
        time.sleep(0.1)
    assert instance.run_launcher.terminate(run_id)
    while not instance.get_run_by_id(run_id).is_finished:
        time.sleep(0.1)
    run = instance.get_run_by_id(run_id)
    print(json.loads(run.tags[".dagster/market_data_process"])[1], run.status.value)
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


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    """The servers, with a vendor whose limit makes each run take seconds."""
    if not {"TEST_HOSTS", "TEST_CHAOS"} & os.environ.keys():
        pytest.skip("TEST_HOSTS=1 starts four hosts with everything on them, which takes minutes")
    needed()
    settings = {"MARKET_DATA_HISTORY_DAYS": 30, "POLYGON_CALLS_PER_MINUTE": 200, "MARKET_DATA_WORKER_RUNS": 2}
    with cluster(universe=UNIVERSE, **settings) as made:
        made.start_servers("--calls-per-minute", "200")
        yield made


@pytest.fixture(scope="module")
def head(made: Cluster) -> Host:
    return made.host("head")


def test_what_a_worker_lacks_is_said_in_a_sentence(made: Cluster) -> None:
    expected = (
        ({"MARKET_DATA_BROKER_URL": ""}, 2, "MARKET_DATA_BROKER_URL is not set: a worker takes its runs from"),
        ({"MARKET_DATA_BROKER_URL": "redis://:a-secret@10.77.0.1:6380/0"}, 1, "Redis at 10.77.0.1:6380 cannot be used"),
        ({"DAGSTER_HOME": ""}, 2, "does not name WorkerLauncher. Set DAGSTER_HOME to the project's deploy/cluster"),
    )
    hosts = [made.host(f"wrong-{number}", **settings) for number, (settings, _, _) in enumerate(expected)]
    started = [host.market_data("worker") for host in hosts]
    for (_, code, said), each in zip(expected, started, strict=True):
        assert each.process.wait() == code, each.text
        assert said in each.text.strip().splitlines()[-1], each.text  # two may make Dagster's tables at once, and warn
        assert "Traceback" not in each.text
        assert "a-secret" not in each.text
    for host in hosts:
        host.kill()


def test_a_load_survives_a_lost_host_a_cut_link_and_a_restart_of_redis_and_a_run_is_terminated(
    made: Cluster, head: Host
) -> None:
    alpha, beta = made.host("alpha"), made.host("beta")
    workers = [alpha.market_data("worker"), beta.market_data("worker")]
    load = head.market_data("backfill")
    workers[1].says("beta carries up to 2 runs at once")
    (password,) = re.findall(r"redis://:([^@]+)@", (beta.root / ".env").read_text())
    assert not any(password in line for line in beta.run("ps", "-eo", "args").stdout.splitlines())
    with made.instance() as instance:

        def running() -> dict[str, str]:
            return hosts_of(instance, dg.DagsterRunStatus.STARTED)

        until(lambda: {"alpha", "beta"} <= set(running().values()))
        lost = next(run_id for run_id, host in running().items() if host == "alpha")
        alpha.kill()
        beta.cut()
        made.stop_redis()
        time.sleep(3)  # the length of the cut: shorter than what makes a host lost
        made.start_redis()
        beta.restore()
        until(lambda: status_of(instance, lost) is dg.DagsterRunStatus.FAILURE)
        # Its retry succeeds elsewhere, and so the load does.
        assert load.process.wait() == 0, load.text
        retry = retry_of(instance, lost)
        assert hosts_of(instance, dg.DagsterRunStatus.SUCCESS)[str(retry)] == "beta"
        assert is_complete(made)
        # What it printed on beta is where the head, whose UI shows it, looks for it.
        assert head.run("ls", f".market-data/compute-logs/{retry}/compute_logs").stdout.split()

    made.stop_postgres()
    made.start_postgres()
    started = head.start(sys.executable, "-c", TERMINATE)
    assert started.process.wait() == 0, started.text
    assert started.text.strip().splitlines()[-1] == "beta CANCELED"
    assert is_complete(made)
    assert " 429 " not in made.vendor.text

    assert beta.market_data("worker", "--check").process.wait() == 0
    workers[1].send(signal.SIGTERM)
    assert workers[1].process.wait() == 0, workers[1].text
    unchecked = beta.market_data("worker", "--check")
    assert unchecked.process.wait() == 1
    assert "No worker of beta has been heard from lately." in unchecked.text


def test_a_host_whose_network_vanishes_loses_its_run_to_another_within_three_minutes(made: Cluster, head: Host) -> None:
    if not os.environ.get("TEST_CHAOS"):
        pytest.skip("TEST_CHAOS=1 waits until a host that cannot be reached is given up, for minutes")
    gamma, delta = made.host("gamma"), made.host("delta")
    workers = [gamma.market_data("worker"), delta.market_data("worker")]
    for each in workers:
        each.says("carries up to 2 runs at once")
    load = head.market_data("backfill", "--full", "--days", "365")
    with made.instance() as instance:
        until(lambda: "gamma" in hosts_of(instance, dg.DagsterRunStatus.STARTED).values())
        began = hosts_of(instance, dg.DagsterRunStatus.STARTED).items()
        lost = next(run_id for run_id, host in began if host == "gamma")
        gamma.cut()
        cut = time.monotonic()
        until(lambda: status_of(instance, lost) is dg.DagsterRunStatus.FAILURE)
        failed = time.monotonic() - cut
        assert lost not in {
            each.run_id for each in instance.event_log_storage.get_concurrency_info("polygon").claimed_slots
        }
        until(lambda: retry_of(instance, lost) in hosts_of(instance, dg.DagsterRunStatus.STARTED))
        retried = time.monotonic() - cut
        print(f"failed after {failed:.0f} s, retried elsewhere after {retried:.0f} s")
        assert retried < 180
        gamma.restore()  # its process is ended, and what it may say changes nothing
        assert load.process.wait() == 0, load.text
        assert status_of(instance, lost) is dg.DagsterRunStatus.FAILURE
    assert is_complete(made)
    assert " 429 " not in made.vendor.text
