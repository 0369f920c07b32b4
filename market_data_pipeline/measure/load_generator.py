"""`python -m market_data_pipeline.measure.load_generator`: one scenario run by Locust, in a process of its own.

Locust replaces Python's sockets and threads, which would affect any other code in the process. The scenario is one line
of JSON on standard input; requests are sent for its seconds, or until standard input is closed; Locust's statistics go
to standard output as JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import count, cycle
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from market_data_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    from locust.stats import RequestStats

    from market_data_pipeline.measure.loadtest import Scenario

WARM_UP_SECONDS: Final = 1.0  # connections are opened and the cache is filled before anything counts
_START_SECONDS: Final = 60.0  # Locust starts within two seconds here
_LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)  # before any bar, so that the newest records follow
_DAY_OF_MICROSECONDS: Final = 86_400_000_000  # so that two measurements of one API do not send the same requests
_GOLDEN: Final = (5**0.5 - 1) / 2  # its multiples spread evenly over an interval and never repeat


class Measured(NamedTuple):
    """Locust's statistics of a scenario; times are of all requests, failed ones included, and None if there were none.

    Locust rounds percentiles to milliseconds, and to two digits from 100 ms on.
    """

    requests: int
    failures: int
    first_failure: str | None
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    seconds: float


class Generator:
    """A generator process, started on construction.

    Args:
        base: the address of the API, without a path.
        scenario: what it requests.
        seconds: how long it measures; None to measure until `result` is called.
        token: for the admin endpoints, sent in a header.
    """

    def __init__(self, base: str, scenario: Scenario, seconds: float | None, token: str | None = None) -> None:
        command = [sys.executable, "-m", __name__]
        self._seconds = seconds
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module
        spec = {
            "base": base,
            "token": token,
            "seconds": seconds,
            "users": scenario.users,
            "paths": scenario.paths,
            "unique": scenario.unique,
            "past": scenario.past,
            "rate": scenario.rate,
        }
        assert self._process.stdin is not None  # noqa: S101 - narrows the type
        self._process.stdin.write(orjson.dumps(spec) + b"\n")
        self._process.stdin.flush()

    def result(self) -> Measured:
        """Wait until the process ends, or end it if no seconds were given, and return what was measured.

        Raises:
            PipelineError: the generator failed.
        """
        try:
            if self._seconds is None:
                output, _ = self._process.communicate(timeout=_START_SECONDS)  # closes its standard input
            else:
                output = self._process.stdout.read() if self._process.stdout else b""
                self._process.wait(_START_SECONDS)
        finally:
            self.end()
        if self._process.returncode != 0:
            raise PipelineError(f"The load generator ended with code {self._process.returncode}.")
        return Measured(**orjson.loads(output))

    def end(self) -> None:
        """Kill the process, if it runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _stamp(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%S.%f}Z"


def main() -> None:
    """Run the scenario read from standard input."""
    import gevent
    from gevent.fileobject import FileObjectThread
    from locust import FastHttpUser, constant_throughput, task
    from locust.env import Environment

    source = FileObjectThread(sys.stdin.buffer, "rb")
    spec: dict[str, Any] = orjson.loads(source.readline())
    now = datetime.now(UTC)
    paths, numbers = cycle(spec["paths"]), count(time.time_ns() // 1000 % _DAY_OF_MICROSECONDS)
    headers = {"authorization": f"Bearer {spec['token']}"} if spec["token"] else {}

    class Reader(FastHttpUser):
        host = spec["base"]
        if spec["rate"]:
            wait_time = constant_throughput(spec["rate"])

        @task
        def read(self) -> None:
            path = next(paths)
            if spec["unique"]:
                path += f"&start={_stamp(_LONG_AGO + timedelta(microseconds=next(numbers)))}"
            if spec["past"]:
                shortest, longest = spec["past"]
                days = shortest + next(numbers) * _GOLDEN % 1 * (longest - shortest)
                path += f"&end={_stamp(now - timedelta(days=days))}"
            self.client.get(path, name="read", headers=headers)

    environment = Environment(user_classes=[Reader])
    runner = environment.create_local_runner()
    runner.start(spec["users"], spawn_rate=spec["users"])
    gevent.sleep(WARM_UP_SECONDS)
    environment.stats.clear_all()
    began = time.perf_counter()
    closed = gevent.spawn(source.read)  # returns when the parent process closes its end
    gevent.wait([closed], timeout=spec["seconds"])
    while not environment.stats.total.num_requests:  # of an API slower than that, the first answer
        gevent.sleep(0.01)
    measured = _measured(environment.stats, time.perf_counter() - began)
    sys.stdout.buffer.write(orjson.dumps(measured._asdict()))
    sys.stdout.buffer.flush()
    os._exit(0)  # without waiting for the requests that are still under way


def _measured(stats: RequestStats, seconds: float) -> Measured:
    total = stats.total
    failure = next(iter(stats.errors.values()), None)
    p50, p95, p99 = (
        total.get_response_time_percentile(share) if total.num_requests else None for share in (0.50, 0.95, 0.99)
    )
    return Measured(
        requests=total.num_requests,
        failures=total.num_failures,
        first_failure=None if failure is None else str(failure.error),
        mean_ms=total.avg_response_time if total.num_requests else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
