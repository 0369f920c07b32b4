"""The `market-data` command: parse, call, print."""

from __future__ import annotations

import sys

from market_data_pipeline.garbage import collect_rarely


def run() -> None:
    """Run the command; if only the base package is installed, say in one sentence which extra it needs."""
    collect_rarely()
    try:
        from market_data_pipeline.cli.main import main
    except ModuleNotFoundError as error:
        from market_data_pipeline.settings.project import INSTALL_PIPELINE

        print(f"The market-data command needs {error.name}: {INSTALL_PIPELINE}.", file=sys.stderr)
        sys.exit(2)
    main()
