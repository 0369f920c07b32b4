"""What `market-data up` keeps running: a process that ends or no longer answers is restarted, with an alert.

Each service is checked every few seconds, in a thread of its own so that one that hangs delays nothing else. Several
missed answers in a row count, not the time between them: after a laptop was asleep for an hour, everything answers. A
process that is stopped (SIGSTOP, a debugger that was left) is continued. A restart waits twice as long each time, and
a process that did not answer in the time it had to start gets twice that time. A long outage is alerted when it is
noticed and when it is over, a short one once, when it is over.

Add here: what is done about a service that is down. Which services there are is in up and daemon.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import psutil

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone
from market_data_pipeline.reports.objectives import span
from market_data_pipeline.runtime.outage import Outage
from market_data_pipeline.runtime.processes import START_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from market_data_pipeline.runtime.processes import Child, Processes
    from market_data_pipeline.settings import Settings

T = TypeVar("T")

ASK_EVERY: Final = 5.0  # seconds; an answer costs milliseconds
_MISSED: Final = 6  # answers in a row: half a minute, or more where each attempt takes its time limit
_TOLD_AFTER: Final = 30.0  # seconds; most restarts take ten, and need one message instead of two
_SETTLED_AFTER: Final = 30.0  # seconds of answers; what fails again earlier is still the same outage
_FIRST_WAIT: Final = 1.0  # seconds before a restart, doubled with each
_LONGEST_WAIT: Final = 300.0
_FORGIVEN_AFTER: Final = 900.0  # seconds without an outage after which the waits begin again
_LONGEST_START: Final = 16  # times START_SECONDS: a quarter of an hour, on a machine that is very slow
_ENDED_BY_OTHERS: Final = (-signal.SIGKILL, -signal.SIGTERM)  # out of memory, or by hand: a restart may help
_STOPPED_LOOKS: Final = 4  # at least fifteen seconds; to stop a process on purpose, end `up` first


@dataclass
class Service:
    """A process to keep running.

    Attributes:
        child: the process.
        what: what stops when it is down, for people; begins a sentence.
        answers: asks it, within seconds.
        prepare: called before each restart; makes the files that the process reads, if a cleaner removed them.
    """

    child: Child
    what: str
    answers: Callable[[], bool]
    prepare: Callable[[], object] = lambda: None
    was_ready: bool = False
    is_ready: bool = False  # whether it has answered since its last start
    patience: int = 1  # how many times START_SECONDS it may take to answer after a start
    missed: int = 0
    asked_at: float = 0.0
    asked: _Call[bool] | None = None


@dataclass
class _Down(Outage):
    """A service that is down, until it has answered for a while."""

    reason: str = ""
    restarts: int = 0
    over: float | None = None


class Supervisor:
    """Keeps services running; `check` is called about twice a second and never waits.

    Args:
        settings: of the project.
        processes: of the command.
        say: prints a line on the screen.
        others: further processes whose stopped ones are continued, such as the database's.
        most_restarts: of one outage, for a command that has to end some time; None for any number.
    """

    def __init__(
        self,
        settings: Settings,
        processes: Processes,
        say: Callable[[str], None],
        others: Callable[[], Iterable[psutil.Process]] = lambda: (),
        most_restarts: int | None = None,
    ) -> None:
        self._settings = settings
        self._most_restarts = most_restarts
        self._processes = processes
        self._say = say
        self._others = others
        self._services: list[Service] = []
        self._outages: dict[str, _Down] = {}
        self._waits: dict[str, tuple[float, float]] = {}  # the next wait, and when the last outage began
        self._due: dict[str, float] = {}  # restarts
        self._stopped: dict[int, int] = {}
        self._looked_at = 0.0

    def keep(self, service: Service) -> None:
        """Keep a service running from now on."""
        self._services.append(service)

    def restart(self, name: str, reason: str) -> None:
        """Restart a service that answers but does not do its work."""
        for service in self._services:
            if service.child.name == name:
                self._fail(service, reason)

    def check(self) -> None:
        """Look at every service once and do what is due.

        Raises:
            PipelineError: a process ended by itself before it was ever ready, so that a restart would not help, or it
                was restarted as often as it may be.
        """
        now = time.monotonic()
        self._processes.check(kept={service.child.name for service in self._services})
        for service in self._services:
            self._look(service, now)
            self._tell_lasting(service, now)  # also of one that dies again before it is ever seen alive
        if now - self._looked_at >= ASK_EVERY:
            self._looked_at = now
            self._continue_stopped()
            self._processes.keep_private_folder()

    def _look(self, service: Service, now: float) -> None:
        name = service.child.name
        if name in self._due:
            if now >= self._due[name]:
                del self._due[name]
                self._start(service, now)
            return
        code = service.child.process.poll()
        if code is not None:
            if not service.was_ready and code not in _ENDED_BY_OTHERS:
                self._processes.check()
            self._fail(service, _ending(code))
            return
        if service.asked is not None and service.asked.done:
            answered, service.asked = service.asked.result(), None
            if answered:
                service.missed, service.was_ready, service.is_ready = 0, True, True
                self._recover(name, now)
            else:
                service.missed += 1
        if service.asked is None and now - service.asked_at >= ASK_EVERY:
            service.asked_at = now
            service.asked = _Call(service.answers)
        if service.is_ready and service.missed >= _MISSED:
            self._fail(service, "it no longer answered")
        # Missed answers, not seconds: those while everything was suspended do not count.
        elif not service.is_ready and service.missed * ASK_EVERY >= service.patience * START_SECONDS:
            had = service.patience * START_SECONDS
            service.patience = min(2 * service.patience, _LONGEST_START)
            may = service.patience * START_SECONDS
            self._fail(
                service, f"it did not answer within {had:.0f} s of its start, and may take {may:.0f} s next time"
            )

    def _fail(self, service: Service, reason: str) -> None:
        """Begin an outage, or go on with one, and plan the restart."""
        now, name = time.monotonic(), service.child.name
        outage = self._outages.setdefault(name, _Down(now, reason=reason))
        outage.over = None
        if self._most_restarts is not None and outage.restarts >= self._most_restarts:
            raise PipelineError(
                f"{name} was restarted {outage.restarts} times and does not work: {reason}. Its log is "
                f"{service.child.log}."
            )
        wait, failed_at = self._waits.get(name, (_FIRST_WAIT, now))
        if now - failed_at > _FORGIVEN_AFTER:
            wait = _FIRST_WAIT
        self._waits[name] = (min(2 * wait, _LONGEST_WAIT), now)
        self._due[name] = now + wait
        self._say(f"{name}: {reason}; it is restarted in {wait:.0f} s. Its log is {service.child.log}.")

    def _start(self, service: Service, now: float) -> None:
        try:
            service.prepare()
            self._processes.restart(service.child)
        except (OSError, psutil.Error) as error:  # no memory, no space, a program that is being replaced
            self._fail(service, f"it could not be started: {error}")
            return
        service.missed, service.is_ready, service.asked, service.asked_at = 0, False, None, now
        if outage := self._outages.get(service.child.name):
            outage.restarts += 1

    def _recover(self, name: str, now: float) -> None:
        outage = self._outages.get(name)
        if outage is None:
            return
        if outage.over is None:
            outage.over = now
            self._say(f"{name} answers again after {span(now - outage.began)}.")
        elif now - outage.over >= _SETTLED_AFTER:
            [service] = [one for one in self._services if one.child.name == name]
            over = _returned(self._settings, service, outage, outage.over - outage.began)
            if outage.send(self._settings.alert_urls, over):
                del self._outages[name]

    def _tell_lasting(self, service: Service, now: float) -> None:
        outage = self._outages.get(service.child.name)
        if outage is not None and outage.over is None and now - outage.began >= _TOLD_AFTER:
            outage.tell(self._settings.alert_urls, _lost(self._settings, service, outage))

    def _continue_stopped(self) -> None:
        """Continue processes that have been stopped for several looks."""
        roots = [service.child.process for service in self._services]
        found: dict[int, int] = {}
        for root in (*roots, *self._others()):
            with suppress(psutil.NoSuchProcess):
                for process in (root, *root.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        if process.status() == psutil.STATUS_STOPPED:
                            found[process.pid] = self._stopped.get(process.pid, 0) + 1
                            if found[process.pid] >= _STOPPED_LOOKS:
                                self._say(
                                    f"{process.name()} (process {process.pid}) was stopped; it has been continued."
                                )
                                process.send_signal(signal.SIGCONT)
        self._stopped = found


class Background:
    """Calls a function repeatedly in a thread of its own, so that one that has to wait delays nothing else."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._call: _Call[None] | None = None

    def check(self) -> None:
        """Call the function unless it is still under way; raise what the last call raised."""
        if self._call is not None and self._call.done:
            self._call.result()
            self._call = None
        if self._call is None:
            self._call = _Call(self._function)


class _Call(Generic[T]):
    """One call of a function in a thread that does not keep this process from ending."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._found: list[T] = []
        self._error: BaseException | None = None
        self.done = False
        threading.Thread(target=self._run, name="supervision", daemon=True).start()

    def _run(self) -> None:
        try:
            self._found.append(self._function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is taken
            self._error = error
        self.done = True

    def result(self) -> T:
        """Return what the function returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._found[0]


def _ending(code: int) -> str:
    if code >= 0:
        return f"it ended with code {code}"
    try:
        return f"it was killed ({signal.Signals(-code).name})"
    except ValueError:
        return f"it was killed (signal {-code})"


def _lost(settings: Settings, service: Service, outage: _Down) -> Alert:
    name = service.child.name
    return Alert(
        f"{name} is down: {outage.reason}",
        (
            f"{service.what}. `market-data up` has restarted it {outage.restarts} times and keeps trying; "
            f"its log is logs/{service.child.log.name}.",
        ),
        link=settings.ui_url,
    )


def _returned(settings: Settings, service: Service, outage: _Down, seconds: float) -> Alert:
    name = service.child.name
    after = span(timedelta(seconds=max(seconds, 1.0)).total_seconds())
    if outage.alerted:
        return Alert(f"{name} runs again after {after}", tone=Tone.RECOVERY, link=settings.ui_url)
    said = f"{name} was started again after {after}: {outage.reason}"
    return Alert(said, (f"Meanwhile: {service.what.lower()}.",), Tone.WARNING, settings.ui_url)
