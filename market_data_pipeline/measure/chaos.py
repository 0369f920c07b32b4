"""`market-data drill --chaos MINUTES`: processes chosen at random are killed, ended or suspended.

The cadences and RPOs of the tiers are a fifteenth of the usual ones, so an hour holds fifteen hours of schedules; bars
fall due at real speed, and recoveries take real time. The seed decides what is hit and when, but not how long processes
take, so two courses with one seed hit the same victims at slightly different moments of their work.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import psutil
import sqlalchemy as sa

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure.alert_receiver import alert_receiver
from market_data_pipeline.measure.chaos_verdict import (
    Moment,
    alert_moment,
    differing_bars,
    first_bars,
    judge_alerts,
    wrongly_ended,
)
from market_data_pipeline.measure.drill import ready
from market_data_pipeline.measure.drill_project import OverdueError, running_project
from market_data_pipeline.measure.speed import SPEED
from market_data_pipeline.reports.freshness import staleness_report
from market_data_pipeline.reports.health import TICK_TOLERANCE
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.up import until_terminated

if TYPE_CHECKING:
    from market_data_pipeline.measure.alert_receiver import AlertReceiver
    from market_data_pipeline.measure.drill_project import DrillProject
    from market_data_pipeline.settings import Settings

EVERY_SECONDS: Final = 120.0  # between two victims; a short course has six all the same
_FEWEST_VICTIMS: Final = 6
_UNIVERSE: Final = {Tier.CRITICAL: ("X:BTCUSD",), Tier.STANDARD: ("X:ETHUSD",), Tier.LOW_PRIORITY: ("AAPL",)}
_READY_SECONDS: Final = 300.0
_SETTLED_SECONDS: Final = 420.0  # the last victim's RTO, and a minute for its alert
_SUSPENDED_SECONDS: Final = (5.0, 60.0)  # `up` continues what is stopped after about twenty
# In every Python process of the project, before anything else.
_HASTEN: Final = "from market_data_pipeline.measure.speed import hasten\nhasten()\n"

_VICTIMS: Final = ("daemon", "code server", "run", "read API", "webserver", "PostgreSQL", "vendor")
_WORDS: Final = {
    "daemon": "dagster-daemon",
    "code server": "grpc",
    "read API": "market_data_pipeline.runtime.api",
    "webserver": "market_data_pipeline.runtime.webserver",
}
_CALLED: Final = {  # in alerts
    "daemon": "dagster-daemon",
    "code server": "dagster-code-server",
    "read API": "read-api",
    "webserver": "dagster-webserver",
}
_ACTIONS: Final = {"killed": signal.SIGKILL, "ended": signal.SIGTERM, "suspended": signal.SIGSTOP}


@dataclass
class _Course:
    """What happened and what was seen meanwhile."""

    began: float = field(default_factory=time.monotonic)
    events: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)  # hits; those of alerts are added from what was received
    alerts: list[tuple[float, str]] = field(default_factory=list)  # when, and the title
    unhealthy: list[tuple[float, float]] = field(default_factory=list)  # from when to when health did not answer 200

    @property
    def now(self) -> float:
        """The seconds since the course began."""
        return time.monotonic() - self.began

    @property
    def all_moments(self) -> list[Moment]:
        """The hits and what alerts said of outages, in no order."""
        return [*self.moments, *filter(None, (alert_moment(at, title) for at, title in self.alerts))]

    def hear(self, receiver: AlertReceiver) -> None:
        """Take note of the alerts that have arrived since the last call."""
        for message in receiver.received[len(self.alerts) :]:
            self.alerts.append((message["at"] - self.began, message["title"]))
            self.note(f"alert: {message['title']}")

    def note(self, what: str) -> None:
        """Record what has just happened, and print it."""
        after = self.now
        self.events.append({"after_seconds": round(after, 1), "what": what})
        screen().print(f"{after:7.1f} s  {what}", markup=False)

    def problem(self, what: str) -> None:
        """Record something that must not happen, once."""
        if what not in self.problems:
            self.problems.append(what)
            self.note(f"PROBLEM: {what}")


def run_chaos(settings: Settings, minutes: float, seed: int) -> dict[str, Any]:
    """Hit random processes for `minutes`, print the course, and return the document.

    Args:
        settings: of the user's project, of which only limits, folder and `dagster.yaml` are used.
        minutes: how long.
        seed: what decides which process is hit, and how.

    Raises:
        PipelineError: the project does not start.
    """
    course = _Course()
    with until_terminated(), ExitStack() as stack:
        screen().print("Starting a scratch project ...")
        receiver = stack.enter_context(alert_receiver())
        project = stack.enter_context(
            running_project(
                settings,
                universe=_UNIVERSE,
                files={"sitecustomize.py": _HASTEN},
                MARKET_DATA_ALERT_URLS=receiver.address(),
            )
        )
        project.on_restart = course.problem
        ready(project, _READY_SECONDS)
        course.began = time.monotonic()
        receiver.received.clear()
        first = first_bars(project.settings, [symbol for symbols in _UNIVERSE.values() for symbol in symbols])
        watching = threading.Event()
        watcher = threading.Thread(target=_watch, args=(project, course, watching), daemon=True)
        watcher.start()
        _hit(project, course, receiver, minutes, random.Random(seed))  # noqa: S311 - a course, not a secret
        course.note("the last victim was hit; waiting until everything is in order")
        _settle(project, course, receiver)
        watching.set()
        watcher.join(60)
        alerts = judge_alerts(course.all_moments)
        for wrong in (*alerts.wrong, *alerts.open, *wrongly_ended(course.unhealthy, course.all_moments)):
            course.problem(wrong)
        for wrong in differing_bars(project.settings, first):
            course.problem(wrong)
        screen().print("Removing the scratch project ...")
    return {
        "timestamp": datetime.now(UTC).replace(microsecond=0),
        "version": __version__,
        "minutes": minutes,
        "seed": seed,
        "speed": SPEED,
        "events": course.events,
        "alerts": [title for _, title in course.alerts],
        "longest_outage_seconds": round(max((end - began for began, end in course.unhealthy), default=0.0), 1),
        "problems": course.problems,
        "kept": not course.problems,
    }


_Paused: TypeAlias = tuple[float, psutil.Process, str]  # until when, which, and its name


def _hit(
    project: DrillProject, course: _Course, receiver: AlertReceiver, minutes: float, chance: random.Random
) -> None:
    """Hit a random process again and again until `minutes` have passed."""
    every = min(EVERY_SECONDS, minutes * 60 / _FEWEST_VICTIMS)
    end = time.monotonic() + minutes * 60
    paused: list[_Paused] = []
    while (now := time.monotonic()) < end:
        name, action = chance.choice(_VICTIMS), chance.choice(tuple(_ACTIONS))
        length = chance.uniform(*_SUSPENDED_SECONDS)
        if (victim := _victim(project, name)) is not None:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(_ACTIONS[action])
                course.note(f"{action} the {name} (process {victim.pid})")
                if action == "suspended":
                    paused.append((now + length, victim, name))
                elif name in _CALLED:
                    course.moments.append(Moment(course.now, "hit", _CALLED[name]))
                elif name == "PostgreSQL":
                    course.moments.append(Moment(course.now, "perhaps", "The market database"))
        while time.monotonic() < min(now + every, end):
            paused = _continue(course, paused)
            project.keep_up()
            project.keep_vendor()
            course.hear(receiver)
            time.sleep(0.2)
    _continue(course, [(0.0, victim, name) for _, victim, name in paused])
    project.keep_vendor()


def _continue(
    course: _Course, paused: list[tuple[float, psutil.Process, str]]
) -> list[tuple[float, psutil.Process, str]]:
    """Continue the processes whose suspension is over; return the others."""
    now, left = time.monotonic(), []
    for until, victim, name in paused:
        with suppress(psutil.NoSuchProcess):
            if now < until:
                left.append((until, victim, name))
            elif victim.status() == psutil.STATUS_STOPPED:
                victim.send_signal(signal.SIGCONT)
                course.note(f"continued the {name}")
    return left


def _victim(project: DrillProject, name: str) -> psutil.Process | None:
    """Return the process to hit; None while there is none, for example no run."""
    if name == "PostgreSQL":
        return project.database_process()
    if name == "vendor":
        return project.vendor_process()
    family = project.family()
    if name == "run":
        servers = [process for process in family if _has(process, "multiprocessing.forkserver")]
        return next((run for server in servers for run in _children(server)), None)
    return next((process for process in family if _has(process, _WORDS[name])), None)


def _has(process: psutil.Process, word: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any(
            argument.rpartition("/")[2].startswith(word) or word in argument for argument in process.cmdline()[:8]
        )
    return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children()
    return []


def _watch(project: DrillProject, course: _Course, over: threading.Event) -> None:
    """Check that `/health` never answers 200 while ticks are not evaluated, and measure outages."""
    down_since: float | None = None
    while not over.wait(1.0):
        if project.health() == 200:
            if down_since is not None:
                course.unhealthy.append((down_since, course.now))
                down_since = None
            with suppress(DatabaseUnavailableError, sa.exc.DBAPIError):
                for one in project.evaluations():
                    age = datetime.now(UTC) - (one.due_at or datetime.now(UTC))
                    if one.running and age > 2 * TICK_TOLERANCE:
                        course.problem(f"healthy although {one.name} was not evaluated for {age.total_seconds():.0f} s")
        else:
            down_since = course.now if down_since is None else down_since
    if down_since is not None:
        course.unhealthy.append((down_since, course.now))


def _settle(project: DrillProject, course: _Course, receiver: AlertReceiver) -> None:
    """Wait until every series is inside its RPO, every run of the course has ended, and every outage was alerted."""
    last = datetime.now(UTC)

    def in_order() -> bool:
        project.keep_up()
        course.hear(receiver)
        is_over = project.health() == 200 and not project.unfinished_since(last)
        return is_over and not _late(project) and not judge_alerts(course.all_moments).open

    try:
        project.wait_for("everything to be in order", in_order, _SETTLED_SECONDS)
    except OverdueError:
        course.problem(
            f"not in order after {_SETTLED_SECONDS:.0f} s: health {project.health()}, "
            f"runs without an end {project.unfinished_since(last)}, late series {_late(project)}, "
            f"alerts {judge_alerts(course.all_moments).open}"
        )
    else:
        course.note("every series is inside its RPO, every run has ended, every outage was alerted with its end")


def _late(project: DrillProject) -> list[str]:
    """Return the series outside the RPO of the course."""
    rpos = {tier.value: one.rpo / SPEED for tier, one in TIER_OBJECTIVES.items()}
    return [
        f"{one.symbol}|{one.timeframe}"
        for state in ("fresh", "aging", "stale", "missing")
        for one in getattr(staleness_report(project.engine, None).by_status, state)
        if one.staleness_seconds is None or timedelta(seconds=one.staleness_seconds) > rpos[one.tier]
    ]
