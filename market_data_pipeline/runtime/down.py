"""`market-data down`: end what `up` and `backfill` started, killed ones included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.runtime.processes import commands, end_trees
from market_data_pipeline.runtime.sandbox import stop_sandbox

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

# A command cancels its runs (twice 10 s at most) and ends its processes in two rounds (15 s and 5 s each).
_DOWN_SECONDS: Final = 65.0


def run_down(settings: Settings) -> int:
    """End every `up` and `backfill` with all they started, the sandbox and the embedded server; print what ended."""
    console = screen()
    found = [command for command in commands(settings.state_dir) if command.processes]
    # A command ends its own processes in order; what a killed one left behind is ended here.
    end_trees((process for each in found for process in each.processes if process.pid == each.pid), _DOWN_SECONDS)
    ended = [f"market-data {each.name}" for each in found]
    for each in commands(settings.state_dir):
        each.end()
    if stop_sandbox(settings):
        ended.append("sandbox")
    server = EmbeddedPostgres.of(settings)  # whichever database this command is told to use
    if server.is_running():
        server.stop()
        ended.append("PostgreSQL")
    console.print(f"Stopped: {', '.join(ended)}." if ended else "Nothing was running.")
    return 0
