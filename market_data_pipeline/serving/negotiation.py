"""Which representation a client takes: Accept and Accept-Encoding with their q-values (RFC 9110, section 12)."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Final


class Media(StrEnum):
    """The representations of a series, in the order in which a tie is decided."""

    JSON = "application/json"
    CSV = "text/csv"
    ARROW = "application/vnd.apache.arrow.stream"


_EXACT, _TYPE, _ANY, _NONE = 3, 2, 1, 0
ACCEPTED: Final = ", ".join(Media)


@lru_cache(maxsize=256)  # clients send a handful of different headers, thousands of times a second
def media_for(accept: str) -> Media | None:
    """Return the representation that `accept` likes best, or None when it takes none of ours.

    An empty header takes anything. The most specific range that matches a representation gives its quality.
    """
    if not accept.strip():
        return Media.JSON
    ranges = _ranges(accept)
    best, best_quality = None, 0.0
    for media in Media:
        quality = _quality(media, ranges)
        if quality > best_quality:
            best, best_quality = media, quality
    return best


@lru_cache(maxsize=256)
def takes_gzip(accept_encoding: str) -> bool:
    """Return True when a gzip body is welcome: named or covered by `*`, and not with q=0."""
    qualities = dict(_ranges(accept_encoding))
    return qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0))) > 0


def _ranges(header: str) -> list[tuple[str, float]]:
    ranges = []
    for part in header.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name:
            ranges.append((name, _q(parameters)))
    return ranges


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0.0 <= quality <= 1.0 else 0.0  # also for nan, which compares false
    return 1.0


def _quality(media: Media, ranges: list[tuple[str, float]]) -> float:
    best_rank, quality = _NONE, 0.0
    for name, q in ranges:
        if name == media:
            rank = _EXACT
        elif name == media.split("/")[0] + "/*":
            rank = _TYPE
        elif name == "*/*":
            rank = _ANY
        else:
            continue
        if rank > best_rank:
            best_rank, quality = rank, q
    return quality
