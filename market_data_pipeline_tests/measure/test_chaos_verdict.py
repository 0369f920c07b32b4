"""What a course of chaos must have: every outage told exactly once with its end, and every bar as the vendor has it."""

from __future__ import annotations

import pytest

from market_data_pipeline.measure.chaos_verdict import (
    Moment,
    alert_moment,
    differing_bars,
    first_bars,
    judge_alerts,
    wrongly_ended,
)
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.store.test_strange_servers import NOON


def course(*what: tuple[float, str]) -> list[Moment]:
    """Return the moments of a course in which processes were hit, and alerts arrived."""
    return [
        Moment(at, "hit", title.removeprefix("hit ")) if title.startswith("hit ") else alert_moment(at, title)  # type: ignore[misc]
        for at, title in what
    ]


def test_each_outage_that_was_told_once_with_its_end_is_in_order() -> None:
    moments = course(
        (0, "hit read-api"),
        (9, "read-api was started again after 8 s: it was killed (SIGKILL)"),
        (100, "hit dagster-daemon"),
        (101, "hit dagster-daemon"),
        (130, "dagster-daemon is down: it was killed (SIGKILL)"),
        (190, "dagster-daemon runs again after 1 min"),
        (300, "The market database cannot be reached"),
        (330, "The market database answers again after 31 s"),
        (400, "dagster-webserver was started again after 40 s: it no longer answered"),
    )
    assert judge_alerts(moments) == ([], [])
    assert wrongly_ended([(0, 9), (100, 190), (300, 480)], moments) == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ([(0, "hit read-api"), (9, "dagster-webserver was started again after 8 s: x")], "never told"),
        ([(0, "read-api is down: x"), (9, "dagster-daemon runs again after 8 s")], "the end of the outage of 0 s"),
        (
            [(0, "read-api is down: x"), (40, "read-api is down: x"), (90, "read-api runs again after 1 s")],
            "told again",
        ),
        ([(0, "read-api is down: x"), (40, "read-api was started again after 40 s: x")], "told twice"),
        ([(0, "hit read-api"), (40, "read-api runs again after 40 s")], "but never its beginning"),
    ],
)
def test_an_outage_that_was_not_told_once_with_its_end_is_named(what: list[tuple[float, str]], words: str) -> None:
    wrong, still = judge_alerts(course(*what))
    assert any(words in one for one in (*wrong, *still))


def test_a_long_outage_that_no_one_was_told_of_or_that_did_not_end_in_time_is_named() -> None:
    [silent] = wrongly_ended([(100.0, 250.0)], course((400, "read-api is down: x")))
    assert silent == "the outage from 100 to 250 s was never told"
    [long] = wrongly_ended([(100.0, 500.0)], course((110, "Schedules and sensors are not evaluated: nothing")))
    assert long == "the outage from 100 to 500 s was longer than any recovery time objective"


def test_one_bar_that_was_changed_or_lost_is_found(database_url: str) -> None:
    with running_server(open_source(None), lambda: NOON) as vendor:
        world = World(vendor, database_url, NOON)
        settings = Settings(
            database_url=database_url, base_url=vendor, api_key=SANDBOX_KEY, as_of=NOON, plan="advanced"
        )
        world.refresh("AAPL")
        since = first_bars(settings, ["AAPL"])
        assert differing_bars(settings, since) == []
        with world.connect() as owner:
            owner.execute(
                "create temporary table first as select timeframe, min(ts) as ts from market_data.bars group by 1"
            )
            of = "where (timeframe, ts) in (select timeframe, ts from first) and timeframe ="
            owner.execute(f"update market_data.bars set close = close + 0.01 {of} '5m'")
            owner.execute(f"delete from market_data.bars {of} '1d'")
        minutes, days = differing_bars(settings, since)
        assert minutes.startswith("AAPL|5m: 2 rows of ")
        assert days.startswith("AAPL|1d: 1 rows of ")
