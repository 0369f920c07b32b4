"""The two endpoints of a series, its features and its bars: from the parsed request to the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from market_data_pipeline.domain.life import Life, sentence
from market_data_pipeline.domain.series import Series, canonical_symbol
from market_data_pipeline.reports.series_records import (
    BAR_COLUMNS,
    BARS,
    BARS_AS_OF,
    Range,
    features_selection,
    read_records,
    read_summary,
    record_columns,
    similar_symbol,
)
from market_data_pipeline.serving import openapi
from market_data_pipeline.serving.answers import Answer, opening
from market_data_pipeline.serving.cache import (
    DEEPEST,
    Records,
    RecordsKey,
    RequestKey,
    ResponseCache,
    SingleFlight,
    Version,
    depth_for,
    pack,
    start_of,
)
from market_data_pipeline.serving.formats import ACCEPTED, Media, encode, instant, json_lines, media_for, takes_gzip
from market_data_pipeline.serving.middleware import SCOPE_KEY
from market_data_pipeline.serving.parameters import BarsQuery, SeriesQuery
from market_data_pipeline.serving.problem_types import ProblemType
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.store.backfill_requests import request_backfill
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import sqlalchemy as sa

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.reports.series_records import Column, FutileLook, Rows, SeriesSummary, Watermarks
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.store.backfill_requests import BackfillRequest

T = TypeVar("T")

FEATURES_PATH: Final = "/api/v1/features/quant/{symbol}"
BARS_PATH: Final = "/api/v1/bars/{symbol}"
LONGEST_SYMBOL: Final = 40  # characters; tickers have at most 34
REQUESTED_BY: Final = "api"
SCHEDULE_SLACK: Final = timedelta(minutes=15)  # a scheduled run takes its time; later than this, it was missed
ASK_AGAIN_AFTER: Final = 60  # seconds; the sensor looks every 10 s and a series takes a few seconds

Ticker = Annotated[str, Path(description="The vendor's ticker, case-sensitive.", examples=["AAPL"])]


@dataclass(frozen=True, slots=True)
class SeriesRequest:
    """One parsed request: what to read, and what the answer holds."""

    series: Series
    route: str
    records_key: str
    columns: Sequence[Column]
    selection: str
    range: Range
    watermarks: Callable[[SeriesSummary], Watermarks | None]
    adjusted: bool = True
    as_of: datetime | None = None
    members: dict[str, Any] = field(default_factory=dict)  # further members of a JSON answer


@dataclass
class SeriesAnswers:
    """Makes the answers that the response cache does not hold.

    Concurrent requests for the same bytes, or for windows of the same records, share one read.
    """

    database: Database
    cache: ResponseCache
    clock: Callable[[], datetime]
    cut: Callable[[], None]  # called for each answer that was cut from records in memory
    _flight: SingleFlight = field(default_factory=SingleFlight)

    async def respond(self, http: Request, request: SeriesRequest) -> Response:
        """Return the response to a request that missed the cache.

        Raises:
            Problem: 404 for a symbol that is not tracked or a series that was never computed, 406 when no
                representation is acceptable.
            DatabaseUnavailableError: the database cannot be used.
        """
        media = media_for(",".join(http.headers.getlist("accept")))
        if media is None:
            raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"This endpoint offers {ACCEPTED}.")
        answer = await self._answer(http.scope[SCOPE_KEY], request, media)
        if gzip := takes_gzip(",".join(http.headers.getlist("accept-encoding"))):
            await answer.compress()
        if_none_match = ",".join(http.headers.getlist("if-none-match"))
        return answer.render(self.clock(), gzip=gzip, if_none_match=if_none_match)

    async def _answer(self, key: RequestKey, request: SeriesRequest, media: Media) -> Answer:
        version = self.cache.version(request.series)
        if version is None:
            return await self._read_answer(request, media)
        answer = None
        if media is Media.JSON and request.as_of is None:
            answer = await self._cut_answer(request, version)
        if answer is None:
            answer = await self._flight.run((key, version), lambda: self._read_answer(request, media))
        self.cache.answers.put(key, answer, version)
        return answer

    async def _cut_answer(self, request: SeriesRequest, version: Version) -> Answer | None:
        """Return the answer cut from the newest records, which are read if necessary; None when it reaches too far."""
        key = RecordsKey(request.series, request.records_key, request.adjusted)
        records = self.cache.records.get(key)
        window = records.cut(request.range) if records else None
        if window is not None:
            self.cut()
        else:
            depth = depth_for(request.range.limit)
            newest = request.range.end is None or request.range.end > self.clock()
            if not newest or depth > DEEPEST:
                return None
            records = await self._flight.run((key, depth, version), lambda: self._read_newest(request, depth))
            self.cache.records.put(key, records, version)
            window = records.cut(request.range)
        return _json_answer(request, records.summary, window) if records and window is not None else None

    async def _read_answer(self, request: SeriesRequest, media: Media) -> Answer:
        def encoded(summary: SeriesSummary, rows: Rows) -> Answer:
            if media is Media.JSON:
                return _json_answer(request, summary, json_lines(request.columns, rows).splitlines())
            return _made(request, summary, media, encode(media, request.columns, rows))

        return await self._read(request, request.range, encoded)

    async def _read_newest(self, request: SeriesRequest, depth: int) -> Records:
        def packed(summary: SeriesSummary, rows: Rows) -> Records:
            return Records(request.series, summary, pack(json_lines(request.columns, rows)), len(rows) < depth)

        return await self._read(request, Range(None, None, depth), packed)

    async def _read(self, request: SeriesRequest, records: Range, make: Callable[[SeriesSummary, Rows], T]) -> T:
        """Return what `make` makes of the records in a range, read in one snapshot and in a thread.

        Raises:
            Problem: 404, when the series is not tracked or was never computed.
        """
        now, series = self.clock(), request.series

        def read(source: sa.Engine) -> T:
            rows: Rows | None = None
            with snapshot(source) as connection:
                summary = read_summary(connection, series, now)
                if request.watermarks(summary) is not None:
                    rows = read_records(
                        connection, request.selection, series, records, adjusted=request.adjusted, as_of=request.as_of
                    )
                elif not summary.tracked:
                    raise unknown_symbol(series.symbol, similar_symbol(connection, series.symbol))
            if rows is None:
                if summary.futile is not None and now < summary.futile.next_at + SCHEDULE_SLACK:
                    raise nothing_problem(series, summary.futile, request.records_key, now)
                backfill = request_backfill(source, series, now, REQUESTED_BY)
                raise missing_problem(series, backfill, request.records_key)
            return make(summary, rows)

        return await self.database.series(read)


def _json_answer(request: SeriesRequest, summary: SeriesSummary, records: Sequence[bytes]) -> Answer:
    """Return the answer of encoded `records`."""
    first, last = (f"{start_of(records[at]).decode()}Z" if records else None for at in (0, -1))
    head = opening(
        {
            "symbol": request.series.symbol,
            "timeframe": request.series.timeframe,
            **request.members,
            "records_returned": len(records),
            "date_range": {"start": first, "end": last} if records else None,
        }
    )
    return _made(request, summary, Media.JSON, b"[%b]}" % b",".join(records), head)


def _made(request: SeriesRequest, summary: SeriesSummary, media: Media, content: bytes, head: bytes = b"") -> Answer:
    watermarks = request.watermarks(summary)
    assert watermarks is not None  # noqa: S101 - narrows the type: nothing is read of a series that has none
    return Answer(
        series=request.series,
        media=media,
        opening=head,
        records_key=request.records_key,
        content=content,
        watermarks=watermarks,
        valid_until=summary.next_split,
        route=request.route,
    )


def unknown_symbol(symbol: str, similar: str | None) -> Problem:
    """Return the 404 for a symbol that is not in the universe."""
    hint = f" Did you mean {similar}?" if similar else " `market-data universe add` adds a symbol."
    return Problem(
        HTTPStatus.NOT_FOUND, f"{symbol[:LONGEST_SYMBOL]!r} is not tracked here.{hint}", kind=ProblemType.NOT_TRACKED
    )


def nothing_problem(series: Series, look: FutileLook, what: str, now: datetime) -> Problem:
    """Return the 404 for a tracked series of which the vendor had nothing when it was last asked."""
    looked_at, next_at = instant(look.looked_at), instant(look.next_at)
    advice = ""
    if look.base_held:
        why = f"no {series.timeframe} bar of it is over yet"
    elif look.life is Life.TRADING:
        why = "the vendor has no bars of it yet"
    else:
        why = f"it {sentence(look.life, None)}"
        spelling = "Check the spelling; " if look.life is Life.UNKNOWN else ""
        advice = f" {spelling}`market-data universe remove {series.symbol}` stops following it."
    return Problem(
        HTTPStatus.NOT_FOUND,
        f"{series.symbol} is tracked, but it has no {series.timeframe} {what}: {why}. The vendor was last asked at "
        f"{looked_at}; it is asked again at {next_at}, and no backfill is queued before.{advice}",
        kind=ProblemType.NO_BARS,
        headers={"retry-after": str(max(int((look.next_at - now).total_seconds()) + 1, ASK_AGAIN_AFTER))},
        symbol=series.symbol,
        timeframe=str(series.timeframe),
        freshness={"status": "MISSING", "life": look.life.value},
        looked_at=looked_at,
        next_look_at=next_at,
    )


def missing_problem(series: Series, request: BackfillRequest, what: str) -> Problem:
    """Return the 404 for a tracked series whose `what`, for example `features`, have never been computed."""
    requested_at = instant(request.requested_at)
    state = (
        f"A backfill was queued just now, at {requested_at}"
        if request.is_new
        else f"A backfill was already requested at {requested_at} and is {request.status}"
    )
    return Problem(
        HTTPStatus.NOT_FOUND,
        f"{series.symbol} is tracked, but its {series.timeframe} {what} have never been computed. {state}: "
        f"ask again in a minute.",
        kind=ProblemType.NEVER_COMPUTED,
        headers={"retry-after": str(ASK_AGAIN_AFTER)},
        symbol=series.symbol,
        timeframe=str(series.timeframe),
        freshness={"status": "MISSING"},
        backfill_request={
            "id": request.id,
            "status": request.status,
            "requested_at": requested_at,
            "already_requested": not request.is_new,
        },
    )


def may_exist(symbol: str) -> bool:
    """Return whether PostgreSQL can be asked for a symbol; it cannot hold every text."""
    return len(symbol) <= LONGEST_SYMBOL and symbol.isprintable()


def _series(symbol: str, query: SeriesQuery) -> Series:
    name = canonical_symbol(symbol)
    if not may_exist(name):
        raise unknown_symbol(symbol, None)
    return Series(name, query.timeframe)


def router(answers: SeriesAnswers, own: Sequence[Feature] = ()) -> APIRouter:
    """Return the routes of series, answered by `answers`; records of features also hold the project's `own` ones."""
    columns, selection = record_columns(own), features_selection(own)
    routes = APIRouter(tags=["series"])

    @routes.get(
        FEATURES_PATH.replace("{symbol}", "{symbol:path}"),
        summary="Features of a series",
        responses=openapi.series_responses(openapi.features_example(columns), openapi.features_answer(columns)),
        response_class=Response,
        operation_id="features",
    )
    async def features(http: Request, symbol: Ticker, query: Annotated[SeriesQuery, Query()]) -> Response:
        """Split-adjusted bars with their 17 features, the newest `limit` of the range, oldest first.

        A series that is tracked but was never computed is a 404, and a backfill of it is queued, unless the vendor was
        asked since the last schedule and had nothing.
        """
        series = _series(symbol, query)
        request = SeriesRequest(
            series,
            FEATURES_PATH,
            "features",
            columns,
            selection,
            query.range_for(series.symbol),
            lambda summary: summary.features,
        )
        return await answers.respond(http, request)

    @routes.get(
        BARS_PATH.replace("{symbol}", "{symbol:path}"),
        summary="Bars of a series",
        responses=openapi.series_responses(openapi.BARS_EXAMPLE, openapi.BarsAnswer),
        response_class=Response,
        operation_id="bars",
    )
    async def bars(http: Request, symbol: Ticker, query: Annotated[BarsQuery, Query()]) -> Response:
        """Bars, the newest `limit` of the range, oldest first; with `as_of`, the values known at that instant."""
        series = _series(symbol, query)
        as_of = query.known_at(answers.clock())
        request = SeriesRequest(
            series,
            BARS_PATH,
            "bars",
            BAR_COLUMNS,
            BARS if as_of is None else BARS_AS_OF,
            query.range_for(series.symbol),
            lambda summary: summary.bars,
            query.adjusted,
            as_of,
            {"adjusted": query.adjusted, "as_of": None if as_of is None else instant(as_of)},
        )
        return await answers.respond(http, request)

    return routes
