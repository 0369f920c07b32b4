"""Keeps `market_data.packed_records`: what is settled, in columns beside its rows (`sql/0057_packed_records.sql`).

A partition is held while a few series of it are packed, and watched by a trigger from then on, which deletes what was
packed of a row that changes. So what is there is what the rows say, whoever writes them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.feature_values import CODES, FLOATS
from market_data_pipeline.store.packed_values import BARS, COMPUTED, FEATURES, columns_of, pack, times_of
from market_data_pipeline.store.partitions import partitions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from market_data_pipeline.store.copy import StoreConnection

# Of a month of 5-minute bars they have 35,000 rows. Others cannot store in the partition for a quarter of a second.
_SERIES_AT_ONCE: Final = 8
# A vacuum gives way after one second.
PATIENCE: Final = timedelta(seconds=3)
# A series has 250 day bars in a partition, which are read as fast as they are unpacked.
_PACKED_TIMEFRAMES: Final = tuple(timeframe for timeframe in Timeframe if timeframe is not Timeframe.D1)
_KINDS: Final = {
    "series": "code",
    "ts": "instant",
    **dict.fromkeys((*BARS, *FLOATS), "float"),
    CODES: "code",
    COMPUTED: "bool",
}
_COLUMNS: Final = ", ".join(["series", "ts", *BARS, *FLOATS, CODES, f"features_after is not null as {COMPUTED}"])


def to_pack(connection: StoreConnection) -> list[str]:
    """Return the partitions that are worth packing once they have settled, the newest first."""
    return [
        each.name
        for each in partitions(connection)[::-1]
        if each.settled_at is not None
        and any(each.name.startswith(f"records_{timeframe}_") for timeframe in _PACKED_TIMEFRAMES)
    ]


class PackedSize(NamedTuple):
    """What is packed: the rows of records, and the bytes on disk."""

    rows: int
    bytes: int


def packed_size(connection: StoreConnection) -> PackedSize:
    """Return how much is packed."""
    [row] = connection.rows(
        """
        select
            coalesce(sum(rows), 0)::bigint as rows,
            pg_total_relation_size('market_data.packed_records') as bytes
        from market_data.packed_records
        """
    )
    return PackedSize(row["rows"], row["bytes"])


def pack_partition(connection: StoreConnection, name: str, most_rows: int, patience: timedelta = PATIENCE) -> int:
    """Pack what is not packed of a partition, and commit every few series; return how many rows were packed.

    Args:
        connection: without a transaction.
        name: of the partition.
        most_rows: stop once so many are.
        patience: how long others may wait with this for whoever holds the partition.

    Raises:
        TransientError: the partition is in use; what was packed until then stays.
    """
    waiting = [row["id"] for row in connection.rows(_WAITING.format(name=name))]
    connection.commit()
    done = 0
    for begin in range(0, len(waiting), _SERIES_AT_ONCE):
        if done >= most_rows:
            break
        connection.execute(
            "select set_config('lock_timeout', %(patience)s, true)", {"patience": f"{patience.total_seconds():.0f}s"}
        )
        done += pack_series(connection, name, waiting[begin : begin + _SERIES_AT_ONCE])
        connection.commit()
    return done


def unpack_everything(connection: StoreConnection) -> None:
    """Remove all that is packed, and commit."""
    connection.execute("delete from market_data.packed_records")
    connection.commit()


def forget_removed_partitions(connection: StoreConnection) -> None:
    """Remove what was packed of partitions that are no longer there, and commit."""
    connection.execute(
        """
        delete from market_data.packed_records as p
        where not exists (select from pg_catalog.pg_inherits as i where i.inhrelid = p.partition)
        """
    )
    connection.commit()


def remove_differing(connection: StoreConnection, snapshot: StoreConnection, sample: int) -> list[str]:
    """Compare a sample of what is packed with its rows, remove what differs, and return its partitions and series.

    Args:
        connection: removes and commits.
        snapshot: compares; in a snapshot.
        sample: how many series' partitions to compare, chosen at random.
    """
    wrong = differing(snapshot, sample)
    for number, name in wrong:
        connection.execute(
            """
            delete from market_data.packed_records
            where series = %(number)s and partition = to_regclass('market_data.' || %(name)s)
            """,
            {"number": number, "name": name},
        )
    connection.commit()
    return [f"{name} of series {number}" for number, name in wrong]


def differing(connection: StoreConnection, sample: int) -> list[tuple[int, str]]:
    """Return the series and partitions in a random sample of what is packed that differ from their rows.

    Args:
        connection: in a snapshot.
        sample: how many to compare.
    """
    import numpy as np

    return [
        (each["series"], each["name"])
        for each in connection.rows(_SAMPLE, {"sample": sample})
        if not _is_equal(
            each,
            connection.columns(
                _KINDS, _ROWS.format(name=each["name"]), {"series": np.array([each["series"]], "int32")}
            ),
        )
    ]


def _is_equal(packed: dict[str, Any], rows: dict[str, Any]) -> bool:
    import numpy as np

    found = columns_of(packed["bars"], BARS, BARS) | columns_of(packed["features"], FEATURES, FEATURES)
    return np.array_equal(times_of(packed["times"]), rows["ts"]) and all(
        np.array_equal(found[name], rows[name], equal_nan=name in {*BARS, *FLOATS}) for name in (*BARS, *FEATURES)
    )


def pack_series(connection: StoreConnection, name: str, numbers: Sequence[int]) -> int:
    """Pack series of a partition, which nobody else stores in until the transaction ends; return how many rows."""
    import numpy as np

    [held] = connection.rows("select * from market_data.hold_for_packing(%(name)s)", {"name": name})
    found = connection.columns(_KINDS, _ROWS.format(name=name), {"series": np.array(numbers, "int32")})
    packed = [(number, rows, *pack(found["ts"][part], {each: found[each][part] for each in (*BARS, *FEATURES)}))
              for number, rows, part in _parts(found["series"])]  # fmt: skip
    columns = list(zip(*packed, strict=True)) or [()] * 5
    connection.execute(
        _INSERT,
        held | dict(zip(("series", "rows", "times", "bars", "features"), map(list, columns), strict=True)),
    )
    return len(found["ts"])


def _parts(series: np.ndarray) -> Iterator[tuple[int, int, slice]]:
    """Yield each series in a column that is sorted by them, with the number of its rows and their places."""
    import numpy as np

    numbers, first = np.unique(series, return_index=True)
    for number, begin, end in zip(numbers, first, [*first[1:], len(series)], strict=True):
        yield int(number), int(end - begin), slice(int(begin), int(end))


_WAITING: Final = """
select s.id
from market_data.series as s
where
    s.id >= (select min(r.series) from market_data.{name} as r)
    and s.id <= (select max(r.series) from market_data.{name} as r)
    and exists (select from market_data.{name} as r where r.series = s.id)
    and not exists (
        select from market_data.packed_records as p
        where p.series = s.id and p.partition = 'market_data.{name}'::regclass
    )
order by s.id
"""
_ROWS: Final = f"""
select {_COLUMNS} from market_data.{{name}} where series = any(%(series)s::int[]) order by series, ts
"""  # noqa: S608 - columns of this module
_INSERT: Final = """
insert into market_data.packed_records (series, partition, first_ts, end_ts, rows, times, bars, features)
select
    each.series, %(partition)s::bigint::oid, %(first_ts)s::timestamptz, %(end_ts)s::timestamptz, each.rows, each.times,
    each.bars, each.features
from unnest(
    %(series)s::int[], %(rows)s::int[], %(times)s::bytea[], %(bars)s::bytea[], %(features)s::bytea[]
) as each (series, rows, times, bars, features)
on conflict do nothing
"""
_SAMPLE: Final = """
select p.series, c.relname as name, p.times, p.bars, p.features
from (
    select series, partition from market_data.packed_records order by random() limit %(sample)s
) as chosen
inner join market_data.packed_records as p on p.series = chosen.series and p.partition = chosen.partition
inner join pg_catalog.pg_class as c on c.oid = p.partition
inner join pg_catalog.pg_inherits as i on i.inhrelid = c.oid
"""
