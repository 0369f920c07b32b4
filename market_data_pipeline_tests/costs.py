"""`--costs`: which test files, and which tests, take how much processor time.

Counted is the time of the test process, of all that it starts, and of the database server, less what had passed before
the test. Only where one test runs at a time (`-n 0`) does the server's time belong to it.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

SHOWN: Final = 30


class Costs:
    """A plugin that measures each test.

    Args:
        postgres: the data folder of the session's server, which is no child of this process.
    """

    def __init__(self, postgres: Path) -> None:
        self._postgres = postgres
        self._before = self._seconds()
        self.tests: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        answer = yield
        after = self._seconds()
        self.tests[item.nodeid] += after - self._before  # type: ignore[assignment]
        self._before = after
        return answer  # type: ignore[return-value]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: Counter[str] = Counter()
        for test, seconds in self.tests.items():
            files[test.partition("::")[0]] += seconds
        terminalreporter.section(f"processor time: {sum(files.values()):.0f} s")
        for counted in (files, self.tests):
            for name, seconds in counted.most_common(SHOWN):
                terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
            terminalreporter.write_line("")

    def _seconds(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = time.process_time() + ended.ru_utime + ended.ru_stime
        spent += sum(_with_ended(each) for each in psutil.Process().children(recursive=True))
        try:
            server = psutil.Process(int((self._postgres / "postmaster.pid").read_text().split()[0]))
            return spent + _with_ended(server) + sum(_with_ended(each) for each in server.children())
        except (OSError, psutil.Error):
            return spent


def _with_ended(process: psutil.Process) -> float:
    """Return the processor seconds of a process and of its children that have ended."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.Error:
        return 0.0


def register(config: pytest.Config, session: str) -> None:
    """Measure where `--costs` is given, except in the process that only hands out tests."""
    if config.getoption("costs") and os.environ.get("PYTEST_XDIST_WORKER") is None:
        if config.getoption("numprocesses", default=None):
            raise pytest.UsageError("--costs measures one test after the other: add -n 0")
        config.pluginmanager.register(Costs(Path(session) / "postgres"), "costs")
