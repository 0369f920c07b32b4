"""Run processes that start warm: forked from a process that has imported what a run needs, once.

Dagster's code server gives every run a process of its own and starts it from nothing ("spawn"): it imports Dagster,
pandas and this package again and computes the calendars again. Python's "forkserver" starts it as a copy of a process
that has all that at hand and no connections, and no threads but those of libraries that know of forks (OpenBLAS,
jemalloc): a run of 9 symbols that finds nothing to do takes 1.0 s of processor time instead of 3.8 s. What runs hold in
common they share in memory, too.

Dagster 1.13 offers no choice of the method, so this module, and no other, uses a private name of it: the attribute
`_mp_ctx` of `DagsterApiServer`. Should it change, runs start slowly again and do the same work.

Add here: how a run's process comes to be. Keep out: what it needs (preloaded) and what it does (assets).
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import sys
from typing import Final

_CODE_SERVER: Final = ["api", "grpc"]  # `python -m dagster api grpc …`, however it was started
_PRELOADED: Final = "market_data_pipeline.preloaded"


def start_runs_warm() -> None:
    """Let the code server that this process is fork its runs; in any other process do nothing."""
    if sys.argv[1:3] != _CODE_SERVER:
        return
    from dagster._grpc.server import DagsterApiServer

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    # The server was made before it loaded this module: a property stands before what it set itself.
    DagsterApiServer._mp_ctx = property(lambda _: context, lambda *_: None)  # type: ignore[assignment]
    multiprocessing.forkserver.ensure_running()  # so that it is ready when the first run comes
