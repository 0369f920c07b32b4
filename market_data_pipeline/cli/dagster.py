"""What the `dagster` command in the checkout's `.venv` runs: Dagster's own command line, prepared for this project.

`dagster asset` of Dagster 1.13 reads neither workspace.yaml nor `[tool.dagster]`, and `.env` only after its options, so
the module is named here. Where Dagster's storage is follows from this command's environment as it does for
`market-data`. Every command needs that storage, so the embedded PostgreSQL is started when it is down, for example
after a reboot. `make install` writes the script that calls this; an environment installed by pip keeps the script of
the dagster package.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Final

from market_data_pipeline.settings.project import LOCATION, is_local

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

_NO_STORAGE: Final = {"--help", "-h", "--version"}


def main() -> None:
    """Run Dagster's command line with this process's arguments."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["asset"]:
        os.environ.setdefault("DAGSTER_MODULE_NAME", LOCATION)
    if arguments and not _NO_STORAGE & set(arguments):
        _prepare()
    sys.argv[0] = "dagster"  # the name that usage and error messages show
    (script,) = distribution("dagster").entry_points.select(group="console_scripts", name="dagster")
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
        if sys.argv[1:2] == ["dev"]:
            _refuse_second_daemon(settings)
    except PipelineError as error:
        sys.exit(str(error))


def _refuse_second_daemon(settings: Settings) -> None:
    """Raise UsageError while a daemon serves the storage: the one of `dagster dev` would refuse to start, but late."""
    from market_data_pipeline.domain.errors import UsageError
    from market_data_pipeline.orchestration.run_queue import second_daemon, serving_daemon

    if found := serving_daemon(settings.dagster_postgres_url):
        raise UsageError(f"{second_daemon(str(found))} Its UI is at {settings.local_ui_url}.")
