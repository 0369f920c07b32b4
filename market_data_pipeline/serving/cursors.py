"""Cursors: where the next page of an answer ends, as a text that a client only passes back.

A page holds the newest records of each series; the next one continues with those that are older. So a cursor holds the
start of the oldest record sent of each symbol, before which the next page ends, or nothing for a symbol of which no
older one is left. It is bound to the symbols and the timeframe that it was made for.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from market_data_pipeline.serving.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.series import Series

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DONE: Final = -(2**63)  # instead of microseconds
_CHECK_BYTES: Final = 4
_WRONG: Final = "is not one that this address gave for these symbols and this timeframe."
_SAFE: Final = "%=&:,+.~/@!$'()*;-_"  # characters of a query that a link may hold as they are


def encode_cursor(series: Sequence[Series], ends: Sequence[datetime | None]) -> str:
    """Return the cursor of the page whose records of each series start before its end; None for no more of them."""
    instants = [_DONE if end is None else (end - _EPOCH) // _MICROSECOND for end in ends]
    packed = zlib.compress(_check(series) + struct.pack(f">{len(ends)}q", *instants), 9)
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode_cursor(cursor: str, series: Sequence[Series]) -> list[datetime | None]:
    """Return the end of each series' page; None for a series that has no more records.

    Raises:
        Problem: 422, when `encode_cursor` did not make it for these series.
    """
    size = _CHECK_BYTES + 8 * len(series)
    try:
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True), size)
        if len(packed) != size or not unpacker.eof or packed[:_CHECK_BYTES] != _check(series):
            raise ValueError(_WRONG)
        instants = struct.unpack(f">{len(series)}q", packed[_CHECK_BYTES:])
        return [None if one == _DONE else _EPOCH + one * _MICROSECOND for one in instants]
    except (ValueError, binascii.Error, zlib.error, OverflowError):
        raise wrong_cursor() from None


def wrong_cursor() -> Problem:
    """Return the 422 for a cursor that was not made for a request."""
    errors = [{"parameter": "cursor", "detail": _WRONG}]
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"cursor: {_WRONG}", errors=errors)


def next_link(path: bytes, query: bytes, cursor: str) -> str:
    """Return the address of the page of `cursor`: the same request, as a path from the host on."""
    kept = [part for part in query.decode("latin-1").split("&") if part and not part.startswith("cursor=")]
    return f"{path.decode('latin-1')}?{quote('&'.join([*kept, f'cursor={cursor}']), safe=_SAFE)}"


def _check(series: Sequence[Series]) -> bytes:
    return zlib.crc32(" ".join(one.partition_key for one in series).encode()).to_bytes(_CHECK_BYTES, "big")
