"""The 404s of series: not tracked, never computed, or nothing at the vendor; each in words for the client."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.life import Life, sentence
from market_data_pipeline.domain.markets import index_called, meant_by, why_not_followed
from market_data_pipeline.serving.formats import instant
from market_data_pipeline.serving.problem_types import ProblemType
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.store.backfill_requests import request_backfill

if TYPE_CHECKING:
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reports.series_records import FutileLook
    from market_data_pipeline.store.backfill_requests import BackfillRequest

LONGEST_SYMBOL: Final = 40  # characters; tickers have at most 34
REQUESTED_BY: Final = "api"
SCHEDULE_SLACK: Final = timedelta(minutes=15)  # a scheduled run takes its time; later than this, it was missed
ASK_AGAIN_AFTER: Final = 60  # seconds; the sensor looks every 10 s and a series takes a few seconds


def may_exist(symbol: str) -> bool:
    """Return whether PostgreSQL can be asked for a symbol; it cannot hold every text."""
    return len(symbol) <= LONGEST_SYMBOL and symbol.isprintable()


def unknown_symbol(symbol: str, similar: str | None) -> Problem:
    """Return the 404 for a symbol that is not in the universe."""
    if not similar and (why := why_not_followed(symbol[:LONGEST_SYMBOL])) is not None:
        return Problem(HTTPStatus.NOT_FOUND, why, kind=ProblemType.NOT_TRACKED)
    meant = similar or meant_by(symbol) or index_called(symbol)
    hint = f" Did you mean {meant}?" if meant else " `market-data universe add` adds a symbol."
    return Problem(
        HTTPStatus.NOT_FOUND, f"{symbol[:LONGEST_SYMBOL]!r} is not tracked here.{hint}", kind=ProblemType.NOT_TRACKED
    )


def without_records(source: sa.Engine, series: Series, look: FutileLook | None, what: str, now: datetime) -> Problem:
    """Return the 404 for a tracked series without any `what`, for example `features`.

    A backfill is queued, unless the vendor was asked since the last schedule and had nothing.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
    """
    if look is not None and now < look.next_at + SCHEDULE_SLACK:
        return _nothing(series, look, what, now)
    return _missing(series, request_backfill(source, series, now, REQUESTED_BY), what)


def _nothing(series: Series, look: FutileLook, what: str, now: datetime) -> Problem:
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


def _missing(series: Series, request: BackfillRequest, what: str) -> Problem:
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
