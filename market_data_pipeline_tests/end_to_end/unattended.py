"""A project whose daemon runs and does only what a test requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from market_data_pipeline.orchestration.cadences import SCHEDULES
from market_data_pipeline.orchestration.partitions import sync_partitions
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.end_to_end.project import Project


def home(project: Project) -> dict[str, object]:
    """Return the variables that Dagster's own commands need if `market-data up` has not written them."""
    return {"DAGSTER_HOME": project.root, "DAGSTER_POSTGRES_URL": project.settings.dagster_postgres_url}


@contextmanager
def unattended(project: Project) -> Iterator[dg.DagsterInstance]:
    """Load the project's universe, start its daemon, and yield its instance with its partitions."""
    done = project.run("market-data", "universe", "list")  # creates the tables and loads the universe
    assert done.code == 0, done.out + done.err
    with project.instance() as instance:
        lent = engine(project.settings.database_url)
        sync_partitions(instance, lent)
        lent.dispose()
        quiet(instance)
        project.start("dagster-daemon", "run", **home(project))
        yield instance


def hasten(project: Project) -> None:
    """Let Dagster's monitoring poll every second instead of every half minute."""
    configured = project.root / "dagster.yaml"
    text = configured.read_text()
    for name in ("poll_interval_seconds", "free_slots_after_run_end_seconds"):
        text, found = re.subn(rf"(?m)^  {name}: 30$", f"  {name}: 1", text)
        assert found == 1, name
    configured.unlink()  # a link to the repository's
    configured.write_text(text)


def quiet(instance: dg.DagsterInstance) -> None:
    """Stop what else would request runs: empty tables are stale, and any quarter of an hour by the real clock is due.

    It is stored as `dagster sensor stop` and `dagster schedule stop` do. Each of the four commands would import the
    definitions twice, which takes as long as the rest of a test; Dagster has no public way that does not.
    """
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
    from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, ScheduleInstigatorData
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

    module = "market_data_pipeline.definitions"
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name=module), location_name=module)
    repository = RemoteRepositoryOrigin(location, "__repository__")
    stopped = InstigatorStatus.STOPPED
    sensor = repository.get_instigator_origin("staleness_sensor")
    instance.add_instigator_state(InstigatorState(sensor, InstigatorType.SENSOR, stopped))
    for name, (cron, _) in SCHEDULES.items():
        schedule, data = repository.get_instigator_origin(name), ScheduleInstigatorData(cron)
        instance.add_instigator_state(InstigatorState(schedule, InstigatorType.SCHEDULE, stopped, data))
