"""The queue for the vendor's rate limit, kept in PostgreSQL.

Each waiter has a row, ordered by priority and then by arrival; the first in the queue tries to take the next slot of
pyrate-limiter's PostgreSQL bucket, whose rate is ONE call per spacing, so calls never come in a burst. All times are
the database's: the machines' own clocks may differ.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.store.connection import Role, conninfo, open_connection
from market_data_pipeline.store.connection_settings import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from psycopg_pool import ConnectionPool
    from pyrate_limiter.buckets import PostgresBucket

LEASE_SECONDS: Final = 10.0  # what has not called `request` or `send` for this long is considered dead
_POOL_TIMEOUT_SECONDS: Final = 10.0  # a server that is up answers in milliseconds, also across a continent
_GOODBYE_SECONDS: Final = 1.0  # a lost server delays the end of a run no longer
_LOCKED_WAIT_SECONDS: Final = 0.02  # the bucket's table is locked for milliseconds: by another put, or by vacuum
_LEAK_EVERY: Final = 50  # grants between two removals of old calls from the bucket
_LOOK: Final = """
with me as (
    insert into market_data.rate_limit_queue as q (id, bucket, priority, expires_at)
    values (%(id)s, %(bucket)s, %(priority)s, clock_timestamp() + %(lease)s * interval '1 second')
    on conflict (id) do update set expires_at = excluded.expires_at
    returning q.id, q.bucket, q.priority, q.since
)
select
    (extract(epoch from clock_timestamp()) * 1000)::bigint,
    coalesce((
        select greatest(0, extract(epoch from p.until - clock_timestamp()))::float8
        from market_data.rate_limit_pauses as p
        where p.bucket = me.bucket
    ), 0),
    (
        select count(*)
        from market_data.rate_limit_queue as q
        where
            q.bucket = me.bucket
            and q.expires_at > clock_timestamp()
            and (q.priority, q.since, q.id) < (me.priority, me.since, me.id)
    )
from me
"""
_LEAVE: Final = """
delete from market_data.rate_limit_queue
where id = %s or expires_at < clock_timestamp() - interval '1 hour'
"""
_PAUSED: Final = """
select
    coalesce((
        select greatest(0, extract(epoch from until - clock_timestamp()))::float8
        from market_data.rate_limit_pauses
        where bucket = %(bucket)s
    ), 0),
    (select count(*) from market_data.rate_limit_senders where bucket = %(bucket)s and expires_at > clock_timestamp())
"""
_SEND: Final = """
insert into market_data.rate_limit_senders as s (id, bucket, expires_at)
values (%(id)s, %(bucket)s, clock_timestamp() + %(lease)s * interval '1 second')
on conflict (id) do update set expires_at = excluded.expires_at
"""
_SENT: Final = """
delete from market_data.rate_limit_senders
where id = %s or expires_at < clock_timestamp() - interval '1 hour'
"""
_PAUSE: Final = """
insert into market_data.rate_limit_pauses as p (bucket, until)
values (%s, clock_timestamp() + %s * interval '1 second')
on conflict (bucket) do update set until = greatest(p.until, excluded.until)
"""


class RateLimitQueue:
    """The shared state of one limit. It connects at its first use; threads may share the object.

    Every method raises `DatabaseUnavailableError` when PostgreSQL cannot be reached, `DatabaseBusyError` when no
    connection is free, and `ConfigurationError` when the migrations have not run.

    Args:
        url: any URL that `DATABASE_URL` may hold.
        spacing: seconds between two calls; None when only the pause is shared.
        bucket: the limit's name; a migration creates its table `ratelimit___<bucket>`.
        lease_seconds: how long a waiter or sender counts from which nothing is heard.
    """

    def __init__(
        self, url: str, spacing: float | None, bucket: str = "polygon", *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._url = conninfo(url, application_name="market-data rate limit")
        self._name = bucket
        self.spacing = spacing
        self.lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._put_lock = threading.Lock()  # a bucket object keeps its last decision
        self._pool_made: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._bucket_made: PostgresBucket | None = None
        self._granted = 0

    def request(self, waiter: UUID, priority: int) -> float:
        """Grant the next call and return 0; if it is not this waiter's, return the seconds after which to try again.

        The waiter is in the queue from its first request until it leaves; the lowest `priority` goes first.
        """
        from pyrate_limiter import RateItem

        look = {"id": waiter, "bucket": self._name, "priority": priority, "lease": self.lease_seconds}
        now_ms, paused, ahead = self._execute(_LOOK, look)
        if paused:
            return float(paused)
        if ahead:
            return float(ahead) * (self.spacing or 0)  # each of those takes a slot first
        with self._put_lock, self._failures():
            bucket = self._bucket()
            decision = bucket.put_decision(RateItem("call", now_ms))
            assert not hasattr(decision, "__await__")  # noqa: S101 - the type allows for buckets that are not ours
            if not decision.allowed:
                return max(_LOCKED_WAIT_SECONDS, (decision.retry_after_ms or 0) / 1000)
            self._granted += 1
            if self._granted % _LEAK_EVERY == 0:
                bucket.leak(now_ms)
        return 0.0

    def leave(self, waiter: UUID) -> None:
        """Remove the waiter from the queue."""
        self._execute(_LEAVE, (waiter,))

    def pause(self, seconds: float) -> None:
        """Grant no call for `seconds`; a longer pause in progress is kept."""
        self._execute(_PAUSE, (self._name, seconds))

    def paused(self) -> tuple[float, int]:
        """Return the seconds left of the pause, 0 without one, and how many processes are sending."""
        row = self._execute(_PAUSED, {"bucket": self._name})
        return float(row[0]), int(row[1])

    def send(self, sender: UUID) -> None:
        """Count the process as sending for the next `lease_seconds`."""
        self._execute(_SEND, {"id": sender, "bucket": self._name, "lease": self.lease_seconds})

    def sent(self, sender: UUID) -> None:
        """Count it no longer. Raises nothing: its lease runs out on its own."""
        import psycopg
        from psycopg_pool import PoolTimeout

        if (pool := self._pool_made) is not None:
            with suppress(PoolTimeout, psycopg.Error), pool.connection(timeout=_GOODBYE_SECONDS) as connection:
                connection.execute(_SENT, (sender,))

    def close(self) -> None:
        """Close the connections; the object can be used again."""
        with self._lock:
            pool, self._pool_made, self._bucket_made = self._pool_made, None, None
        if pool is not None:
            pool.close()

    def _execute(self, statement: str, parameters: Any) -> Any:
        with self._failures(), self._pool().connection() as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchone() if cursor.description else None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        import psycopg
        from psycopg_pool import PoolTimeout

        try:
            yield
        except psycopg.errors.UndefinedTable:
            raise ConfigurationError(
                "The database has no tables for the rate limit: run `market-data migrate`."
            ) from None
        except PoolTimeout as error:
            open_connection(self._url).close()  # raises, with the reason, if that is why
            raise DatabaseBusyError(f"All connections for the shared rate limit are in use: {error}.") from None
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            text = " ".join(str(error).split())
            raise DatabaseUnavailableError(f"The shared rate limit in PostgreSQL cannot be reached: {text}") from None

    def _pool(self) -> ConnectionPool[psycopg.Connection[Any]]:
        from psycopg_pool import ConnectionPool

        with self._lock:
            if self._pool_made is None:
                # A pool does not report why a connection failed, and retries until its timeout.
                open_connection(self._url).close()
                self._pool_made = ConnectionPool(
                    self._url,
                    min_size=0,
                    max_size=4,  # a request uses a connection for 3 ms, so threads share them
                    timeout=_POOL_TIMEOUT_SECONDS,
                    reconnect_timeout=_POOL_TIMEOUT_SECONDS,
                    check=ConnectionPool.check_connection,
                    configure=_configure,
                    kwargs={"prepare_threshold": None},  # a pooler may change the server's process between statements
                    open=True,
                    name="rate-limit",
                )
            return self._pool_made

    def _bucket(self) -> PostgresBucket:
        from pyrate_limiter import Rate
        from pyrate_limiter.buckets import PostgresBucket

        class MadeBucket(PostgresBucket):
            def _create_table(self) -> None:
                """Do nothing: migration 0012 created the table, and the writer may not create one."""

        if self._bucket_made is None:
            rate = Rate(1, max(1, round((self.spacing or 0) * 1000)))
            self._bucket_made = MadeBucket(self._pool(), self._name, [rate])
        return self._bucket_made


def _configure(connection: psycopg.Connection[Any]) -> None:
    # pyrate-limiter names its table without a schema, and stores local time.
    configure(connection, Role.WRITER, settings={"search_path": "market_data"})
