"""Answers about several series at once, read in one snapshot; nothing of them is kept.

A symbol that is not tracked refuses the request, as it would for one symbol; the request is led on to the present names
of those that the securities of tracked ones had once. A series of which nothing is stored yet is
part of the answer: with the problem that it would be on its own in JSON, and in the header `X-Missing` of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.responses import Response
from xxhash import xxh3_128

from market_data_pipeline.domain.series import canonical_symbol
from market_data_pipeline.reports.securities import followed_as
from market_data_pipeline.serving.answers import (
    ALWAYS,
    CONTENT_TYPES,
    WORTH_COMPRESSING,
    RenderedResponse,
    link_header,
    matches,
)
from market_data_pipeline.serving.formats import JSON_OPTIONS, Media, deflate, gzip_member, takes_gzip
from market_data_pipeline.serving.freshness import freshness_at
from market_data_pipeline.serving.problem_types import ProblemType
from market_data_pipeline.serving.problems import Problem, problem_document
from market_data_pipeline.serving.series import encode, paging, records_member
from market_data_pipeline.serving.series_problems import LONGEST_SYMBOL, without_records
from market_data_pipeline.serving.tables import encode_table
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    import sqlalchemy as sa
    from fastapi import Request

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reports.series_records import Range, Rows, SeriesSummary, Watermarks
    from market_data_pipeline.serving.answers import Headers
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.serving.freshness import AnswerFreshness
    from market_data_pipeline.serving.series import Selection
    from market_data_pipeline.store.prepared import PreparedReader


@dataclass(frozen=True, slots=True)
class SeveralRequest:
    """One parsed request; a series without a range was sent whole on earlier pages and is left out."""

    ranges: dict[Series, Range | None]
    selection: Selection
    media: Media
    milliseconds: bool


class _Found(NamedTuple):
    series: Series
    summary: SeriesSummary
    watermarks: Watermarks | None
    rows: Rows
    is_cut: bool

    @property
    def has_any(self) -> bool:
        return self.watermarks is not None


class _Encoded(NamedTuple):
    parts: tuple[bytes, ...]
    etag: str
    headers: Headers


@dataclass(frozen=True)
class SeveralAnswers:
    """Makes the answers; `prefix` is the path below which people reach the API."""

    database: Database
    clock: Callable[[], datetime]
    prefix: str = ""

    async def respond(self, http: Request, request: SeveralRequest) -> Response:
        """Return the response.

        Raises:
            Problem: 404 for symbols that are not tracked.
            DatabaseUnavailableError: the database cannot be used.
        """
        now = self.clock()
        raw: bytes = http.scope.get("raw_path") or http.url.path.encode()
        link = self.prefix.encode() + raw.partition(b"?")[0]
        encoding = _Encoding(
            request,
            now,
            link,
            http.scope["query_string"],
            takes_gzip(",".join(http.headers.getlist("accept-encoding"))),
        )

        def read(reader: PreparedReader) -> _Encoded | list[_Found]:
            found = _read(reader, request, now)
            return encoding.encoded(found, {}) if all(one.has_any for one in found) else found

        def explained(source: sa.Engine) -> _Encoded | dict[str, str]:
            empty = [one for one in found if not one.has_any]
            if unknown := [one.series.symbol for one in empty if not one.summary.tracked]:
                return _present_names(source, unknown, request.selection.as_of)
            what = request.selection.records_key
            writer = self.database.writer
            problems = {one.series: without_records(writer, one.series, one.summary.futile, what, now) for one in empty}
            return encoding.encoded(found, problems)

        first = await self.database.series(read)
        if isinstance(first, _Encoded):
            made = first
        else:
            found = first
            other = await self.database.report(explained)
            if isinstance(other, dict):  # a relative address, which holds behind any proxy
                where = {"location": f"?{_renamed(http.url.query, other)}", "cache-control": "no-cache"}
                return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers=where)
            made = other
        headers: Headers = [(b"etag", made.etag.encode()), *ALWAYS, *made.headers]
        if matches(",".join(http.headers.getlist("if-none-match")), made.etag):
            return RenderedResponse(304, headers, ())
        headers.append((b"content-length", str(sum(map(len, made.parts))).encode()))
        return RenderedResponse(200, headers, made.parts)


def _read(reader: PreparedReader, request: SeveralRequest, now: datetime) -> list[_Found]:
    found = []
    with reader.snapshot():
        for series, records in request.ranges.items():
            if records is not None:
                summary, rows, is_cut = request.selection.read(reader, series, records, now)
                found.append(_Found(series, summary, request.selection.watermarks(summary), rows, is_cut))
    return found


def _present_names(source: sa.Engine, symbols: Sequence[str], known_at: datetime | None) -> dict[str, str]:
    """Return by former ticker the tracked symbol of its security.

    Raises:
        Problem: 404 for those of which there is none.
    """
    with snapshot(source) as connection:
        found = {symbol: followed_as(connection, symbol, known_at) for symbol in symbols}
    if unknown := [symbol for symbol, other in found.items() if other is None]:
        raise _unknown(unknown)
    return {symbol: other for symbol, other in found.items() if other is not None}


def _renamed(query: str, names: Mapping[str, str]) -> str:
    """Return a query with the present names of symbols, each once."""
    pairs = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        symbols = dict.fromkeys(names.get(each, each) for each in map(canonical_symbol, value.split(",")))
        pairs.append((name, ",".join(symbols) if name == "symbols" else value))
    return urlencode(pairs, safe=",:")


def _unknown(symbols: Sequence[str]) -> Problem:
    named = ", ".join(repr(symbol[:LONGEST_SYMBOL]) for symbol in symbols[:20])
    more = f" and {len(symbols) - 20} more" if len(symbols) > 20 else ""
    return Problem(
        HTTPStatus.NOT_FOUND,
        f"Not tracked here: {named}{more}. /api/v1/symbols lists what is; `market-data universe add` adds a symbol.",
        kind=ProblemType.NOT_TRACKED,
        symbols=list(symbols),
    )


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How one answer is encoded, in the thread that reads it.

    Attributes:
        request: what was requested.
        now: aware UTC.
        link: the path of the request as a link has it.
        query: of the request.
        gzip: whether the client accepts it.
    """

    request: SeveralRequest
    now: datetime
    link: bytes
    query: bytes
    gzip: bool

    def encoded(self, found: Sequence[_Found], problems: Mapping[Series, Problem]) -> _Encoded:
        """Return the answer; `problems` are those of the series of which there is nothing."""
        request = self.request
        ends = {one.series: one.rows[0][0] for one in found if one.is_cut}
        pages = paging(self.link, self.query, list(request.ranges), [ends.get(series) for series in request.ranges])
        statuses = ["MISSING" if one.watermarks is None else self._fresh(one.watermarks).status for one in found]
        digest = xxh3_128(" ".join([request.media, str(pages["next"]), *statuses]).encode())
        headers = [(b"content-type", CONTENT_TYPES[request.media]), *link_header(pages["next"])]
        if request.media in {Media.JSON, Media.COLUMNS}:
            head = {
                **request.selection.members,
                "records_returned": sum(len(one.rows) for one in found),
                **pages,
                "timestamp": self.now,
            }
            members = [self._member(one, problems.get(one.series)) for one in found]
            for _, records in members:
                digest.update(records)
            opened = orjson.dumps(head, option=JSON_OPTIONS)[:-1]
            content = b'%b,"series":[%b]}' % (opened, b",".join(b"%b%b" % member for member in members))
        else:
            parts = [(one.series, one.rows) for one in found]
            columns = request.selection.columns
            content = encode_table(request.media, columns, parts, as_milliseconds=request.milliseconds)
            digest.update(content)
            if problems:
                headers.append((b"x-missing", ",".join(series.symbol for series in problems).encode()))
        sent: tuple[bytes, ...] = (content,)
        if self.gzip and len(content) >= WORTH_COMPRESSING:
            headers.append((b"content-encoding", b"gzip"))
            sent = gzip_member(b"", content, deflate(content))
        return _Encoded(sent, f'W/"{digest.hexdigest()}"', headers)

    def _fresh(self, watermarks: Watermarks) -> AnswerFreshness:
        return freshness_at(watermarks, self.now)

    def _member(self, found: _Found, problem: Problem | None) -> tuple[bytes, bytes]:
        """Return what is said about a series, open for its records, and its records with the brace that closes both."""
        request, rows = self.request, found.rows
        fresh = None if found.watermarks is None else orjson.Fragment(self._fresh(found.watermarks).to_json())
        own_path = f"{self.link.decode()}/{found.series.symbol}"
        known = {
            "symbol": found.series.symbol,
            "timeframe": found.series.timeframe,
            "records_returned": len(rows),
            "truncated": found.is_cut,
            "date_range": {"start": rows[0][0], "end": rows[-1][0]} if rows else None,
            "freshness": fresh,
            "problem": None if problem is None else orjson.Fragment(problem_document(problem, own_path)),
        }
        records = encode(
            request.media, request.selection.columns, found.series, rows, as_milliseconds=request.milliseconds
        )
        opened = orjson.dumps(known, option=JSON_OPTIONS)[:-1]
        return opened + b',"%b":' % records_member(request.selection, request.media).encode(), records + b"}"
