"""`python -m market_data_pipeline.runtime.entrypoint COMMAND …`: become a command that has the settings as variables.

The entry point of the container image. Dagster's own programs read neither `NAME_FILE` nor what follows from our other
settings: where their storage is comes to them by the variable that `dagster.yaml` names.
"""

from __future__ import annotations

import os
import sys

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import load_settings, process_environment


def main(command: list[str]) -> int:
    """Replace this process by `command`; return the exit code if it cannot be started."""
    if not command:
        print("Name a command, for example: market-data health", file=sys.stderr)
        return 2
    try:
        variables = process_environment(load_settings())
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        os.execvpe(command[0], command, {**os.environ, **variables})  # noqa: S606 - the container's own command
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}.", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
