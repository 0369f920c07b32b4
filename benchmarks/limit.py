"""The limit of the machine: only the same finished rows by COPY, and the same bytes over the same connection.

- Rows: the bars and features that a backfill stored are read into memory as Arrow and copied, binary, by the driver
  that the pipeline uses, into an empty database of the same schema: the same tables, partitions and indexes. Two
  connections, because there are two processors; one commit each.
- Bytes: the requests of the backfill, sent by two threads that read the bodies and look only for the next page.

The limit is the sum: both need the same processors, and neither waits for anything while the other could use them.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import pyarrow as pa
import requests

from benchmarks.place import NOW, Place
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, Series, Timeframe, asset_class_of
from market_data_pipeline.ingest.fetch_plan import plan_fetch, reach
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.records import series_id

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS: Final = 2
_EVERY_RANGE: Final = {
    Timeframe.M5: "5/minute",
    Timeframe.M15: "15/minute",
    Timeframe.H1: "1/hour",
    Timeframe.H4: "4/hour",
    Timeframe.D1: "1/day",
}
_NEXT: Final = re.compile(rb'"next_url": ?"([^"]+)"')
# What the database alone sets, and the number, which a series gets in each database anew.
_ITS_OWN: Final = {"recorded_at", "series"}
_TAIL: Final = 400  # bytes at the end of a page, which hold next_url


class Rows(NamedTuple):
    """Finished rows in memory: an Arrow table for each series, and how many pairs of bar and features."""

    tables: list[tuple[Series, Any]]
    pairs: int


def finished_rows(database_url: str, symbols: Sequence[str]) -> Rows:
    """Return what a backfill of `symbols` stored."""
    tables: list[tuple[Series, Any]] = []
    whole_numbers = ("codes", "trades", "features_after")
    with StoreConnection(database_url) as connection:
        for series in (Series(symbol, timeframe) for symbol in symbols for timeframe in Timeframe):
            rows = connection.rows(
                f"select * from market_data.records_{series.timeframe} where series = %(series)s order by ts",  # noqa: S608 - a partition
                {"series": series_id(connection, series)},
            )
            table = pa.Table.from_pylist(rows)
            left_out = [one.name for one in table.schema if pa.types.is_null(one.type) or one.name in _ITS_OWN]
            table = table.drop_columns(left_out)
            for name in whole_numbers:  # of four bytes each
                table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int32()))
            tables.append((series, table))
    return Rows(tables, sum(table.num_rows for _, table in tables))


def copy_rows(place: Place, name: str, rows: Rows) -> float:
    """Return the seconds that COPY into a new database of that name takes."""
    url = place.new_database(name, ())

    def copy(part: Sequence[tuple[str, Any]]) -> None:
        with StoreConnection(url) as connection:
            for relation, table in part:
                connection.copy(relation, table)
            connection.commit()

    parts = _halves(_numbered(url, rows))
    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(copy, parts))
    seconds = time.perf_counter() - began
    place.drop(url)
    return seconds


def _numbered(url: str, rows: Rows) -> list[tuple[str, Any]]:
    """Return the tables with the partition and the numbers of their series, and make the partitions."""
    numbered = []
    with StoreConnection(url) as connection:
        for series, table in rows.tables:
            starts = table["ts"]
            connection.execute(
                "select market_data.make_partitions(%(timeframe)s, %(first)s::timestamptz, %(last)s)::text",
                {"timeframe": str(series.timeframe), "first": starts[0].as_py(), "last": starts[-1].as_py()},
            )
            number = pa.scalar(series_id(connection, series), pa.int32())
            column = pa.repeat(number, table.num_rows)
            numbered.append((f"records_{series.timeframe}", table.add_column(0, "series", column)))
        connection.commit()
    return numbered


def _halves(tables: list[tuple[str, Any]]) -> list[list[tuple[str, Any]]]:
    """Return the tables in one list for each connection, with about as many rows each."""
    parts: list[list[tuple[str, Any]]] = [[] for _ in range(CONNECTIONS)]
    loads = [0] * CONNECTIONS
    for entry in tables:
        lightest = loads.index(min(loads))
        parts[lightest].append(entry)
        loads[lightest] += entry[1].num_rows
    return parts


def download(place: Place, symbols: Sequence[str], days: int) -> tuple[float, int, int]:
    """Return the seconds, requests and bytes of downloading `days` days of `symbols`."""
    with place.pipeline(place.postgres_url, history_days=days, threads=CONNECTIONS) as pipeline:
        paths = []
        for symbol in symbols:
            timing = pipeline.timing(asset_class_of(symbol))
            within = reach(timing, days, pipeline.plan.history)
            for base in BASE_TIMEFRAMES:
                for window in plan_fetch(Series(symbol, base), within, {}, timing, last_ts=None).windows:
                    first, last = to_us(window.interval.start) // 1000, to_us(window.interval.end) // 1000 - 1
                    ticker = quote(symbol, safe=":")
                    paths.append(f"/v2/aggs/ticker/{ticker}/range/{_EVERY_RANGE[base]}/{first}/{last}?limit=50000")

    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        done = list(
            pool.map(lambda part: _fetch(place, part), [paths[part::CONNECTIONS] for part in range(CONNECTIONS)])
        )
    return time.perf_counter() - began, sum(count for count, _ in done), sum(size for _, size in done)


def calls_of_each_timeframe(place: Place, symbol: str, days: int) -> int:
    """Return the requests for `days` days of a symbol when each of its five timeframes is fetched separately."""
    first = NOW.date() - timedelta(days=days)
    paths = [
        f"/v2/aggs/ticker/{symbol}/range/{asked}/{first}/{NOW.date()}?limit=50000" for asked in _EVERY_RANGE.values()
    ]
    return _fetch(place, paths)[0]


def _fetch(place: Place, paths: Sequence[str]) -> tuple[int, int]:
    """Read all pages of the answers to `paths` and return their number and bytes."""
    count = size = 0
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {SANDBOX_KEY}"
        for path in paths:
            target: str | None = f"{path}&adjusted=false&sort=asc"
            while target:
                answer = session.get(place.vendor_url + target, timeout=120)
                answer.raise_for_status()
                count, size = count + 1, size + len(answer.content)
                found = _NEXT.search(answer.content, max(0, len(answer.content) - _TAIL))
                parts = urlsplit(found[1].decode()) if found else None
                target = f"{parts.path}?{parts.query}&adjusted=false" if parts else None
    return count, size
