"""What a drill reports of an outage that does not end in time."""

from __future__ import annotations

import pytest

from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, Outage
from market_data_pipeline.measure import drill
from market_data_pipeline.measure.drill import COURSES, Course, OverdueError, outage_report, rehearse


class Broken:
    """A project that never recovers, and whose waits end at once."""

    on_restart = staticmethod(print)

    def wait_for(self, what: str, condition: object, seconds: float) -> None:
        raise OverdueError(what)


def test_every_outage_that_has_an_objective_is_drilled() -> None:
    assert set(COURSES) == set(RECOVERY_OBJECTIVES) == set(Outage)


def test_an_outage_that_is_not_over_in_time_is_missed_and_says_what_was_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def course(of: Course) -> None:
        of.begins("pulled the plug")
        of.until("the light is on", lambda: False)

    monkeypatch.setattr(drill, "COURSES", {Outage.SCHEDULER_CRASH: course})
    said: list[str] = []
    followed, late = rehearse(Broken(), Outage.SCHEDULER_CRASH, said.append)  # type: ignore[arg-type]
    report = outage_report(Outage.SCHEDULER_CRASH, followed, f"timed out waiting for: {late}")
    assert (report["kept"], report["recovery_seconds"], report["rto_seconds"]) == (False, None, 300)
    assert report["problem"] == "timed out waiting for: the light is on"
    assert [step["what"] for step in report["steps"]] == ["pulled the plug"]
    assert "pulled the plug" in said[0]


def test_an_outage_is_kept_or_missed_by_its_last_step() -> None:
    course = Course(Broken(), 60.0, lambda _: None)  # type: ignore[arg-type]
    course.steps = [(0.0, "broke"), (59.9, "repaired")]
    assert outage_report(Outage.FEATURE_COMPUTATION_FAILURE, course, None)["kept"]
    course.steps[-1] = (60.1, "repaired")
    report = outage_report(Outage.FEATURE_COMPUTATION_FAILURE, course, None)
    assert (report["kept"], report["recovery_seconds"]) == (False, 60.1)
    assert outage_report(Outage.FEATURE_COMPUTATION_FAILURE, None, "not tried")["kept"] is False
