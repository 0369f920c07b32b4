"""A query's columns as arrays: the server aggregates each, and NumPy takes the binary form as it is.

Add here: another kind of column. Keep out: sending the query (bulk).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import Format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from psycopg.abc import AdaptContext


def load_arrays(context: AdaptContext) -> None:
    """Let arrays of numbers and instants come as NumPy's."""
    for name, kind in _ARRAYS.items():
        context.adapters.register_loader(psycopg.adapters.types.get_oid(f"{name}[]"), kind)


def aggregates(kinds: Mapping[str, str]) -> str:
    """Return the select list that makes one array of each column; its kind is one of `Bulk.columns`."""
    return ", ".join(_ARRAY_OF[kind].format(name) for name, kind in kinds.items())


def by_name(kinds: Mapping[str, str], arrays: Sequence[Any] | None) -> dict[str, Any]:
    """Return the arrays that the select list gave, by the names of their columns; empty ones where it saw no row."""
    import numpy as np

    if arrays is None or arrays[0] is None:
        return {name: np.empty(0, _EMPTY[kind]) if kind in _EMPTY else [] for name, kind in kinds.items()}
    return dict(zip(kinds, arrays, strict=True))


class _Numbers(Loader):
    """Reads a whole array of values of one size, none of them null, without making an object of each."""

    format = Format.BINARY
    kind: str

    def load(self, data: Any) -> np.ndarray:
        import numpy as np

        # Dimensions, flags, element type, length and lower bound; then each value after its length.
        pairs = np.frombuffer(data, [("length", ">i4"), ("value", self.kind)], offset=_ARRAY_HEADER_BYTES)
        return pairs["value"].astype(self.kind.replace(">", "="))


class _Integers(_Numbers):
    kind = ">i4"


class _Floats(_Numbers):
    kind = ">f8"


class _Instants(_Numbers):
    kind = ">i8"

    def load(self, data: Any) -> np.ndarray:
        return super().load(data) + _POSTGRES_EPOCH_US


_ARRAY_HEADER_BYTES: Final = 20
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 UTC
_ARRAYS: Final = {"int4": _Integers, "float8": _Floats, "timestamptz": _Instants}
_ARRAY_OF: Final = {
    "instant": "array_agg({})",
    "float": "array_agg(coalesce({}::float8, 'NaN'))",
    "bool": "array_agg(coalesce({}::int, -1))",
    "text": "array_agg({})",
}
_EMPTY: Final = {"instant": "int64", "float": "float64", "bool": "int32"}
