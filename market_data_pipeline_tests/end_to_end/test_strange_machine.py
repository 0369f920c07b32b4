"""`up` where public reports say that it is run: cron's PATH, no HOME, a proxy, and a folder with an unusual name."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from market_data_pipeline_tests.end_to_end.conftest import folder
from market_data_pipeline_tests.end_to_end.project import Done, Project
from market_data_pipeline_tests.waiting import is_open

CLOSED = "http://127.0.0.1:9"  # the port `discard`, where nothing listens
VARIABLES = {"PATH": "/usr/bin:/bin", "HOME": "", "LANG": "", "http_proxy": CLOSED, "HTTPS_PROXY": CLOSED}


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with folder() as root:
        made = Project(root / "Märkte & 'Co' 100%", universe="tiers: {critical: [AAPL]}\n", MARKET_DATA_HISTORY_DAYS=3)
        yield made
        made.clean_up()


@pytest.fixture(scope="module")
def service(project: Project) -> Done:
    """`up` from its start until it was ready and was ended."""
    running = project.start("market-data", "up", **VARIABLES)
    running.says("Ctrl-C stops everything")
    assert is_open(project.api_port)
    return running.end(signal.SIGTERM)


def test_it_loads_serves_and_ends(project: Project, service: Done) -> None:
    assert (service.code, service.err) == (130, "")
    assert "5/5" in service.out
    assert project.processes() == []


def test_down_finds_the_server_and_stops_it(project: Project, service: Done) -> None:
    assert project.postgres.is_running()
    done = project.run("market-data", "down", **VARIABLES)
    assert (done.code, done.err) == (0, "")
    assert "PostgreSQL" in done.out
    assert not project.postgres.is_running()
