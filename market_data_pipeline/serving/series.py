"""Answers about one series: from the cache of records, or read from the database, in the representation requested."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from starlette.responses import Response

from market_data_pipeline.domain.adjustments import Adjustment
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.reports.securities import followed_as
from market_data_pipeline.reports.series_records import SeriesSummary, has_other_hours, read_records, similar_symbol
from market_data_pipeline.serving.answers import Answer, opening
from market_data_pipeline.serving.cache import DEEPEST, RecordsKey, RequestKey, ResponseCache, SingleFlight, Version
from market_data_pipeline.serving.cursors import encode_cursor, next_link
from market_data_pipeline.serving.formats import Media, in_milliseconds, json_columns, json_records, takes_gzip
from market_data_pipeline.serving.middleware import SCOPE_KEY
from market_data_pipeline.serving.records import Page, Records, depth_for, trimmed
from market_data_pipeline.serving.series_problems import unknown_symbol, without_records
from market_data_pipeline.serving.tables import encode_table
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import sqlalchemy as sa
    from fastapi import Request

    from market_data_pipeline.reports import series_records
    from market_data_pipeline.reports.series_records import Column, Range, Rows, Watermarks
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.serving.problems import Problem
    from market_data_pipeline.store.prepared import PreparedReader

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Selection:
    """What an endpoint reads of a series, and how it calls it.

    Attributes:
        records_key: the member of a JSON answer that holds the records.
        columns: of a record.
        read_as: what of a series they are.
        watermarks: from which the freshness of an answer is computed; None when there is nothing of the series.
        adjustment: what its bars are adjusted for.
        as_of: the instant whose knowledge is requested; None for now.
        regular: returns what is read of a series of which only the regular hours are asked for; None for all hours.
        members: further members of a JSON answer.
    """

    records_key: str
    columns: Sequence[Column]
    read_as: series_records.Selection
    watermarks: Callable[[SeriesSummary], Watermarks | None]
    adjustment: Adjustment = Adjustment.SPLITS
    as_of: datetime | None = None
    regular: Callable[[Series], series_records.Selection] | None = None
    members: dict[str, Any] = field(default_factory=dict)

    def read(
        self, reader: PreparedReader, series: Series, records: Range, now: datetime
    ) -> tuple[SeriesSummary, Rows, bool]:
        """Return what is known of `series`, the records in the range, and whether `limit` cut off older ones."""
        summary, rows = read_records(
            reader,
            self.read_as if self.regular is None else self.regular(series),
            series,
            replace(records, limit=records.limit + 1),
            now,
            adjusted=self.adjustment is not Adjustment.RAW,
            as_of=self.as_of,
        )
        return (summary, *trimmed(rows, records.limit))


@dataclass(frozen=True, slots=True)
class SeriesRequest:
    """One parsed request: which records of which series, and how they are represented."""

    series: Series
    selection: Selection
    range: Range
    media: Media
    route: str
    milliseconds: bool = False

    def encoded(self, rows: Rows, *, is_cut: bool) -> Page:
        """Return `rows` as they are requested."""
        return Page(
            encode(self.media, self.selection.columns, self.series, rows, as_milliseconds=self.milliseconds),
            len(rows),
            rows[0][0] if rows else None,
            rows[-1][0] if rows else None,
            is_cut,
        )


def encode(media: Media, columns: Sequence[Column], series: Series, rows: Rows, *, as_milliseconds: bool) -> bytes:
    """Return the rows of one series as `media`."""
    if media not in {Media.JSON, Media.COLUMNS}:
        return encode_table(media, columns, [(series, rows)], as_milliseconds=as_milliseconds)
    shown = in_milliseconds(rows) if as_milliseconds else rows
    return json_records(columns, shown) if media is Media.JSON else json_columns(columns, shown)


def records_member(selection: Selection, media: Media) -> str:
    """Return the name of the member that holds the records in JSON."""
    return "columns" if media is Media.COLUMNS else selection.records_key


def paging(link: bytes, query: bytes, series: Sequence[Series], ends: Sequence[datetime | None]) -> dict[str, Any]:
    """Return the members about further pages, of which there is one when any series has an end for it."""
    if not any(ends):
        return {"truncated": False, "next": None, "cursor": None}
    cursor = encode_cursor(series, ends)
    return {"truncated": True, "next": next_link(link, query, cursor), "cursor": cursor}


def date_range(page: Page) -> dict[str, datetime] | None:
    """Return the starts of the first and the last record."""
    return None if page.first is None or page.last is None else {"start": page.first, "end": page.last}


@dataclass
class SeriesAnswers:
    """Makes the answers that the response cache does not hold.

    Concurrent requests for the same bytes, or for windows of the same records, share one read.
    """

    database: Database
    cache: ResponseCache
    clock: Callable[[], datetime]
    cut: Callable[[], None]  # called for each answer that was cut from records in memory
    prefix: str = ""  # the path below which people reach the API
    _flight: SingleFlight = field(default_factory=SingleFlight)

    async def respond(self, http: Request, request: SeriesRequest) -> Response:
        """Return the response to a request that missed the cache.

        A symbol that is not tracked leads to the one whose security had that ticker, if there is one.

        Raises:
            Problem: 404 for a symbol that is not tracked or a series that was never computed.
            DatabaseUnavailableError: the database cannot be used.
        """
        gzip = takes_gzip(",".join(http.headers.getlist("accept-encoding")))
        try:
            answer = await self._answer(http.scope[SCOPE_KEY], self.link(http), request)
        except _Renamed as other:  # a relative address, which holds behind any proxy
            query = f"?{http.url.query}" if http.url.query else ""
            headers = {"location": f"./{quote(other.symbol, safe='')}{query}", "cache-control": "no-cache"}
            return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers=headers)
        if gzip:
            await answer.compress()
        if_none_match = ",".join(http.headers.getlist("if-none-match"))
        return answer.render(self.clock(), gzip=gzip, if_none_match=if_none_match)

    def link(self, http: Request) -> bytes:
        """Return the path of a request as a link has it."""
        path: bytes = http.scope.get("raw_path") or http.url.path.encode()
        return self.prefix.encode() + path.partition(b"?")[0]

    async def _answer(self, key: RequestKey, link: bytes, request: SeriesRequest) -> Answer:
        def made(summary: SeriesSummary, page: Page) -> Answer:
            return _made(request, summary, page, link, key.query)

        series = request.series
        version = self.cache.version(series)
        if version is None:
            return await self._read_answer(request, made)
        some_hours = request.selection.regular is not None and has_other_hours(series)
        if some_hours and series.timeframe in {Timeframe.H1, Timeframe.H4}:
            # They are made of another series' bars, whose commits do not outdate a kept answer, and some without a
            # commit, once their day has settled: shared with those who ask at the same time, but not kept.
            base = self.cache.version(Series(series.symbol, series.timeframe.base))
            return await self._flight.run((key, version, base), lambda: self._read_answer(request, made))
        answer = None
        if (
            request.media is Media.JSON
            and not request.milliseconds
            and request.selection.as_of is None
            and not some_hours  # the records in memory are those of all hours
        ):
            answer = await self._cut_answer(request, version, made)
        if answer is None:
            answer = await self._flight.run((key, version), lambda: self._read_answer(request, made))
        self.cache.answers.put(key, answer, version)
        return answer

    async def _cut_answer(
        self, request: SeriesRequest, version: Version, made: Callable[[SeriesSummary, Page], Answer]
    ) -> Answer | None:
        """Return the answer cut from the newest records, which are read if necessary; None when it reaches too far."""
        key = RecordsKey(request.series, request.selection.records_key, request.selection.adjustment)
        records = self.cache.records.get(key)
        page = records.cut(request.range) if records else None
        if page is not None:
            self.cut()
        else:
            depth = depth_for(request.range.limit)
            newest = request.range.end is None or request.range.end > self.clock()
            if not newest or depth > DEEPEST:
                return None
            records = await self._flight.run((key, depth, version), lambda: self._read_newest(request, depth))
            self.cache.records.put(key, records, version)
            page = records.cut(request.range)
        return made(records.summary, page) if records and page is not None else None

    async def _read_answer(self, request: SeriesRequest, made: Callable[[SeriesSummary, Page], Answer]) -> Answer:
        def encoded(summary: SeriesSummary, rows: Rows, is_cut: bool) -> Answer:
            return made(summary, request.encoded(rows, is_cut=is_cut))

        return await self._read(request, request.range, encoded)

    async def _read_newest(self, request: SeriesRequest, depth: int) -> Records:
        def kept(summary: SeriesSummary, rows: Rows, is_cut: bool) -> Records:
            return Records.of(request.series, summary, request.selection.columns, rows, is_complete=not is_cut)

        return await self._read(request, replace(request.range, start=None, end=None, limit=depth), kept)

    async def _read(self, request: SeriesRequest, records: Range, make: Callable[[SeriesSummary, Rows, bool], T]) -> T:
        """Return what `make` makes of the records in a range, read in one snapshot and in a thread.

        Raises:
            Problem: 404, when the series is not tracked or was never computed.
        """
        now, series, selection = self.clock(), request.series, request.selection

        def read(reader: PreparedReader) -> T | SeriesSummary:
            summary, rows, is_cut = selection.read(reader, series, records, now)
            return summary if selection.watermarks(summary) is None else make(summary, rows, is_cut)

        found = await self.database.series(read)
        if isinstance(found, SeriesSummary):
            summary = found
            raise await self.database.report(
                lambda source: _problem(source, self.database.writer, series, summary, selection, now)
            )
        return found


class _Renamed(Exception):
    """The ticker is, or was, that of the security behind another symbol."""

    def __init__(self, symbol: str) -> None:
        super().__init__(symbol)
        self.symbol = symbol


def _problem(
    source: sa.Engine,
    writer: sa.Engine,
    series: Series,
    summary: SeriesSummary,
    selection: Selection,
    now: datetime,
) -> Problem | _Renamed:
    """Return why there is nothing of a series."""
    if summary.tracked:
        return without_records(writer, series, summary.futile, selection.records_key, now)
    with snapshot(source) as connection:
        if (other := followed_as(connection, series.symbol, selection.as_of)) is not None:
            return _Renamed(other)
        return unknown_symbol(series.symbol, similar_symbol(connection, series.symbol))


def _made(request: SeriesRequest, summary: SeriesSummary, page: Page, link: bytes, query: bytes) -> Answer:
    """Return the answer that holds a page."""
    selection, media = request.selection, request.media
    watermarks = selection.watermarks(summary)
    assert watermarks is not None  # noqa: S101 - narrows the type: nothing is made of a series that has none
    pages = paging(link, query, [request.series], [page.first if page.is_cut else None])
    head, content = b"", page.content
    if media in {Media.JSON, Media.COLUMNS}:
        content += b"}"
        head = opening(
            {
                "symbol": request.series.symbol,
                "timeframe": request.series.timeframe,
                **selection.members,
                "records_returned": page.size,
                "date_range": date_range(page),
                **pages,
            }
        )
    return Answer(
        series=request.series,
        media=media,
        opening=head,
        records_key=records_member(selection, media),
        content=content,
        watermarks=watermarks,
        valid_until=summary.next_action,
        route=request.route,
        next_link=pages["next"],
    )
