"""`python -m market_data_pipeline.runtime.api`: run the read API until SIGINT or SIGTERM."""

from __future__ import annotations

import sys
from contextlib import suppress

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.garbage import collect_rarely
from market_data_pipeline.settings import load_settings
from market_data_pipeline.settings.network import prepare_network
from market_data_pipeline.store.connection import open_connection


def main() -> int:
    """Serve with the project's settings; return the exit code."""
    collect_rarely()
    from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
    from market_data_pipeline.serving.app import run

    try:
        prepare_network()
        settings = load_settings()
        with suppress(DatabaseUnavailableError, DatabaseBusyError):  # the API starts without a database, too
            for url in dict.fromkeys((settings.database_url, settings.reader_url)):
                open_connection(url).close()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    dagster = StoredDagsterState(settings.dagster_home, settings.dagster_postgres_url)
    run(settings, dagster, settings.api_host, settings.api_port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
