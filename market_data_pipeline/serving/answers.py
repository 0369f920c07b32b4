"""An answer about a series, kept as bytes and correct whenever it is sent.

The records are encoded and compressed once. What depends on time (freshness, timestamp) is a small head that is
written for each request and put before them. Tables have no place for a head: there it goes into headers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio.to_thread
import orjson
from starlette.responses import Response
from xxhash import xxh3_128

from market_data_pipeline.serving.formats import JSON_OPTIONS, Media, deflate, gzip_member, instant
from market_data_pipeline.serving.freshness import freshness_at

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.types import Receive, Scope, Send

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reports.series_records import Watermarks
    from market_data_pipeline.serving.freshness import AnswerFreshness

Headers = list[tuple[bytes, bytes]]

CONTENT_TYPES: Final = {media: media.encode() for media in Media} | {
    Media.CSV: b"text/csv; charset=utf-8; header=present"
}
# Clients keep the answer and revalidate it each time: corrections come at any time.
ALWAYS: Final = ((b"cache-control", b"no-cache"), (b"vary", b"Accept, Accept-Encoding"))
# Below this a compressed body saves less than a network packet, in bytes.
WORTH_COMPRESSING: Final = 1_000
# Below this the event loop compresses it in less than a millisecond, in bytes.
_WORTH_A_THREAD: Final = 500_000
# Below this copying a body costs less than sending another part of it, in bytes.
_WORTH_SHARING: Final = 100_000


class RenderedResponse(Response):
    """A response whose body consists of `parts`; the large one is shared by all responses of an answer."""

    def __init__(self, status: int, headers: Headers, parts: tuple[bytes, ...]) -> None:
        self.background = None
        self.status_code = status
        self.raw_headers = headers
        self.parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        parts = self.parts
        if sum(map(len, parts)) < _WORTH_SHARING:
            parts = (b"".join(parts),)
        for part in parts[:-1]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": parts[-1]})


@dataclass(slots=True)
class Answer:
    """The records of one request in one representation.

    Attributes:
        series: the series, whose next commit outdates this answer.
        media: the representation of `content`.
        opening: for JSON the constant part of the head, from `{` on without its closing brace; else empty.
        records_key: for JSON the name of the member that holds the records.
        content: the encoded records; for JSON that member's value and the brace that closes the answer.
        watermarks: what its freshness is computed from.
        valid_until: when a known split or dividend changes the prices without a commit, aware UTC; None for never.
        route: the template of the endpoint's path, for the metrics.
        next_link: the address of the page of older records; None when there are none.
    """

    series: Series
    media: Media
    opening: bytes
    records_key: str
    content: bytes
    watermarks: Watermarks
    valid_until: datetime | None
    route: str
    next_link: str | None = None
    _digest: str = field(init=False)
    _deflated: bytes | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # An ETag need not withstand forgery, and a cryptographic digest took a tenth of all the work on an answer.
        digest = xxh3_128(self.opening)
        digest.update(self.media.encode())
        digest.update(self.content)
        self._digest = digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes that the answer occupies, with room for the compressed form, which is made on first use."""
        return 2 * (len(self.content) + len(self.opening))

    async def compress(self) -> None:
        """Make the compressed form that `render` offers, once."""
        size = len(self.content)
        if self._deflated is not None or size < WORTH_COMPRESSING:
            return
        if size < _WORTH_A_THREAD:
            self._deflated = deflate(self.content)
        else:
            self._deflated = await anyio.to_thread.run_sync(deflate, self.content)

    def render(self, now: datetime, *, gzip: bool, if_none_match: str) -> RenderedResponse:
        """Return the response to a request at `now` (aware UTC); for a client that accepts gzip, `compress` first.

        The ETag is weak: two answers with the same one have the same records and freshness status, while their
        timestamps differ.
        """
        fresh = freshness_at(self.watermarks, now)
        etag = f'W/"{self._digest}-{fresh.status.lower()}"'
        headers: Headers = [(b"etag", etag.encode()), *ALWAYS, *_freshness_headers(fresh), *link_header(self.next_link)]
        if if_none_match and matches(if_none_match, etag):
            return RenderedResponse(304, headers, ())
        head = self._head(fresh, now)
        headers.append((b"content-type", CONTENT_TYPES[self.media]))
        if gzip and self._deflated is not None:
            headers.append((b"content-encoding", b"gzip"))
            parts: tuple[bytes, ...] = gzip_member(head, self.content, self._deflated)
        else:
            parts = (head, self.content)
        headers.append((b"content-length", str(sum(map(len, parts))).encode()))
        return RenderedResponse(200, headers, parts)

    def _head(self, fresh: AnswerFreshness, now: datetime) -> bytes:
        if not self.opening:
            return b""
        timestamp = orjson.dumps(now, option=JSON_OPTIONS)
        return b'%b,"freshness":%b,"timestamp":%b,"%b":' % (
            self.opening,
            fresh.to_json(),
            timestamp,
            self.records_key.encode(),
        )


def opening(members: dict[str, object]) -> bytes:
    """Return the constant part of a JSON answer's head, open for more members."""
    return orjson.dumps(members, option=JSON_OPTIONS)[:-1]


def link_header(next_link: str | None) -> Headers:
    """Return the header that tells where the next page is (RFC 8288); none without one."""
    return [] if next_link is None else [(b"link", f'<{next_link}>; rel="next"'.encode("latin-1"))]


def _freshness_headers(fresh: AnswerFreshness) -> Headers:
    values = (
        (b"x-freshness", fresh.status),
        (b"x-staleness-seconds", fresh.staleness_seconds),
        (b"x-age-seconds", fresh.age_seconds),
        (b"x-verified-at", fresh.verified_at and instant(fresh.verified_at)),
        (b"x-settled-until", fresh.settled_until and instant(fresh.settled_until)),
        (b"x-life", None if fresh.life == "trading" else fresh.life),
        (b"x-freshness-warning", fresh.warning),
        (b"x-cache-lifespan", fresh.cache_lifespan),
    )
    return [(name, str(value).encode()) for name, value in values if value is not None]


def matches(if_none_match: str, etag: str) -> bool:
    """Return whether a client has `etag`, compared weakly as If-None-Match requires (RFC 9110, section 13.1.2)."""
    opaque = etag.removeprefix("W/")
    candidates = (candidate.strip().removeprefix("W/") for candidate in if_none_match.split(","))
    return any(candidate in ("*", opaque) for candidate in candidates)
