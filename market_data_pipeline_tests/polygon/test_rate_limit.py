"""Waiting for the rate limit, alone and together with other threads and processes, in a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from uuid import UUID, uuid4

import psycopg
import pytest

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.ingest.pipeline import shared_limiter
from market_data_pipeline.polygon.rate_limit import PRIORITIES, SharedLimiter, UnlimitedLimiter, spacing_seconds
from market_data_pipeline.store.rate_limit_queue import RateLimitQueue
from market_data_pipeline_tests.waiting import until

CALLS, WINDOW = 10, 2.0
SPACING = spacing_seconds(CALLS, WINDOW)
FOREVER = 3600.0  # seconds, which no test takes


class PaperClock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_an_unlimited_plan_has_a_third_of_100_calls_in_any_second_and_waits_for_none_of_the_first() -> None:
    clock = PaperClock()
    limiter = UnlimitedLimiter(sleep=clock.sleep, monotonic=lambda: clock.now)
    sent = []
    for number in range(200):
        clock.now += 0.004 * (number % 7)
        before = clock.now
        limiter.acquire(0)
        sent.append(clock.now)
        assert number >= 33 or clock.now == before
    assert min(later - earlier for earlier, later in zip(sent, sent[33:], strict=False)) > 1
    assert sent[-1] - sent[0] < 200 / 33 + 1


def test_no_limit_at_all_never_waits() -> None:
    clock = PaperClock()
    limiter = UnlimitedLimiter(None, sleep=clock.sleep, monotonic=lambda: clock.now)
    for _ in range(1000):
        limiter.acquire(0)
    assert clock.now == 1000


def test_a_pause_holds_all_callers_for_its_time_and_a_shorter_one_does_not_shorten_it() -> None:
    clock = PaperClock()
    limiter = UnlimitedLimiter(sleep=clock.sleep, monotonic=lambda: clock.now)
    limiter.pause(40)
    limiter.pause(5)
    limiter.acquire(0)
    assert clock.now == 1040
    limiter.pause(100_000)
    limiter.acquire(0)
    assert clock.now == pytest.approx(1340, abs=0.1)


def test_the_tiers_have_their_order() -> None:
    assert sorted(PRIORITIES, key=PRIORITIES.__getitem__) == [Tier.CRITICAL, Tier.STANDARD, Tier.LOW_PRIORITY]


def test_no_minute_holds_more_than_the_plans_calls_with_a_second_to_spare() -> None:
    assert spacing_seconds(5) * 5 == pytest.approx(61)


def send_calls(url: str, count: int, out: multiprocessing.Queue[list[float]]) -> None:
    limiter = shared_limiter(url, CALLS, window_seconds=WINDOW)

    def call(_: int) -> float:
        limiter.acquire(1)
        return time.time()

    with ThreadPoolExecutor(2) as pool:
        out.put(list(pool.map(call, range(count))))
    limiter.close()


def most_in_any(window: float, instants: Sequence[float]) -> int:
    return max(sum(start <= instant < start + window for instant in instants) for start in instants)


def granted(url: str) -> list[float]:
    """When calls were granted, by the database's clock."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "select extract(epoch from item_timestamp)::float8 from market_data.ratelimit___polygon order by 1"
        )
        return [row[0] for row in found]


def test_processes_together_stay_within_the_limit_in_every_window_and_lose_no_time(database_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    out: multiprocessing.Queue[list[float]] = spawn.Queue()
    workers = [spawn.Process(target=send_calls, args=(database_url, 8, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    seen = sorted(instant for _ in workers for instant in out.get(timeout=60))
    for worker in workers:
        worker.join()
    grants = granted(database_url)
    assert len(seen) == len(grants) == 24
    assert most_in_any(WINDOW, grants) <= CALLS
    assert min(b - a for a, b in pairwise(grants)) >= SPACING - 0.001
    # No process sends before its call is granted; how long after it is up to the system.
    assert all(sent >= grant - 0.002 for sent, grant in zip(seen, grants, strict=True))
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*) from market_data.rate_limit_queue").fetchone() == (0,)


@pytest.fixture
def limiters(database_url: str) -> Iterator[list[SharedLimiter]]:
    """Three limiters as three processes would have them, 5 calls a second."""
    made = [shared_limiter(database_url, 5, window_seconds=1) for _ in range(3)]
    yield made
    for limiter in made:
        limiter.close()


def queued(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from market_data.rate_limit_queue").fetchone()
    return int(row[0]) if row else 0


class NotingQueue(RateLimitQueue):
    """Notes the priority of each call that is granted, before the next one can be: its waiter is still in the queue."""

    def __init__(self, url: str, order: list[int]) -> None:
        super().__init__(url, spacing_seconds(5, 1))
        self.order = order

    def request(self, waiter: UUID, priority: int) -> float:
        wait = super().request(waiter, priority)
        if not wait:
            self.order.append(priority)
        return wait


def test_critical_goes_before_standard_before_low_priority(database_url: str) -> None:
    order: list[int] = []
    queues = [NotingQueue(database_url, order) for _ in range(3)]
    limiters = [SharedLimiter(queue, sleep=lambda seconds: time.sleep(min(seconds, 0.05))) for queue in queues]
    limiters[0].pause(300)  # until all of them compete for the first call
    threads = []
    for waiting, (limiter, priority) in enumerate(zip([*limiters, *limiters], [2, 1, 2, 0, 1, 0], strict=True)):
        threads.append(threading.Thread(target=limiter.acquire, args=(priority,)))
        threads[-1].start()
        until(lambda waiting=waiting: queued(database_url) > waiting)  # type: ignore[misc]
    assert order == []
    with psycopg.connect(database_url) as connection:
        connection.execute("delete from market_data.rate_limit_pauses")
    for thread in threads:
        thread.join()
    for limiter in limiters:
        limiter.close()
    assert order == [0, 0, 1, 1, 2, 2]


def test_a_pause_called_by_one_holds_the_others(limiters: list[SharedLimiter]) -> None:
    caller, other, _ = limiters
    other.acquire(0)
    started = time.monotonic()
    caller.pause(0.8)
    caller.pause(0.1)
    other.acquire(0)
    assert time.monotonic() - started >= 0.75


class GaveUpError(Exception):
    pass


def test_a_pause_reaches_the_processes_of_an_unlimited_plan(database_url: str) -> None:
    slept: list[float] = []

    def give_up(seconds: float) -> None:
        slept.append(seconds)
        raise GaveUpError

    caller, other = shared_limiter(database_url, None), shared_limiter(database_url, None, sleep=give_up)
    other.acquire(0)  # it has just read the pause
    caller.pause(300)
    time.sleep(0.15)  # longer than it may go without reading it again
    with pytest.raises(GaveUpError):
        other.acquire(0)
    assert 200 < slept[0] <= 300
    caller.close()
    other.close()


class PaperSender(SharedLimiter):
    """A process of an unlimited plan whose own time, of its reads and its calls, passes only by sleeping."""

    def __init__(self, url: str) -> None:
        self.clock = PaperClock()
        queue = RateLimitQueue(url, None, lease_seconds=FOREVER)
        super().__init__(queue, sleep=self.clock.sleep, monotonic=lambda: self.clock.now)

    def most_in_a_second(self, calls: int) -> tuple[float, int]:
        """Return how long its first of so many calls waited, and how many of them some second holds."""
        before, sent = self.clock.now, []
        for _ in range(calls):
            self.acquire(0)
            sent.append(self.clock.now)
        return sent[0] - before, most_in_any(1.0, sent)


def test_processes_of_an_unlimited_plan_share_99_calls_a_second_once_they_are_more_than_three(
    database_url: str,
) -> None:
    senders = [PaperSender(database_url) for _ in range(5)]
    for one in senders[:3]:
        assert one.most_in_a_second(40) == (0, 33)
    # The fourth and fifth give those that are there the time to send less.
    fourth, _ = senders[3].most_in_a_second(1)
    fifth, _ = senders[4].most_in_a_second(1)
    assert fourth == fifth == 2
    for one in senders:
        one.clock.now += 5
        assert one.most_in_a_second(60)[1] <= 19
    for one in senders[1:]:
        one.close()
    senders[0].clock.now += 5
    assert senders[0].most_in_a_second(40) == (0, 33)
    senders[0].close()
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*) from market_data.rate_limit_senders").fetchone() == (0,)


def test_a_process_that_was_killed_counts_until_its_lease_has_expired(database_url: str) -> None:
    killed = RateLimitQueue(database_url, None, lease_seconds=FOREVER)
    for _ in range(3):
        killed.send(uuid4())
    killed.close()
    fourth = PaperSender(database_url)
    assert fourth.most_in_a_second(1) == (2, 1)
    fourth.close()
    with psycopg.connect(database_url) as connection:
        connection.execute("update market_data.rate_limit_senders set expires_at = now()")
    alone = PaperSender(database_url)
    assert alone.most_in_a_second(40) == (0, 33)
    alone.close()


def test_a_waiter_that_died_is_passed_over_once_its_lease_has_expired(database_url: str) -> None:
    queue = RateLimitQueue(database_url, 0.01)
    dead, living = uuid4(), uuid4()
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into market_data.rate_limit_queue (id, bucket, priority, expires_at) "
            "values (%s, 'polygon', 0, now() + interval '1 hour')",
            (dead,),
        )
    assert queue.request(living, 1) > 0
    with psycopg.connect(database_url) as connection:
        connection.execute("update market_data.rate_limit_queue set expires_at = now() where id = %s", (dead,))
    assert queue.request(living, 1) == 0
    queue.close()


def test_a_waiter_that_gives_up_leaves_the_queue(database_url: str) -> None:
    def give_up(_: float) -> None:
        raise GaveUpError

    limiter = shared_limiter(database_url, 1, sleep=give_up)
    limiter.acquire(0)
    with pytest.raises(GaveUpError):
        limiter.acquire(0)
    limiter.close()
    assert queued(database_url) == 0


def test_past_calls_do_not_pile_up(database_url: str) -> None:
    queue = RateLimitQueue(database_url, 0.001)
    for _ in range(120):
        waiter = uuid4()
        while queue.request(waiter, 0):
            pass
        queue.leave(waiter)
    queue.close()
    assert len(granted(database_url)) < 60


def test_sessions_in_other_time_zones_share_the_limit(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"alter database {name} set timezone to 'Asia/Tokyo'")
    first, second = RateLimitQueue(database_url, 30), RateLimitQueue(database_url, 30)
    taken = uuid4()
    assert first.request(taken, 0) == 0
    first.leave(taken)
    assert 20 < second.request(uuid4(), 0) <= 30.001
    first.close()
    second.close()


def test_an_unreachable_database_stops_the_run_and_shows_no_password() -> None:
    limiter = shared_limiter("postgresql+psycopg://nobody:hush@127.0.0.1:9/none?connect_timeout=1", 5)
    with pytest.raises(DatabaseUnavailableError) as caught:
        limiter.acquire(0)
    assert caught.value.stops_run
    assert "hush" not in str(caught.value)


def test_a_database_without_the_tables_names_the_command_that_creates_them(empty_database_url: str) -> None:
    limiter = shared_limiter(empty_database_url, 5)
    with pytest.raises(ConfigurationError, match="market-data migrate"):
        limiter.acquire(0)
    limiter.close()
