"""Projects that the tests of a module share: starting one takes longer than most of the tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from market_data_pipeline_tests.conftest import in_memory
from market_data_pipeline_tests.end_to_end.project import Project

MakeProject = Callable[..., Project]


@contextmanager
def folder() -> Iterator[Path]:
    """Yield an empty folder that is removed at the end.

    It is not one of pytest's: when root runs the tests, the server's user must pass through it, and every pytest run
    makes its folders private again.
    """
    made = Path(tempfile.mkdtemp(prefix="market-data-project-", dir=in_memory()))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def make_project() -> Iterator[MakeProject]:
    """Return a function that makes a project whose PostgreSQL runs; everything ends with the module."""
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
