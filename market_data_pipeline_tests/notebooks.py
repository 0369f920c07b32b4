"""Notebooks run by a kernel of their own, whose timing shows in nothing that a test compares."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nbclient
import nbformat
from jupyter_client.manager import AsyncKernelManager

from market_data_pipeline_tests.waiting import PATIENCE


@contextmanager
def client(notebook: nbformat.NotebookNode, **options: Any) -> Iterator[nbclient.NotebookClient]:
    """Yield a client for a notebook.

    The kernel is reached by sockets in a folder: it would be given numbers of ports that are free, and another process
    may take one before the kernel does. What a cell prints is one output however it was flushed, and an output that
    comes late is waited for.
    """
    folder = tempfile.mkdtemp()  # not that of the test, whose name is too long for a socket
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{folder}/kernel")
    options = {"coalesce_streams": True, "iopub_timeout": int(PATIENCE), "startup_timeout": int(PATIENCE)} | options
    try:
        yield nbclient.NotebookClient(notebook, km=kernel, **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
