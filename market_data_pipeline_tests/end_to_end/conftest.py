"""Projects that a module's tests share: starting one costs more than most of what is tested in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from market_data_pipeline_tests.end_to_end.project import Project

MakeProject = Callable[..., Project]


@pytest.fixture(scope="module")
def make_project() -> Iterator[MakeProject]:
    """Return a function that makes a project whose PostgreSQL runs; all of it ends with the module.

    The folder is not pytest's: where root runs the tests, the server's user must pass through it, and every session of
    pytest closes its folders to others anew.
    """
    with ExitStack() as stack:

        def make(**lines: object) -> Project:
            root = Path(tempfile.mkdtemp(prefix="market-data-project-"))
            stack.callback(shutil.rmtree, root, ignore_errors=True)
            project = Project(root, **lines)  # type: ignore[arg-type]
            stack.callback(project.clean_up)
            project.postgres.ensure_running()
            return project

        yield make
