"""The rows of a series in one partition as columns: what `market_data.packed_records` holds, three Arrow IPC streams.

| stream | columns |
|---|---|
| `times` | `ts`: timestamp[us, UTC], ascending |
| `bars` | those of a bar: float64, NaN for null; `trades` int32, null where there is none |
| `features` | those of FLOATS: float64, NaN for null; CODES: int32; `computed`: whether there are any features, bool |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.bars import VALUES
from market_data_pipeline.store.feature_values import CODES, FLOATS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np
    import pyarrow as pa

COMPUTED: Final = "computed"
BARS: Final = VALUES
FEATURES: Final = (*FLOATS, CODES, COMPUTED)
# Decompressed in a third of the time that zstd takes, and a third larger. Times hardly become smaller by either.
_COMPRESSION: Final = {"times": None, "bars": "lz4", "features": "lz4"}


class Packed(NamedTuple):
    """The three streams."""

    times: bytes
    bars: bytes
    features: bytes


def pack(ts: np.ndarray, values: Mapping[str, np.ndarray]) -> Packed:
    """Return rows as streams.

    Args:
        ts: int64, microseconds since 1970 UTC, ascending.
        values: of BARS and FEATURES; float64 with NaN for null, CODES int32, `computed` 1 or 0.
    """
    import numpy as np
    import pyarrow as pa

    absent = np.isnan(values["trades"])
    columns: dict[str, Any] = dict(values)
    columns["trades"] = pa.array(np.where(absent, 0, values["trades"]).astype("int32"), mask=absent)
    columns[COMPUTED] = pa.array(values[COMPUTED] == 1)
    return Packed(
        _written("times", pa.table({"ts": pa.array(ts).cast(pa.timestamp("us", tz="UTC"))})),
        _written("bars", pa.table({name: columns[name] for name in BARS})),
        _written("features", pa.table({name: columns[name] for name in FEATURES})),
    )


def times_of(stream: bytes) -> np.ndarray:
    """Return `ts` as int64, microseconds since 1970 UTC."""
    return _read(stream, ["ts"])["ts"].view("int64")


def columns_of(stream: bytes, known: tuple[str, ...], names: Collection[str]) -> dict[str, np.ndarray]:
    """Return those of `names` that are in a stream of the columns `known`; others are not decompressed.

    `trades` is float64 with NaN for null where any is null, else int32; `computed` is bool.
    """
    wanted = [name for name in known if name in names]
    return _read(stream, wanted, [known.index(name) for name in wanted]) if wanted else {}


def _read(stream: bytes, names: list[str], places: list[int] | None = None) -> dict[str, np.ndarray]:
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=places or [], use_threads=False)
    batch = pa.ipc.open_stream(stream, options=options).read_next_batch()
    return {name: batch.column(place).to_numpy(zero_copy_only=False) for place, name in enumerate(names)}


def _written(name: str, table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=_COMPRESSION[name])
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
