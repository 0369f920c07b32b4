"""Rows of series from what is packed of them (`packing`): those of settled partitions, and what else is to be read.

What is packed is what the rows of the same snapshot say. A part of a packed partition that is small is better read from
its rows, since the whole of it would be decompressed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.store.feature_values import CODES
from market_data_pipeline.store.packed_values import BARS, COMPUTED, FEATURES, columns_of, times_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from market_data_pipeline.store.copy import StoreConnection

# A row from records costs as much as four that are decompressed.
_LEAST_SHARE: Final = 0.25
# To open three streams takes as long as to read so many rows from records.
_LEAST_ROWS: Final = 200
_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Span(NamedTuple):
    """What is asked of a series, by its number: `ts` in [start, end), for the place `at` of the answer."""

    at: int
    number: int
    start: datetime
    end: datetime


def asked(spans: Sequence[Span]) -> dict[str, np.ndarray]:
    """Return spans as the parameters `at`, `numbers`, `starts` and `ends`, arrays of one value for each."""
    import numpy as np

    return {
        "at": np.array([span.at for span in spans], "int32"),
        "numbers": np.array([span.number for span in spans], "int32"),
        "starts": np.array([_us(span.start) for span in spans], "int64").view("M8[us]"),
        "ends": np.array([_us(span.end) for span in spans], "int64").view("M8[us]"),
    }


class Part(NamedTuple):
    """Rows of a span: their `ts` in int64 microseconds, ascending, and their columns."""

    at: int
    ts: np.ndarray
    values: Mapping[str, Any]


def packed_parts(
    connection: StoreConnection, spans: Sequence[Span], names: Sequence[str], *, computed: bool
) -> tuple[list[Part], list[Span]]:
    """Return the rows of spans that are packed, and the spans that are left, both in order.

    Args:
        connection: in a snapshot.
        spans: at most one for each place.
        names: columns of bars and features, CODES among them, in which the answer is.
        computed: leave out rows without features.
    """
    of_features = computed or not set(FEATURES).isdisjoint(names)
    found = connection.rows(
        f"""
        select asked.at, p.first_ts, p.end_ts, p.times,
            {"p.bars" if not set(BARS).isdisjoint(names) else "null::bytea as bars"},
            {"p.features" if of_features else "null::bytea as features"}
        from unnest(
            %(at)s::int[], %(numbers)s::int[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]
        ) as asked (at, series, first, stop)
        inner join market_data.packed_records as p
            on p.series = asked.series and p.first_ts < asked.stop and p.end_ts > asked.first
        cross join lateral (
            select
                extract(epoch from least(p.end_ts, asked.stop) - greatest(p.first_ts, asked.first))
                / extract(epoch from p.end_ts - p.first_ts) as share
        ) as taken
        where
            taken.share >= %(share)s::float8
            and taken.share * p.rows >= %(rows)s::float8
            and exists (select from pg_catalog.pg_inherits as i where i.inhrelid = p.partition)
        order by asked.at, p.first_ts
        """,  # noqa: S608 - columns
        {
            **asked(spans),
            "share": _LEAST_SHARE,
            "rows": float(_LEAST_ROWS),
        },
    )
    parts: list[Part] = []
    left: list[Span] = []
    packed: dict[int, list[dict[str, Any]]] = {}
    for row in found:
        packed.setdefault(row["at"], []).append(row)
    for span in spans:
        begins = span.start
        for row in packed.get(span.at, ()):
            if row["first_ts"] > begins:
                left.append(span._replace(start=begins, end=row["first_ts"]))
            parts.append(_unpacked(span, row, names, computed=computed))
            begins = row["end_ts"]
        if begins < span.end:
            left.append(span._replace(start=begins))
    return parts, left


def _unpacked(span: Span, row: Mapping[str, Any], names: Sequence[str], *, computed: bool) -> Part:
    import numpy as np

    ts = times_of(row["times"])
    values = columns_of(row["bars"], BARS, names) if row["bars"] is not None else {}
    if row["features"] is not None:
        values |= columns_of(row["features"], FEATURES, [*names, COMPUTED] if computed else names)
    kept: Any = slice(*np.searchsorted(ts, [_us(span.start), _us(span.end)]))
    if computed and not (has := values.pop(COMPUTED)[kept]).all():
        kept = np.arange(kept.start, kept.stop)[has]
    return Part(span.at, ts[kept], {name: column[kept] for name, column in values.items()})


def joined(parts: Sequence[Part], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return parts as one: the place and the `ts` of each row, by both, and its columns."""
    import numpy as np

    ordered = sorted((part for part in parts if len(part.ts)), key=lambda part: (part.at, part.ts[0]))
    sizes = [len(part.ts) for part in ordered]
    at = np.repeat(np.array([part.at for part in ordered], "int32"), sizes)
    ts = np.concatenate([part.ts for part in ordered]) if ordered else np.empty(0, "int64")
    values = {}
    for name in names:
        values[name] = np.empty(len(ts), "int32" if name == CODES else "float64")
        if ordered:
            np.concatenate([part.values[name] for part in ordered], out=values[name])
    return at, ts, values


def _us(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND
