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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import psutil
import sqlalchemy as sa

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, TIER_OBJECTIVES, Outage
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure.drill import ready
from market_data_pipeline.measure.drill_project import OverdueError, running_project
from market_data_pipeline.measure.speed import SPEED
from market_data_pipeline.reports.completeness import held
from market_data_pipeline.reports.freshness import staleness_report
from market_data_pipeline.reports.health import TICK_TOLERANCE
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.up import until_terminated

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    alerts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    longest_outage: float = 0.0
    hit: dict[str, float] = field(default_factory=dict)  # when each process of `up` was last killed or ended, by name
    returned: dict[str, float] = field(default_factory=dict)  # and when an alert last said that it runs again

    def note(self, what: str) -> None:
        """Record what has just happened, and print it."""
        after = time.monotonic() - self.began
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
        address = stack.enter_context(_receiver(course))
        project = stack.enter_context(
            running_project(
                settings,
                universe=_UNIVERSE,
                files={"sitecustomize.py": _HASTEN},
                MARKET_DATA_ALERT_URLS=address,
            )
        )
        project.on_restart = course.problem
        ready(project, _READY_SECONDS)
        course.began = time.monotonic()
        course.alerts.clear()
        bars = _bars(project)
        watching = threading.Event()
        watcher = threading.Thread(target=_watch, args=(project, course, watching), daemon=True)
        watcher.start()
        _hit(project, course, minutes, random.Random(seed))  # noqa: S311 - a course, not a secret
        course.note("the last victim was hit; waiting until everything is in order")
        _settle(project, course)
        watching.set()
        watcher.join(60)
        _judge_alerts(course)
        if _bars(project) < bars:
            course.problem("bars were lost")
        screen().print("Removing the scratch project ...")
    return {
        "timestamp": datetime.now(UTC).replace(microsecond=0),
        "version": __version__,
        "minutes": minutes,
        "seed": seed,
        "speed": SPEED,
        "events": course.events,
        "alerts": course.alerts,
        "longest_outage_seconds": round(course.longest_outage, 1),
        "problems": course.problems,
        "kept": not course.problems,
    }


_Paused: TypeAlias = tuple[float, psutil.Process, str]  # until when, which, and its name


def _hit(project: DrillProject, course: _Course, minutes: float, chance: random.Random) -> None:
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
                    course.hit[_CALLED[name]] = time.monotonic()
        while time.monotonic() < min(now + every, end):
            paused = _continue(course, paused)
            project.keep_up()
            project.keep_vendor()
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
        status, now = project.health(), time.monotonic()
        if status == 200:
            down_since = None
            with suppress(DatabaseUnavailableError, sa.exc.DBAPIError):
                for one in project.evaluations():
                    age = datetime.now(UTC) - (one.due_at or datetime.now(UTC))
                    if one.running and age > 2 * TICK_TOLERANCE:
                        course.problem(f"healthy although {one.name} was not evaluated for {age.total_seconds():.0f} s")
        else:
            down_since = now if down_since is None else down_since
            course.longest_outage = max(course.longest_outage, now - down_since)


def _settle(project: DrillProject, course: _Course) -> None:
    """Wait until every series is inside its RPO, every run of the course has ended, and every outage was alerted."""
    last = datetime.now(UTC)

    def in_order() -> bool:
        project.keep_up()
        is_over = project.health() == 200 and not project.unfinished_since(last)
        return is_over and not _late(project) and not _open_alerts(course) and not _untold(course)

    try:
        project.wait_for("everything to be in order", in_order, _SETTLED_SECONDS)
    except OverdueError:
        course.problem(
            f"not in order after {_SETTLED_SECONDS:.0f} s: health {project.health()}, "
            f"runs without an end {project.unfinished_since(last)}, late series {_late(project)}, "
            f"outages without an end {sorted(_open_alerts(course))}, recoveries without an alert {_untold(course)}"
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


# What begins an outage and what ends it: the parts of a title between which the name of what is down stands.
_BEGINS: Final = (" is down: ", " cannot be reached", " are not evaluated: ")
_ENDS: Final = (" runs again after ", " answers again after ", " are evaluated again after ")


def _subject(title: str, parts: tuple[str, ...]) -> str | None:
    return next((title.partition(part)[0] for part in parts if part in title), None)


def _open_alerts(course: _Course) -> set[str]:
    """Return what was alerted as down and not yet as recovered."""
    down: set[str] = set()
    for title in list(course.alerts):
        if subject := _subject(title, _BEGINS):
            down.add(subject)
        elif subject := _subject(title, _ENDS):
            down.discard(subject)
    return down


def _untold(course: _Course) -> list[str]:
    """Return the processes that were killed or ended, and of which no alert has said since that they run again."""
    return [name for name, at in course.hit.items() if course.returned.get(name, 0.0) < at]


def _judge_alerts(course: _Course) -> None:
    """Check that no outage was alerted twice, and that every long one was alerted."""
    down: set[str] = set()
    for title in course.alerts:
        if subject := _subject(title, _BEGINS):
            if subject in down:
                course.problem(f"alerted twice: {title}")
            down.add(subject)
        elif subject := _subject(title, _ENDS):
            down.discard(subject)
    shortest = min(RECOVERY_OBJECTIVES[one].rto for one in (Outage.SCHEDULER_CRASH, Outage.DATABASE_CONNECTION_LOSS))
    alerted = any(_subject(title, (*_BEGINS, *_ENDS)) for title in course.alerts)
    if course.longest_outage > shortest.total_seconds() and not alerted:
        course.problem(f"an outage of {course.longest_outage:.0f} s was never alerted")


def _bars(project: DrillProject) -> int:
    return sum(of_tier.bars for of_tier in held(project.engine).values())


@contextmanager
def _receiver(course: _Course) -> Iterator[str]:
    """Receive alerts while the block runs; yield the Apprise address."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            title = str(msgspec.json.decode(body)["title"])
            course.alerts.append(title)
            if " again after " in title:
                course.returned[title.partition(" ")[0]] = time.monotonic()
            course.note(f"alert: {title}")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the screen for the course."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"json://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
