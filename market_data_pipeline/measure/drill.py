"""`market-data drill`: cause the outages that we promise to recover from, and measure how long each lasts.

Everything is real (processes, database, vendor's refusals) and in a scratch project. Add here: what is reported of a
drill. Keep out: the outages (drill_outages) and promises (domain.objectives).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline import __version__
from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, Outage
from market_data_pipeline.measure.drill_outages import Course, ready, rehearse
from market_data_pipeline.measure.drill_project import OverdueError, running_project
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.up import until_terminated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.settings import Settings

# From nothing to a loaded project takes 15 s here, and to a calm one after an outage a minute: run monitoring looks
# twice a minute. A machine under load takes its time.
_READY_SECONDS: Final = 300.0


def run_drill(settings: Settings, outages: Sequence[Outage]) -> dict[str, Any]:
    """Cause the outages one after the other and return the document; what it prints meanwhile is for people.

    An outage that is not over within its RTO is missed; the next one is tried when everything works again by itself.

    Args:
        settings: of the user's project, of which only limits, folder and `dagster.yaml` are used.
        outages: which; all when empty.

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
                    reports.append(outage_report(outage, None, f"not tried: waited in vain for {overdue}"))
                    continue
                console.print(outage.value, style="bold")
                course, late = rehearse(project, outage, lambda text: console.print(text, markup=False))
                reports.append(outage_report(outage, course, f"waited in vain for: {late}" if late else None))
            console.print("Removing the scratch project ...")
    return {
        "timestamp": datetime.now(UTC).replace(microsecond=0),
        "version": __version__,
        "processors": os.cpu_count(),
        "outages": reports,
        "kept": all(report["kept"] for report in reports),
    }


def outage_report(outage: Outage, course: Course | None, problem: str | None) -> dict[str, Any]:
    """Return what the document says of an outage; `problem` says why it was not followed to its end."""
    promise = RECOVERY_OBJECTIVES[outage]
    took = course.steps[-1][0] if course is not None and problem is None else None
    return {
        "outage": outage.value,
        "rto_seconds": int(promise.rto.total_seconds()),
        "recovery_seconds": None if took is None else round(took, 1),
        "kept": took is not None and took <= promise.rto.total_seconds(),
        "problem": problem,
        "symptom": promise.symptom,
        "procedure": list(promise.procedure),
        "steps": [{"after_seconds": round(after, 1), "what": what} for after, what in (course.steps if course else ())],
    }
