"""`python -m market_data_pipeline.runtime.api`: run the read API until SIGINT or SIGTERM."""

from __future__ import annotations

import sys

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
from market_data_pipeline.serving.app import run
from market_data_pipeline.settings import load_settings


def main() -> int:
    """Serve with the project's settings; return the exit code."""
    try:
        settings = load_settings()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    dagster = StoredDagsterState(settings.dagster_home, settings.dagster_postgres_url)
    run(settings, dagster, settings.api_host, settings.api_port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
