"""What the `dagster` and `dg` commands in the checkout's `.venv` run: Dagster's own, prepared for this project.

`dagster asset` of Dagster 1.13 reads neither workspace.yaml nor `[tool.dagster]`, and `.env` only after its options, so
the module is named here. Where Dagster's storage is follows from this command's environment as it does for
`market-data`. Every command needs that storage, so the embedded PostgreSQL is started when it is down, for example in a
fresh clone or after a reboot; one that materializes assets also needs the schema and the partitions. `make install`
writes the scripts that call this; an environment installed by pip keeps those of Dagster's packages.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Final

from market_data_pipeline.garbage import collect_rarely
from market_data_pipeline.settings.project import LOCATION, is_local

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

_PACKAGES: Final = {"dagster": "dagster", "dg": "dagster-dg-cli"}  # command -> the package that has it
_NO_STORAGE: Final = {"--help", "-h", "--version"}
_MATERIALIZING: Final = (["launch"], ["asset", "materialize"])
_WITHOUT_STORAGE: Final = {"scaffold", "docs", "mcp", "plus", "utils"}  # commands of dg


def main(command: str = "dagster") -> None:
    """Run one of Dagster's commands with this process's arguments."""
    collect_rarely()
    arguments = sys.argv[1:]
    if command == "dagster" and arguments[:1] == ["asset"]:
        os.environ.setdefault("DAGSTER_MODULE_NAME", LOCATION)
    if arguments and not _NO_STORAGE & set(arguments) and not (command == "dg" and arguments[0] in _WITHOUT_STORAGE):
        _prepare()
    sys.argv[0] = command  # the name that usage and error messages show
    (script,) = distribution(_PACKAGES[command]).entry_points.select(group="console_scripts", name=command)
    script.load()()


def _prepare() -> None:
    """Export where the project is, and start the embedded server if Dagster's storage is on it.

    If that cannot be done, exit with one sentence why.
    """
    from market_data_pipeline.domain.errors import PipelineError
    from market_data_pipeline.settings import load_settings, process_environment
    from market_data_pipeline.settings.network import prepare_network

    try:
        prepare_network()
        settings = load_settings()
        os.environ.update(process_environment(settings))
        if is_local(settings.dagster_postgres_url, settings.state_dir):
            from market_data_pipeline.runtime.postgres import EmbeddedPostgres

            EmbeddedPostgres.of(settings).ensure_running()
        else:
            from market_data_pipeline.store.connection import open_connection

            open_connection(settings.dagster_postgres_url).close()  # Dagster would answer with a stack trace
        if sys.argv[1:2] == ["dev"]:
            _refuse_second_daemon(settings)
        if any(sys.argv[1 : 1 + len(words)] == words for words in _MATERIALIZING):
            _prepare_partitions(settings)
    except PipelineError as error:
        sys.exit(str(error))


def _prepare_partitions(settings: Settings) -> None:
    """Bring the schema, the universe and the partitions up to date, as the first `market-data up` does."""
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.runtime.load import dagster_instance

    engine = open_universe(settings)
    with dagster_instance(settings, engine):
        pass
    engine.dispose()


def _refuse_second_daemon(settings: Settings) -> None:
    """Raise UsageError while a daemon serves the storage: the one of `dagster dev` would refuse to start, but late."""
    from market_data_pipeline.domain.errors import UsageError
    from market_data_pipeline.orchestration.serving_daemon import second_daemon, serving_daemon

    if found := serving_daemon(settings.dagster_postgres_url):
        raise UsageError(f"{second_daemon(str(found))} Its UI is at {settings.local_ui_url}.")
