"""The `dagster` command of this project's environment: Dagster's own, with two things said to it first.

`dagster asset …` of Dagster 1.13 looks at neither workspace.yaml nor `[tool.dagster]`, and reads `.env` after its
options; so the module is named here. And every command needs Dagster's storage: the embedded PostgreSQL is started if
it is that and does not run, for example after a reboot.

Keep out: commands of our own (cli).
"""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

from dagster._cli import main as dagster_main  # what the script that this one replaces calls

from market_data_pipeline.settings.project import LOCATION, is_local

_NO_STORAGE: Final = {"--help", "-h", "--version"}


def main() -> NoReturn:
    """Run Dagster's command line."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["asset"]:
        os.environ.setdefault("DAGSTER_MODULE_NAME", LOCATION)
    if arguments and not _NO_STORAGE & set(arguments):
        _ensure_storage()
    dagster_main()  # type: ignore[no-untyped-call]
    sys.exit(0)


def _ensure_storage() -> None:
    """Start the embedded server if Dagster's storage is on it; what is wrong ends the command in one sentence."""
    from market_data_pipeline.domain.errors import PipelineError
    from market_data_pipeline.settings import load_settings

    try:
        settings = load_settings()
        if is_local(settings.dagster_postgres_url, settings.state_dir):
            from market_data_pipeline.runtime.postgres import EmbeddedPostgres

            EmbeddedPostgres.of(settings).ensure_running()
    except PipelineError as error:
        sys.exit(str(error))
