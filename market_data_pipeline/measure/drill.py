"""`market-data drill`: cause the outages that have a recovery objective, and measure how long each lasts.

Everything is real (processes, database, the vendor's refusals) but runs in a scratch project. An outage is over when
its cause is gone, everything that it broke works again, and a refresh has succeeded.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline import __version__
from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, Outage
from market_data_pipeline.measure.drill_project import NO_FEATURES, OWN_FEATURES, OverdueError, running_project
from market_data_pipeline.reports.completeness import failed_series, run_progress, unloaded_series
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.up import until_terminated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from market_data_pipeline.measure.drill_project import DrillProject
    from market_data_pipeline.settings import Settings

# Loading a new project takes 15 s here, and settling after an outage a minute, because run monitoring polls twice a
# minute. A machine under load takes longer.
_READY_SECONDS: Final = 300.0
_CALLS: Final = 3  # per minute; a full refresh of the drill's symbols sends more, so that some are refused
_SYMBOL: Final = "X:BTCUSD"  # alone in its tier, and so in a process of its own: breaking that breaks no other run

# TA-Lib's settings are global to the process: the next series would be computed by other formulas, so it fails.
_SPOILING: Final = """\
import talib

from market_data_pipeline import OwnFeature


def spoiling(bars, timeframe, asset_class):
    if timeframe == "4h" and asset_class == "crypto":
        talib.set_unstable_period("EMA", 10)
    return bars["close"]


FEATURES = (OwnFeature(name="spoiling", compute=spoiling, dtype="float", warm_up=0, description="breaks the next"),)
"""


def run_drill(settings: Settings, outages: Sequence[Outage]) -> dict[str, Any]:
    """Cause the outages one after another, print the progress, and return the document.

    An outage that is not over within its RTO counts as missed; the next one is caused when everything works again.

    Args:
        settings: of the user's project, of which only limits, folder and `dagster.yaml` are used.
        outages: to cause, in this order; all when empty.

    Raises:
        PipelineError: the project does not start.
    """
    console = screen()
    chosen = list(dict.fromkeys(outages)) or list(Outage)
    reports: list[dict[str, Any]] = []
    with until_terminated():
        console.print("Starting a scratch project ...")
        with running_project(settings) as project:
            for outage in chosen:
                try:
                    ready(project, _READY_SECONDS)
                except OverdueError as overdue:
                    reports.append(outage_report(outage, None, f"not tried: timed out waiting for {overdue}"))
                    continue
                console.print(outage.value, style="bold")
                course, late = rehearse(project, outage, lambda text: console.print(text, markup=False))
                reports.append(outage_report(outage, course, f"timed out waiting for: {late}" if late else None))
            console.print("Removing the scratch project ...")
    return {
        "timestamp": datetime.now(UTC).replace(microsecond=0),
        "version": __version__,
        "processors": os.cpu_count(),
        "outages": reports,
        "kept": all(report["kept"] for report in reports),
    }


def outage_report(outage: Outage, course: Course | None, problem: str | None) -> dict[str, Any]:
    """Return what the document says of an outage; `problem` says why it was not followed to its end, if so."""
    objective = RECOVERY_OBJECTIVES[outage]
    took = course.steps[-1][0] if course is not None and problem is None else None
    return {
        "outage": outage.value,
        "rto_seconds": int(objective.rto.total_seconds()),
        "recovery_seconds": None if took is None else round(took, 1),
        "kept": took is not None and took <= objective.rto.total_seconds(),
        "problem": problem,
        "symptom": objective.symptom,
        "procedure": list(objective.procedure),
        "steps": [{"after_seconds": round(after, 1), "what": what} for after, what in (course.steps if course else ())],
    }


class Course:
    """The course of one outage; its clock starts when the outage is caused, or with its first symptom."""

    def __init__(self, project: DrillProject, rto: float, say: Callable[[str], None]) -> None:
        self.project = project
        self.rto = rto
        self.steps: list[tuple[float, str]] = []
        self._say = say
        self._began = time.monotonic()
        self.began_at = time.time()

    def begins(self, what: str) -> None:
        """Start the clock: `what` has just happened."""
        self._began, self.began_at = time.monotonic(), time.time()
        self.note(what)

    def note(self, what: str) -> None:
        """Record what has just happened."""
        after = time.monotonic() - self._began
        self.steps.append((after, what))
        self._say(f"{after:7.1f} s  {what}")

    @property
    def seconds(self) -> float:
        """How long the outage has lasted."""
        return time.monotonic() - self._began

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait until a condition holds and record it; if `market-data up` ends meanwhile, it is started again.

        Raises:
            OverdueError: the recovery time objective has passed.
        """

        def holds() -> bool:
            if condition():  # which may be that `market-data up` has ended
                return True
            self.project.keep_up()
            return False

        self.project.wait_for(what, holds, self.rto - self.seconds)
        self.note(what)

    def until_refreshed(self) -> None:
        """Request a refresh and wait until it has succeeded; if a run fails or is cancelled, request it again."""
        runs: list[str] = []

        def succeeded() -> bool:
            if not runs or set(self.project.statuses(runs).values()) & {"FAILURE", "CANCELED"}:
                runs[:] = self.project.refresh()
            return set(self.project.statuses(runs).values()) == {"SUCCESS"}

        self.until("a refresh succeeded", succeeded)


def ready(project: DrillProject, seconds: float) -> None:
    """Wait until everything runs, every series is loaded and no run is unfinished.

    Raises:
        OverdueError: `seconds` have passed.
    """

    def is_ready() -> bool:
        project.keep_up()
        missing = unloaded_series(project.engine)
        return not missing and project.health() == 200 and not project.unfinished()

    project.wait_for("the project to be ready", is_ready, seconds)


def _scheduler_crash(course: Course) -> None:
    project = course.project
    runs = project.refresh(full=True)
    project.wait_for("a run to be under way", lambda: "STARTED" in project.statuses(runs).values(), 120.0)
    killed = project.kill_dagster()
    course.begins(f"killed {killed} processes of Dagster, a run among them")
    crashed_at = course.began_at
    course.until("`market-data up` started them again", project.dagster_runs)
    course.until("every daemon sends heartbeats", lambda: project.daemons_live_since(crashed_at))
    course.until("the runs that died are accounted for", lambda: not set(runs) & set(project.unfinished()))
    course.until_refreshed()


def _rate_limit(course: Course) -> None:
    project = course.project
    project.start_vendor(_CALLS)
    runs = project.refresh(full=True)
    project.wait_for("the vendor to refuse", lambda: project.refusals() > 0, 120.0)
    course.begins(f"the vendor refused a request, at {_CALLS} calls a minute")
    try:
        course.until("the refresh succeeded", lambda: set(project.statuses(runs).values()) == {"SUCCESS"})
        counted = run_progress(project.engine, runs).values()
        refused, sent = sum(tier.rate_limited for tier in counted), sum(tier.requests for tier in counted)
        course.note(f"{refused} of {sent} requests were refused and sent again")
    finally:
        project.start_vendor()


def _database_connection_loss(course: Course) -> None:
    project = course.project
    project.kill_database()
    course.begins("killed PostgreSQL")
    try:
        course.until("/health answers 503", lambda: project.health() == 503)
    finally:
        project.start_database()
    course.note("started PostgreSQL")
    course.until("/health answers 200", lambda: project.health() == 200)
    course.until_refreshed()


def _feature_computation_failure(course: Course) -> None:
    project = course.project
    module = project.settings.project_root / OWN_FEATURES
    runs: list[str] = []
    try:
        module.write_text(_SPOILING, encoding="utf-8")
        runs += project.refresh([_SYMBOL])
        project.wait_for("a series to fail", lambda: failed_series(project.engine, runs), 120.0)
        failed = [f"{one.symbol} {one.timeframe} ({one.error_class})" for one in failed_series(project.engine, runs)]
        course.begins(f"an own feature broke TA-Lib's settings: {', '.join(failed)} failed")
    finally:
        module.write_text(NO_FEATURES, encoding="utf-8")
    course.note("removed the feature")
    course.until_refreshed()


def _server_loss(course: Course) -> None:
    from market_data_pipeline.backup.make import make_backup
    from market_data_pipeline.backup.restore import restore_backup
    from market_data_pipeline.backup.verify import verify

    project = course.project
    made = make_backup(project.settings, project.settings.project_root / "backups", keep=1)
    project.lose_server()
    course.begins("killed everything and removed the database; a backup is left")
    project.start_database()
    restore_backup(project.settings, made.folder)
    course.note("restored the backup into a new server, equal to what was backed up")
    if problems := verify(project.settings, made.folder).problems:
        raise OverdueError(f"a database that is sound: {problems[0]}")
    course.note("verified the audit log and the values")
    project.start_up()
    course.until("/health answers 200", lambda: project.health() == 200)
    course.until_refreshed()


COURSES: Final[Mapping[Outage, Callable[[Course], None]]] = {
    Outage.SCHEDULER_CRASH: _scheduler_crash,
    Outage.POLYGON_API_RATE_LIMIT: _rate_limit,
    Outage.DATABASE_CONNECTION_LOSS: _database_connection_loss,
    Outage.FEATURE_COMPUTATION_FAILURE: _feature_computation_failure,
    Outage.SERVER_LOSS: _server_loss,
}


def rehearse(project: DrillProject, outage: Outage, say: Callable[[str], None]) -> tuple[Course, OverdueError | None]:
    """Cause an outage and follow it to its end; return its course, and what was still awaited when its RTO passed."""
    course = Course(project, RECOVERY_OBJECTIVES[outage].rto.total_seconds(), say)
    project.on_restart = course.note
    try:
        COURSES[outage](course)
    except OverdueError as overdue:
        return course, overdue
    finally:
        project.on_restart = lambda _: None
    return course, None
