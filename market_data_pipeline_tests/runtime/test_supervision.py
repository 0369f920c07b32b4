"""Processes that are killed, stopped or hang while `up` supervises them: real processes, alerts to a real webhook."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.measure.alert_receiver import AlertReceiver as Webhook
from market_data_pipeline.measure.alert_receiver import alert_receiver as webhook
from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.process_identity import is_alive
from market_data_pipeline.reports.dagster_state import Evaluation
from market_data_pipeline.runtime import evaluation_watch, supervision
from market_data_pipeline.runtime.evaluation_watch import EvaluationWatch
from market_data_pipeline.runtime.log_files import bound_logs
from market_data_pipeline.runtime.processes import Processes, commands
from market_data_pipeline.runtime.supervision import Service, Supervisor
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.end_to_end.conftest import folder
from market_data_pipeline_tests.end_to_end.project import REPOSITORY
from market_data_pipeline_tests.waiting import PATIENCE, until

SERVICE = """
import os, socket, sys, time
while len(sys.argv) > 2 and not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()[0].sendall(b"here")
"""


@dataclass
class World:
    supervisor: Supervisor
    processes: Processes
    service: Service
    hook: Webhook
    said: list[str]

    def until(self, condition: Callable[[], object]) -> None:
        """Supervise until a condition holds."""

        def holds() -> bool:
            self.supervisor.check()
            return bool(condition())

        until(holds)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # How long something takes here must not matter: the tests of a limit make that one short.
    for name, value in {
        "ASK_EVERY": 0.05,
        "_MISSED": 1_000_000,
        "_TOLD_AFTER": 10 * PATIENCE,
        "_SETTLED_AFTER": 0.3,
        "_FIRST_WAIT": 0.05,
        "START_SECONDS": 10 * PATIENCE,
    }.items():
        monkeypatch.setattr(supervision, name, value)
    [port] = free_ports(1)

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
                return connection.recv(4) == b"here"
        except OSError:
            return False

    processes, said = Processes(tmp_path, "up"), list[str]()
    with webhook() as hook, processes.recorded():
        child = processes.start("service", [sys.executable, "-c", SERVICE, str(port)], cwd=tmp_path, environment={})
        supervisor = Supervisor(Settings(alert_urls=[hook.address()]), processes, said.append)
        service = Service(child, "Nobody is served", answers)
        supervisor.keep(service)
        made = World(supervisor, processes, service, hook, said)
        made.until(lambda: service.was_ready)
        yield made
        processes.stop()


def test_a_killed_process_runs_again_and_that_is_told_once(world: World) -> None:
    killed = world.service.child.process.pid
    world.service.child.process.kill()
    world.until(lambda: world.hook.received)
    [message] = world.hook.received
    assert message["title"].startswith("service was started again after ")
    assert message["title"].endswith("it was killed (SIGKILL)")
    assert message["type"] == "warning"
    assert world.service.answers()
    assert world.service.child.process.pid != killed
    [record] = commands(world.processes.state)
    assert {process.pid for process in record.processes} == {os.getpid(), world.service.child.process.pid}


def test_an_outage_that_lasts_is_told_once_with_its_return(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_TOLD_AFTER", 0.5)
    working = world.service.child.command
    world.service.child.command = [sys.executable, "-c", "raise SystemExit('out of memory')"]
    world.service.child.process.kill()
    world.until(lambda: world.hook.received)
    restarts = len(world.said)
    world.until(lambda: len(world.said) > restarts)  # it goes on trying
    world.service.child.command = working
    world.until(lambda: len(world.hook.received) > 1)
    lost, returned = world.hook.received
    assert lost["title"] == "service is down: it was killed (SIGKILL)"
    assert "Nobody is served." in lost["message"]
    assert returned["title"].startswith("service runs again after ")
    assert (lost["type"], returned["type"]) == ("failure", "success")


def test_a_program_that_cannot_be_started_for_a_while_is_tried_again(world: World) -> None:
    working = world.service.child.command
    world.service.child.command = ["/nowhere/program", *working[1:]]  # as while it is being replaced
    world.service.child.process.kill()
    world.until(lambda: sum("it could not be started" in line for line in world.said) > 1)
    world.service.child.command = working
    world.until(world.service.answers)


def test_a_cleaner_of_temporary_folders_finds_nothing_old_and_what_is_removed_is_made_again(world: World) -> None:
    private = world.processes.private_folder()
    listener = private / "pymp-00000000" / "listener-00000000"
    listener.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(listener))
        for path in (listener, listener.parent, private):
            os.utime(path, (0, 0))
        world.until(lambda: all(path.stat().st_mtime > 0 for path in (listener, listener.parent, private)))
    shutil.rmtree(private)
    world.service.child.process.kill()
    world.until(world.service.answers)
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_process_that_is_stopped_is_continued(world: World) -> None:
    process = world.service.child.process
    process.send_signal(signal.SIGSTOP)
    world.until(lambda: any("has been continued" in line for line in world.said))
    world.until(world.service.answers)


def test_a_process_that_hangs_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_STOPPED_LOOKS", 1_000_000)  # stopped, it stands in for one that hangs
    monkeypatch.setattr(supervision, "_MISSED", 3)
    before = psutil.Process(world.service.child.process.pid)
    before.send_signal(signal.SIGSTOP)
    world.until(lambda: world.hook.received)
    assert "it no longer answered" in world.hook.received[0]["title"]
    assert not is_alive(before)


def test_a_process_that_needs_long_to_start_gets_longer_each_time_and_the_reason_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "START_SECONDS", 0.5)

    def limits() -> list[str]:
        return [line.split("within ")[1].split(";")[0] for line in world.said if "it did not answer within" in line]

    world.service.child.command = [*world.service.child.command, str(tmp_path / "may start")]
    world.service.child.process.kill()
    world.until(lambda: len(limits()) > 1)
    (tmp_path / "may start").touch()
    world.until(world.service.answers)  # restarted every 0.5 s, it never would on a slow machine
    assert limits()[:2] == [
        "0 s of its start, and may take 1 s next time",
        "1 s of its start, and may take 2 s next time",
    ]


def test_a_command_that_has_to_end_gives_up_on_a_process_that_dies_again_and_again(world: World) -> None:
    world.supervisor._most_restarts = 2
    world.service.child.command = [sys.executable, "-c", "raise SystemExit('out of memory')"]
    world.service.child.process.kill()
    with pytest.raises(PipelineError, match=r"^service was restarted 2 times and does not work: it ended with code 1"):
        world.until(lambda: False)


def test_a_process_that_never_starts_ends_the_command(world: World) -> None:
    child = world.processes.start("broken", [sys.executable, "-c", "print('no such file')"], cwd=Path(), environment={})
    world.supervisor.keep(Service(child, "Nothing", lambda: False))
    with pytest.raises(PipelineError, match=r"^broken ended with code 0: no such file"):
        world.until(lambda: False)


STARTER = """
import sys, time
from pathlib import Path
from market_data_pipeline.runtime.processes import Processes
processes = Processes(Path(sys.argv[1]), "up")
with processes.recorded():
    code = "import tempfile; print(tempfile.gettempdir())"
    child = processes.start("child", [sys.executable, "-c", code], cwd=Path(), environment={})
    child.process.wait()
    print(child.log.read_text(), end="", flush=True)
    time.sleep(600)
"""


def test_the_sockets_of_children_lie_in_the_projects_folder_and_go_with_a_killed_command() -> None:
    with folder() as state, subprocess.Popen(
        [sys.executable, "-c", STARTER, state], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as up:  # fmt: skip
        assert up.stdout is not None
        private = Path(up.stdout.readline().strip())
        up.kill()
        up.wait()
        assert private.parent == state / "tmp"
        assert private.stat().st_mode & 0o777 == 0o700
        [left] = commands(state)
        assert not left.is_running
        left.end()
        assert not private.exists()
        assert not commands(state)


def test_a_log_keeps_its_newest_half_while_a_process_writes_it(tmp_path: Path) -> None:
    log = tmp_path / "some.log"
    with log.open("ab") as output:
        for number in range(20_000):
            output.write(b"line %07d\n" % number)
            if number % 1_000 == 0:
                output.flush()
                bound_logs(tmp_path, largest=100_000)
    lines = log.read_text().splitlines()
    numbers = [int(line.split()[1]) for line in lines[1:]]  # the first may have been cut
    assert numbers == list(range(numbers[0], 20_000))
    assert 40_000 < log.stat().st_size < 120_000


class Ticks:
    """Dagster's state as a test wants it."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)
        self.attempted = True

    def evaluations(self) -> tuple[Evaluation, ...]:
        attempted = datetime.now(UTC) if self.attempted else self.at
        due = self.at + timedelta(seconds=60)
        return (Evaluation("staleness_sensor", "every 60 s", True, self.at, attempted, due),)


def test_ticks_that_stop_are_told_once_and_what_evaluates_them_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_watch, "_LOOKS", 2)
    ticks, restarts = Ticks(), list[str]()
    with webhook() as hook:
        settings = Settings(alert_urls=[hook.address()])
        watch = EvaluationWatch(settings, ticks, restarts.append, lambda _: None, every=0.0)  # type: ignore[arg-type]

        def look(times: int) -> list[str]:
            for _ in range(times):
                watch.check()
            return hook.titles()

        assert look(3) == []
        ticks.at -= timedelta(minutes=10)
        assert look(1) == []
        assert look(4) == ["Schedules and sensors are not evaluated: nothing is refreshed on time"]
        assert restarts == []  # they are attempted and fail: another process would not help
        ticks.attempted = False
        look(2)
        assert restarts == ["it evaluated nothing"]
        ticks.at, ticks.attempted = datetime.now(UTC), True
        [returned] = look(3)
        assert returned.startswith("Schedules and sensors are evaluated again after ")
        assert look(3) == []


MARKET_DATA = """#!{python}
import os, signal, sys, time
def end(number, frame):
    os.write(1, b"ended by " + signal.Signals(number).name.encode() + b"\\n")  # print may be at work already
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, end)
print("started", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_what_ends_make_run_ends_what_it_started(tmp_path: Path, name: str) -> None:
    for file in ("requirements-installer.lock", "requirements.lock", "pyproject.toml"):
        (tmp_path / file).touch()
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    program = programs / "market-data"
    program.write_text(MARKET_DATA.format(python=sys.executable))
    program.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    # A shell starts background commands, the test suite perhaps among them, with SIGINT ignored.
    heeding = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('make', sys.argv[1:])"
    makefile = str(REPOSITORY / "Makefile")
    command = [sys.executable, "-c", heeding, "make", "--no-print-directory", "-f", makefile, "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as make:
        assert make.stdout is not None
        assert make.stdout.readline() == "started\n"
        [child] = psutil.Process(make.pid).children()
        if name == "SIGTERM":  # of a supervisor or a person, to make alone; a terminal sends its signals to the group
            make.send_signal(signal.SIGTERM)
        else:
            os.killpg(make.pid, signal.Signals[name])
        assert make.stdout.readline().startswith("ended by")
        child.wait(30)
