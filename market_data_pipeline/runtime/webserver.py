"""`python -m market_data_pipeline.runtime.webserver --workspace FILE`: run Dagster's UI, guarded, until SIGTERM.

It is `dagster-webserver`, which itself lets any web page operate it: it executes GraphQL mutations by GET and
`text/plain`, whatever the Origin and the Host. Further arguments are those of `dagster-webserver`.
"""

from __future__ import annotations

import sys

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.garbage import collect_rarely
from market_data_pipeline.orchestration.dagster_internals import run_webserver
from market_data_pipeline.runtime.ui_guard import UiGuard
from market_data_pipeline.settings import load_settings


def main() -> int:
    """Serve with the project's settings; return the exit code."""
    collect_rarely()
    try:
        settings = load_settings()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    arguments = ["--host", settings.ui_host, "--port", str(settings.ui_port), *sys.argv[1:]]
    if settings.ui_prefix:
        arguments += ["--path-prefix", settings.ui_prefix]
    run_webserver(arguments, lambda app: UiGuard(app, settings.ui_host, settings.ui_url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
