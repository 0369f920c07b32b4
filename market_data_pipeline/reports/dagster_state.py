"""What the reports need of Dagster: its runs, daemons and schedules, as plain values.

Reports and the read API know only this protocol; `orchestration.dagster_internals.StoredDagsterState` implements it on
Dagster's storage, and the process that starts them passes it in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Run:
    """One run; instants are aware UTC, None for a stage that it has not reached.

    Attributes:
        trigger: what started it; `orchestration.provenance` defines it and the next three.
        status: Dagster's name for it: QUEUED, STARTED, SUCCESS, FAILURE, CANCELED, …
        failure: the first line of the error; None unless it failed.
    """

    run_id: str
    job: str
    trigger: str
    requested_by: str
    reason: str
    series: str
    status: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    failure: str | None


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of the daemons that the instance needs."""

    name: str
    alive: bool
    last_heartbeat: datetime | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule and its last tick."""

    name: str
    cron: str
    timezone: str
    running: bool
    last_tick_at: datetime | None
    last_tick_status: str | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """When a schedule or sensor was last evaluated, and when it has to be evaluated again.

    Attributes:
        every: when it is due, for people: `*/15 * * * * UTC`, `every 60 s`.
        running: False when a user has stopped it.
        evaluated_at: the last tick that was evaluated without an error; None when there is none.
        attempted_at: the last tick; None when there is none.
        due_at: when the next tick after `evaluated_at` is due; None for a first tick that is due now.
    """

    name: str
    every: str
    running: bool
    evaluated_at: datetime | None
    attempted_at: datetime | None
    due_at: datetime | None


class DagsterState(Protocol):
    """The queries; each raises `DatabaseUnavailableError` when Dagster's storage cannot be read."""

    def open(self) -> None:
        """Connect now, which takes about a second, rather than at the first query."""

    def runs(self, limit: int, jobs: tuple[str, ...] = ()) -> tuple[Run, ...]:
        """Return the newest `limit` runs, newest first; only those of `jobs` if any are named."""

    def run(self, beginning: str) -> Run | None:
        """Return the newest run whose id begins with `beginning`; None when there is none."""

    def daemons(self) -> tuple[Daemon, ...]:
        """Return the daemons that the instance needs."""

    def second_daemon(self) -> str | None:
        """Return which daemon serves the storage beside the project's own, for people; None when there is none."""

    def schedules(self) -> tuple[Schedule, ...]:
        """Return the tiers' schedules."""

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Return when each schedule and sensor was evaluated, those that never were included."""

    def close(self) -> None:
        """Close the connections."""
