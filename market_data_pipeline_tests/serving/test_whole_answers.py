"""A reader sees a commit whole or not at all, while the series is being committed again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import psycopg
import pytest

from market_data_pipeline_tests.serving.conftest import FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed

COUNT: Final = 100
READS: Final = 300
MOST_READS: Final = 9_000  # on a busy machine the writer may be slow; the limit is 10,000 records
# Every number of a state is tied to its close, so a mixture of the two matches neither.
STATES: Final = {100.0: ("FRESH", 0.25), 200.0: ("AGING", 0.5)}  # close: freshness, log_return
LATE: Final = {"FRESH": timedelta(minutes=-3), "AGING": timedelta(hours=2)}


def commit(connection: psycopg.Connection[Any], close: float) -> None:
    """Put every bar, every feature and the freshness of the series into a state, in one transaction."""
    status, log_return = STATES[close]
    with connection.transaction():
        connection.execute("update market_data.bars set open = %s, close = %s", (close, close))
        connection.execute("update market_data.features set log_return = %s", (log_return,))
        connection.execute("update market_data.series_state set next_due_at = %s", (NOW - LATE[status],))
        connection.execute("select pg_notify('market_data_series', 'AAPL|5m')")


def ask_for_the_same(_: int) -> dict[str, Any]:
    return {"limit": COUNT}


def ask_for_another_number(read: int) -> dict[str, Any]:
    return {"limit": COUNT + read}  # another answer, made from the same records in memory


def ask_for_the_past(read: int) -> dict[str, Any]:
    return {"limit": COUNT, "end": (NOW - timedelta(microseconds=read)).isoformat()}  # of which nothing is in memory


@pytest.mark.parametrize("asked", [ask_for_the_same, ask_for_another_number, ask_for_the_past])
def test_every_answer_is_one_commit_whole(
    api: Api, seed: Seed, database_url: str, asked: Callable[[int], dict[str, Any]]
) -> None:
    seed.series("AAPL", first=NOW - COUNT * timedelta(minutes=5), count=COUNT)
    api.wait_for_cache()
    stop, commits = threading.Event(), 0

    def write() -> None:
        nonlocal commits
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not stop.is_set():
                commit(connection, tuple(STATES)[commits % 2])
                commits += 1

    commit(seed.connection, 200.0)
    writer = threading.Thread(target=write)
    writer.start()
    whole = [(COUNT, status, {(close, close, value)}) for close, (status, value) in STATES.items()]
    seen: list[tuple[Any, ...]] = []
    try:
        for read in range(MOST_READS):
            if read >= READS and all(state in seen for state in whole):
                break
            answer = api.get(f"{FEATURES}/AAPL", timeframe="5m", **asked(read)).json()
            rows = {(row["open"], row["close"], row["log_return"]) for row in answer["features"]}
            seen.append((answer["records_returned"], answer["freshness"]["status"], rows))
    finally:
        stop.set()
        writer.join()

    assert [answer for answer in seen if answer not in whole] == []
    assert all(state in seen for state in whole), f"{commits} commits, and no reader saw both states"
