"""What a bar and its features cost on disk, and whether that and reading them stay the same with years of ticks.

- Bytes of a pair of bar and features, indexes included: as loaded at once, and as settled.
- The pages on which a symbol's year of 5m bars lies: loaded at once, after a year of ticks, and once settled.
- The processor time that the server takes for a COPY of a symbol's year, into an empty table and into one with
  ROWS_HELD rows; both are measured in turn, and what counts is the median of the ratios.

The rows are made by the server, of random numbers as wide as real ones, so that millions take a minute.

    python -m benchmarks.layout [MILLIONS]
"""

from __future__ import annotations

import statistics
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psutil
import psycopg

from benchmarks.place import NOW, running_server
from benchmarks.report import Measurement, show
from market_data_pipeline.store.feature_values import FLOATS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.store.copy import StoreConnection

MOST_BYTES: Final = 220.0
MOST_PAGES: Final = 1.5
MOST_GROWTH: Final = 1.2
MILLIONS: Final = 12
_SERIES: Final = 60
_REPEATED: Final = 5
_FIRST, _LAST = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
_BARS: Final = 48_384  # a year of 5m bars: 252 days of 192

_COLUMNS: Final = f"""
series, codes, ts, open, high, low, close, volume, vwap, {", ".join(FLOATS)}, trades, features_after, ingested_at
"""
_VALUES: Final = f"""
s, 87381, t, random(), random(), random(), random(), 1000 * random(), random(),
{", ".join(["random()"] * len(FLOATS))}, 17, 0, t
"""
# A year of 5m bars of as many series, in the order of a load or of ticks.
_FILL: Final = f"""
insert into market_data.records ({_COLUMNS})
select {_VALUES}
from generate_series({{first_series}}, {{last_series}}) as s
cross join (
    select d + i * interval '5 minutes' as t
    from generate_series('2025-01-01 09:00Z'::timestamptz, '2025-12-31', interval '1 day') as d
    cross join generate_series(0, 191) as i
    where extract(isodow from d) < 6
) as bars
order by {{order}}
"""  # noqa: S608 - a constant
_PAGES: Final = """
select sum(pages) from (
    select count(distinct (ctid::text::point)[0]) as pages from market_data.records where series = %s group by tableoid
) as of_partitions
"""
_SIZE: Final = """
select sum(pg_total_relation_size(c.oid))::float8 / (select count(*) from market_data.records)
from pg_class as c
where c.relnamespace = 'market_data'::regnamespace and c.relkind = 'r' and c.relname ~ '^records_'
"""
_5M: Final = 1 << 24


def main() -> int:
    """Measure, print and return the exit code."""
    return show("layout", measure(int(sys.argv[1]) if len(sys.argv) > 1 else MILLIONS))


def measure(millions: int = MILLIONS) -> list[Measurement]:
    """Return bytes, pages and the server's time, each with its goal."""
    with running_server() as place:
        loaded_bytes, loaded = _filled(place.new_database("loaded", ()), "s, t")
        ticked = place.new_database("ticked", ())
        _, scattered = _filled(ticked, "t, s")
        settled_bytes, settled = _settled(ticked)
        small, large = (place.new_database(name, ()) for name in ("small", "large"))
        _fill(large, millions)
        seconds = [(_copy_seconds(small, number), _copy_seconds(large, number)) for number in range(_REPEATED)]
    ratios = [in_large / in_small for in_small, in_large in seconds]
    per_row = 1e6 * statistics.median(each for each, _ in seconds) / _BARS
    return [
        Measurement("bytes of a bar and its features, loaded at once", loaded_bytes, "bytes", at_most=MOST_BYTES),
        Measurement("bytes of a bar and its features, settled", settled_bytes, "bytes", at_most=MOST_BYTES),
        Measurement(
            "pages of a symbol's year after a year of ticks, over loaded at once",
            settled / loaded,
            "times",
            at_most=MOST_PAGES,
            details={"loaded": loaded, "before it settled": scattered, "settled": settled},
        ),
        Measurement(
            f"COPY's processor time into {millions} million rows, over empty",
            statistics.median(ratios),
            "times",
            at_most=MOST_GROWTH,
            details={"microseconds_a_row_into_empty": per_row, "rounds": _REPEATED},
        ),
    ]


def _filled(url: str, order: str) -> tuple[float, int]:
    """Store a year of some series in an order; return the bytes of a row, and the pages of a series."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select market_data.make_partitions('5m', %s, %s)", (_FIRST, _LAST))
        connection.execute(_FILL.format(first_series=_5M + 1, last_series=_5M + _SERIES, order=order).encode())
        connection.execute("vacuum analyze market_data.records")
        size, pages = connection.execute(_SIZE).fetchone(), connection.execute(_PAGES, (_5M + 7,)).fetchone()
    assert size is not None  # noqa: S101 - an aggregate has a row
    assert pages is not None  # noqa: S101 - likewise
    return float(size[0]), int(pages[0])


def _settled(url: str) -> tuple[float, int]:
    """Settle all partitions; return the bytes of a row, and the pages of a series."""
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.partitions import settle, to_settle

    with StoreConnection(url, NOW) as connection:
        for partition in to_settle(connection, NOW):
            settle(connection, partition)
    with psycopg.connect(url, autocommit=True) as connection:
        size, pages = connection.execute(_SIZE).fetchone(), connection.execute(_PAGES, (_5M + 7,)).fetchone()
    assert size is not None  # noqa: S101 - as above
    assert pages is not None  # noqa: S101 - as above
    return float(size[0]), int(pages[0])


def _fill(url: str, millions: int) -> None:
    """Store millions of rows, a hundred series at a time, whose numbers lie around those that are measured."""
    year = 261 * 192
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select market_data.make_partitions('5m', %s, %s)", (_FIRST, _LAST))
        wanted, first = millions * 1_000_000 // year, _5M + 1000
        for begin in range(0, wanted, 100):
            last = first + min(begin + 100, wanted) - 1
            connection.execute(_FILL.format(first_series=first + begin, last_series=last, order="s, t").encode())
        connection.execute("vacuum analyze market_data.records")


def _copy_seconds(url: str, number: int) -> float:
    """Return the processor seconds that the server takes to store a symbol's year by COPY and to commit it."""
    from market_data_pipeline.domain.series import Series, Timeframe
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.records import append_records

    with StoreConnection(url, NOW) as connection:
        backend = psutil.Process(connection.rows("select pg_backend_pid() as pid")[0]["pid"])
        _warm(connection)
        bars, features = _year()
        before = sum(backend.cpu_times()[:2])
        append_records(connection, Series(f"SYM{number}", Timeframe.M5), bars, features, NOW)
        connection.commit()
        return float(sum(backend.cpu_times()[:2]) - before)


def _warm(connection: StoreConnection) -> None:
    """Let the server's process know its catalogue."""
    connection.rows("select * from market_data.records_5m where series = 1 limit 1")
    connection.commit()


def _year() -> tuple[pd.DataFrame, pa.Table]:
    """Return a year of 5m bars, and their features."""
    import numpy as np

    from market_data_pipeline.domain.bars import VALUES, bar_frame
    from market_data_pipeline.domain.features.compute import compute_features
    from market_data_pipeline.domain.series import AssetClass, Timeframe
    from market_data_pipeline.store.feature_values import feature_table

    chance = np.random.default_rng(1)
    begin = int(datetime(2025, 1, 1, 9, tzinfo=UTC).timestamp() * 1e6)
    days = [day for day in range(365) if (day + 2) % 7 < 5][: _BARS // 192]
    ts = np.concatenate([begin + day * 86_400_000_000 + np.arange(192) * 300_000_000 for day in days])
    close = 100 * np.exp(np.cumsum(chance.normal(0, 1e-3, len(ts))))
    values = dict.fromkeys(VALUES, close) | {
        "high": close * 1.001,
        "low": close * 0.999,
        "volume": chance.integers(100, 100_000, len(ts)).astype(float),
        "trades": chance.integers(1, 500, len(ts)).astype(float),
    }
    bars = bar_frame(ts, values)
    return bars, feature_table(compute_features(bars, Timeframe.M5, AssetClass.US_EQUITY))


if __name__ == "__main__":
    sys.exit(main())
