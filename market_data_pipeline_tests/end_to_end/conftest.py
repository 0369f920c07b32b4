"""Projects that a module's tests share: starting one costs more than most of what is tested in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from market_data_pipeline_tests.end_to_end.project import Project

MakeProject = Callable[..., Project]


@contextmanager
def folder() -> Iterator[Path]:
    """Give an empty folder that goes at the end.

    It is not pytest's: where root runs the tests, the server's user must pass through it, and every session of pytest
    closes its folders to others again.
    """
    made = Path(tempfile.mkdtemp(prefix="market-data-project-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def make_project() -> Iterator[MakeProject]:
    """Return a function that makes a project whose PostgreSQL runs; all of it ends with the module."""
    with ExitStack() as stack:

        def make(**lines: object) -> Project:
            project = Project(stack.enter_context(folder()), **lines)  # type: ignore[arg-type]
            stack.callback(project.clean_up)
            project.postgres.ensure_running()
            return project

        yield make


@pytest.fixture
def new_project() -> Iterator[Project]:
    """A project in which nothing has ever run."""
    with folder() as root:
        project = Project(root)
        yield project
        project.clean_up()
