"""A user's project folder, and commands run in it as a user runs them: real processes, nothing exported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

import dagster as dg
import psutil
import psycopg
from psycopg.rows import dict_row

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.runtime.sandbox import stop_sandbox_in
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline_tests.waiting import PATIENCE, until

REPOSITORY: Final = Path(__file__).resolve().parents[2]
UNIVERSE: Final = "tiers:\n  critical: [AAPL, MSFT]\n  standard: [KO]\n  low_priority: [XOM]\n"
NOON: Final = "2026-03-11T15:30:00Z"  # a Wednesday, in the session

_MARK: Final = "END_TO_END_PROJECT"  # in the environment of every process that a test's project starts
_OURS: Final = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Running:
    """A running command; its output goes to files."""

    def __init__(self, project: Project, arguments: list[str], environment: dict[str, str]) -> None:
        number = len(list(project.root.glob("*.out")))
        self._out, self._err = project.root / f"{number}.out", project.root / f"{number}.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = psutil.Popen(
                arguments, cwd=project.root, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def says(self, text: str) -> None:
        """Wait until the command has written `text`; fail if it ends first."""

        def said() -> bool:
            ended = self.process.poll() is not None
            if text in self._out.read_text():
                return True
            assert not ended, f"ended without {text!r}: {self._out.read_text()}{self._err.read_text()}"
            return False

        until(said)

    def family(self) -> list[psutil.Process]:
        """Return the command and all processes that it started and that still run."""
        return [self.process, *self.process.children(recursive=True)]

    def end(self, *signals: signal.Signals, patience: float = PATIENCE) -> Done:
        """Send signals, if any, and wait until the command has ended."""
        for number in signals:
            self.process.send_signal(number)
        code = self.process.wait(patience)
        return Done(code, self._out.read_text(), self._err.read_text())


class Project:
    """A project folder; `lines` are the user's own settings in its `.env`.

    Attributes:
        root: the folder.
        variables: exported to each command.
    """

    def __init__(self, root: Path, *, universe: str = UNIVERSE, **lines: object) -> None:
        self.root = root
        self.variables: dict[str, object] = {}
        root.mkdir(parents=True, exist_ok=True)
        for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml", "sql"):
            (root / name).symlink_to(REPOSITORY / name)
        (root / "universe.yaml").write_text(universe)
        self.ui_port, self.api_port = free_ports(2)
        settings = {
            "MARKET_DATA_UNIVERSE": root / "universe.yaml",
            "MARKET_DATA_UI_PORT": self.ui_port,
            "MARKET_DATA_API_PORT": self.api_port,
            "MARKET_DATA_HISTORY_DAYS": 10,
            "MARKET_DATA_AS_OF": NOON,
            **lines,
        }
        (root / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    @property
    def state(self) -> Path:
        return self.root / ".market-data"

    @property
    def settings(self) -> Settings:
        return load_settings(project_root=self.root)

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The project's server; started from here, it does not flush to disk."""
        return EmbeddedPostgres(self.state / "postgres", durable=False)

    def start(self, command: str, *arguments: str, **variables: object) -> Running:
        """Start a command in the folder, with `variables` exported too and nothing else of ours."""
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment |= {name: str(value) for name, value in {**self.variables, **variables}.items()}
        # For when the package is not installed but tested from its folder.
        environment |= {"PYTHONPATH": str(REPOSITORY), _MARK: str(self.root)}
        return Running(self, [*program(command), *arguments], environment)

    def run(self, command: str, *arguments: str, **variables: object) -> Done:
        """Run a command to its end."""
        return self.start(command, *arguments, **variables).end()

    def query(self, statement: str, *parameters: object, as_owner: bool = False) -> list[dict[str, Any]]:
        """Return rows of the project's market data; the owner's role may do what the pipeline's may not."""
        url = self.settings.owner_url if as_owner else self.settings.database_url
        with psycopg.connect(url, row_factory=dict_row) as connection:
            connection.execute("select set_config('TimeZone', 'UTC', false)")
            return connection.execute(statement, parameters).fetchall()  # type: ignore[arg-type]

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """Open the project's Dagster instance in this process."""
        before = os.environ.get("DAGSTER_POSTGRES_URL")
        os.environ["DAGSTER_POSTGRES_URL"] = self.settings.dagster_postgres_url
        try:
            with dg.DagsterInstance.from_config(str(self.root)) as instance:
                yield instance
        finally:
            del os.environ["DAGSTER_POSTGRES_URL"]
            if before is not None:
                os.environ["DAGSTER_POSTGRES_URL"] = before

    def runs(self, trigger: str | None = None) -> list[dg.DagsterRun]:
        """Return all runs, the newest first; only those of `trigger`, if given: sensors start runs too."""
        tags = {"market_data/trigger": trigger} if trigger else {}
        with self.instance() as instance:
            return list(instance.get_runs(dg.RunsFilter(tags=tags)))

    def processes(self) -> list[psutil.Process]:
        """Return every process that runs for this project, except its PostgreSQL, which inherits no environment."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.environ().get(_MARK) == str(self.root) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def named(self, word: str) -> list[psutil.Process]:
        """Return the project's processes whose command line contains `word`, without what they have forked.

        A fork has its parent's command line: a run that the code server works on, or what is about to become another
        program.
        """
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if any(word in argument for argument in process.cmdline()[:6]):
                    found[process.pid] = (process, process.ppid())
        return [process for process, parent in found.values() if parent not in found]

    def clean_up(self) -> None:
        """End what a failed test left running."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        stop_sandbox_in(self.state)  # one that a command without the mark has started
        self.postgres.stop()


def program(name: str) -> list[str]:
    """Return how to start an installed program, or one of ours if the package is not installed."""
    try:
        distribution("market-data-pipeline")
    except PackageNotFoundError:
        if name in _OURS:
            module, function = _OURS[name].split(":")
            code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
            return [sys.executable, "-c", code]
    return [str(Path(sys.executable).with_name(name))]


def sentence(done: Done) -> str:
    """Check that a failed command printed one line to standard error and no traceback, and return that line."""
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err + done.out
    assert "Traceback" not in done.out + done.err
    assert "failed unexpectedly" not in lines[0]
    return lines[0]
