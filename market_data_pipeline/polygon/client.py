"""The vendor's REST API as the pipeline needs it: bars of an interval, splits, dividends, a day of the whole market.

Pages are followed to the last one; a failure on any of them fails the whole call, and nothing partial is returned.
Every failure carries the cost so far as `.usage`.

Add here: an endpoint, or a paging fault that was recorded. Keep out: attempts (retry) and what an answer must look like
(wire, reference, dividends).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from market_data_pipeline.domain.bars import empty
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.counters import Counters, Tally
from market_data_pipeline.domain.errors import (
    DataError,
    PipelineError,
    VendorRequestError,
)
from market_data_pipeline.domain.life import Listing
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe, asset_class_of
from market_data_pipeline.polygon.bar_ranges import RANGES, check_grid, first_ms, following_ms, widened
from market_data_pipeline.polygon.dividends import DIVIDENDS_ENDPOINTS, read_dividends
from market_data_pipeline.polygon.endpoints import first_answer, led_by
from market_data_pipeline.polygon.listings import QUESTIONS, read_listing
from market_data_pipeline.polygon.market_status import read_is_closed, read_upcoming
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.polygon.reference import SPLITS_ENDPOINTS, each_once, read_splits
from market_data_pipeline.polygon.request_windows import PAGE_LIMIT
from market_data_pipeline.polygon.retry import MAX_ATTEMPTS, Request, Sender
from market_data_pipeline.polygon.securities import (
    Changes,
    ListedPage,
    read_changes,
    read_delisted,
    read_details,
    read_list,
    read_page,
)
from market_data_pipeline.polygon.transport import Limits, Transport
from market_data_pipeline.polygon.wire import joined, read_bars, read_market_day

if TYPE_CHECKING:
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.adjustments import ListedDividend
    from market_data_pipeline.domain.announcements import Announcement
    from market_data_pipeline.domain.identity import Delisted, Described
    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.polygon.dividends import DividendsEndpoint
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.polygon.rate_limit import Limiter
    from market_data_pipeline.polygon.reference import SplitRow, SplitsEndpoint
    from market_data_pipeline.polygon.rows import Rows
    from market_data_pipeline.polygon.wire import Page


# Pages of bars come to an end, because each must continue after the one before; the caps guard against a broken vendor.
PAGE_CAP: Final = 1_000  # a window of ten years of 5m bars has 50
EMPTY_PAGE_CAP: Final = 10
_LISTINGS_PAGE: Final = 10  # a ticker that was reused has one row for each security
_TICKERS_PAGE: Final = 1_000  # the vendor's maximum
_REFERENCE_ATTEMPTS: Final = 2  # bars wait for what is asked about a security, and go on without it
_STANDARD: Final = PRIORITIES[Tier.STANDARD]

_R = TypeVar("_R")


@dataclass(frozen=True)
class Fetched:
    """A complete answer, and what it cost.

    Attributes:
        bars: a bar frame.
        usage: the cost.
        refused: why the answer cannot be believed about a session day, of which `bars` has none; by session date.
        outside: a bar frame of what the vendor sent although it lies in no session.
        warnings: sentences about what was taken in although it was odd.
        files: for the days that came from a flat file, the id of its version; by session date.
    """

    bars: pd.DataFrame
    usage: Counters
    refused: Mapping[date, str] = field(default_factory=dict)
    outside: pd.DataFrame | None = None
    warnings: tuple[str, ...] = ()
    files: Mapping[date, int] = field(default_factory=dict)


class BarSource(Protocol):
    """Where raw bars come from: the vendor's REST API, or its flat files."""

    def bars(
        self, symbol: str, timeframe: Timeframe, interval: Interval, *, priority: int, most_attempts: int | None = None
    ) -> Fetched:
        """Return the raw bars that start in `interval` and in a session, see `PolygonClient.bars`."""


class PolygonClient:
    """A client of any Polygon-compatible server; threads may share it, and each gets its own connection.

    Args:
        base_url: the server, such as https://api.polygon.io.
        api_key: sent in the Authorization header only, and only to `base_url`.
        limiter: decides when a request may be sent.
        plan: distinguishes a 403 for bars older than its history from a 403 for everything; None when unknown.
        limits: deadlines and sizes of one exchange.
        max_attempts: attempts per page.
        sleep: waits between attempts, for a number of seconds.
        uniform: returns a random number between its two arguments, for the backoff.
        clock: returns the current instant, aware UTC.

    Raises:
        ConfigurationError: the address or the key cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        limiter: Limiter,
        plan: Plan | None = None,
        limits: Limits | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._limiter = limiter
        self._transport = Transport(base_url, api_key, limits)
        self._sender = Sender(self._transport, limiter, max_attempts=max_attempts, sleep=sleep, uniform=uniform)
        self._base_path = urlsplit(base_url).path.rstrip("/")  # of the server's own address, usually empty
        self._plan = plan
        self._clock = clock
        self._lock = threading.Lock()
        self._usage = Counters()
        self._splits_endpoints = SPLITS_ENDPOINTS
        self._dividends_endpoints: tuple[DividendsEndpoint, ...] = DIVIDENDS_ENDPOINTS

    def __repr__(self) -> str:
        """Show the server, never the key."""
        return f"PolygonClient({self._transport!r})"

    @property
    def usage(self) -> Counters:
        """The cost of all answers of this client so far."""
        return self._usage

    def close(self) -> None:
        """Close the connections of all threads, the limiter's too; the client can be used again."""
        self._transport.close()
        self._limiter.close()

    def bars(
        self,
        symbol: str,
        timeframe: Timeframe,
        interval: Interval,
        *,
        priority: int = _STANDARD,
        most_attempts: int | None = None,
    ) -> Fetched:
        """Return the raw bars that start in `interval` and in a session, once the last page has arrived.

        A day with a bar that cannot be believed is refused whole; the other days are as good as ever.

        A bar in progress is among them if the interval reaches beyond now: the vendor does not mark it, so end the
        interval at the last finished bar. An empty interval costs nothing.

        Args:
            symbol: the vendor's ticker.
            timeframe: `5m` or `1d`.
            interval: half-open UTC, both ends on the grid (day bars: at local midnight), because the vendor widens
                others to the grid.
            priority: place in the rate limit queue, see `rate_limit.PRIORITIES`.
            most_attempts: fewer attempts per page than usual, if given.

        Raises:
            TransientError: no answer after the last attempt; of which class, `retry.Sender.send` says.
            VendorRequestError: the request is refused (400, 404, older than the plan's history).
            VendorRefusedError: the key or the plan is refused.
            DataError: the answer as a whole cannot be trusted.
            UsageError: the timeframe is not fetched, or the interval is not on its grid.
        """
        with self._counted() as tally:
            check_grid(symbol, timeframe, interval)
            if interval.end <= interval.start:
                return Fetched(empty(), tally.counters)
            first, last = first_ms(symbol, timeframe, interval.start), to_us(interval.end) // 1000 - 1
            path = f"/v2/aggs/ticker/{quote(symbol, safe=':')}/range/{RANGES[timeframe]}/"
            what = f"{symbol} {timeframe} from {interval.start:%Y-%m-%d %H:%M} to {interval.end:%Y-%m-%d %H:%M} UTC"
            target = f"{path}{first}/{last}?adjusted=false&sort=asc&limit={PAGE_LIMIT}"
            rows: list[Rows] = []

            def read(body: bytes) -> Page[Rows]:
                return read_bars(body, symbol, timeframe, interval, rows)

            def remaining() -> tuple[int, int]:
                after = next((page.last_us for page in reversed(rows) if page.last_us is not None), None)
                return (first if after is None else following_ms(symbol, timeframe, after)), last

            market = asset_class_of(symbol).market
            request = Request(
                target, what, priority, self._beyond_history(interval.end), most_attempts, market.subscription
            )
            for page in self._pages(request, read, tally, path, {"adjusted": "false"}, remaining):
                tally.counters += Counters(pages=1)
                rows.append(page.rows)
        answer = joined(rows, symbol, timeframe, interval)
        return Fetched(answer.bars, tally.counters, answer.refused, answer.outside, answer.warnings)

    def splits(
        self,
        since: date,
        *,
        followed: Collection[str] | None = None,
        priority: int = _STANDARD,
        unreadable: dict[str, str] | None = None,
    ) -> tuple[SplitRow, ...]:
        """Return all tickers' splits executed on `since` or later, future ones too, by day and ticker.

        An endpoint that is retired (404, 410, a redirect) or not in the plan is not asked again by this client while
        another one answers.
        For `followed` and `unreadable` see `reference.read_splits`.

        Raises:
            PipelineError: as `bars`; VendorRequestError when every endpoint is refused.
        """

        def read(body: bytes) -> Page[tuple[SplitRow, ...]]:
            return read_splits(body, since, followed, unreadable)

        def found(endpoint: SplitsEndpoint) -> tuple[SplitRow, ...]:
            pages = self._pages(Request(endpoint.target(since), what, priority), read, tally, endpoint.path)
            return each_once(split for page in pages for split in page.rows)

        what = f"splits since {since}"
        with self._counted() as tally:
            splits, endpoint = first_answer(self._splits_endpoints, found, what)
            self._splits_endpoints = led_by(endpoint, SPLITS_ENDPOINTS)
            return splits

    def dividends(
        self,
        *,
        followed: Collection[str],
        unreadable: dict[str, str],
        tickers: Sequence[str] | None = None,
        since: date | None = None,
        priority: int = _STANDARD,
    ) -> tuple[ListedDividend, ...]:
        """Return the dividends of `followed` tickers, future ones too, in any order.

        Endpoints are tried as for splits. For `followed` and `unreadable` see `dividends.read_dividends`.

        Args:
            followed: whose dividends are returned.
            unreadable: receives what cannot be read.
            tickers: whose dividends are requested, forty at a time; None for the whole market's list.
            since: the first ex date; None for all.
            priority: as in `bars`.

        Raises:
            PipelineError: as `splits`.
        """

        def read(body: bytes) -> Page[tuple[ListedDividend, ...]]:
            return read_dividends(body, followed, unreadable)

        def found(endpoint: DividendsEndpoint) -> tuple[ListedDividend, ...]:
            return tuple(
                dividend
                for target in endpoint.targets(tickers, since)
                for page in self._pages(Request(target, what, priority), read, tally, endpoint.path)
                for dividend in page.rows
            )

        what = f"dividends since {since}" if tickers is None else f"dividends of {', '.join(tickers[:3])}"
        with self._counted() as tally:
            dividends, endpoint = first_answer(self._dividends_endpoints, found, what)
            self._dividends_endpoints = led_by(endpoint, DIVIDENDS_ENDPOINTS)
            return dividends

    def listing(self, symbol: str, *, priority: int = _STANDARD) -> tuple[Listing, Counters]:
        """Return what the vendor's reference data say of a ticker, and what that cost: two requests at most.

        Raises:
            PipelineError: as `bars`.
        """
        now = self._clock()
        with self._counted() as tally:
            for question in QUESTIONS:
                query = urlencode({"ticker": symbol, **question, "limit": _LISTINGS_PAGE})
                request = Request(f"/v3/reference/tickers?{query}", f"ticker {symbol}", priority)
                found = self._sender.send(request, lambda body: read_listing(body, symbol, now), tally)
                if found is not None:
                    return found, tally.counters
        return Listing(now, known=False), tally.counters

    def delisted(self, ticker: str, *, priority: int = _STANDARD) -> tuple[Delisted, ...]:
        """Return the delisted stocks that had a ticker last, in one request, the one delisted last first.

        Raises:
            PipelineError: as `bars`, after fewer attempts.
        """
        query = {"ticker": ticker, "market": "stocks", "active": "false", "limit": _LISTINGS_PAGE}
        request = Request(
            f"/v3/reference/tickers?{urlencode(query)}", f"delisted {ticker}", priority,
            most_attempts=_REFERENCE_ATTEMPTS,
        )  # fmt: skip
        with self._counted() as tally:
            return self._sender.send(request, lambda body: read_delisted(body, ticker), tally)

    def ticker_changes(self, identifier: str, *, priority: int = _STANDARD) -> Changes | None:
        """Return the tickers that a security had, in one request; None when the vendor knows of none.

        Args:
            identifier: a composite FIGI, or the ticker that the security has now.
            priority: place in the rate limit queue.

        Raises:
            PipelineError: as `bars`, after fewer attempts.
        """
        target = f"/vX/reference/tickers/{quote(identifier, safe=':')}/events?types=ticker_change"
        return self._if_found(target, f"events of {identifier}", lambda body: read_changes(body, identifier), priority)

    def ticker_details(self, ticker: str, day: date | None = None, *, priority: int = _STANDARD) -> Described | None:
        """Return the security that had a ticker on a day (None: today), in one request; None when none had.

        Raises:
            PipelineError: as `bars`, after fewer attempts.
        """
        query = f"?date={day}" if day is not None else ""
        target = f"/v3/reference/tickers/{quote(ticker, safe=':')}{query}"
        return self._if_found(target, f"ticker {ticker}", lambda body: read_details(body, ticker), priority)

    def tickers_from(self, first: str, *, priority: int = _STANDARD) -> ListedPage:
        """Return a page of the active US stocks from a ticker on, in one request.

        Raises:
            PipelineError: as `bars`, after fewer attempts.
        """
        query = {"market": "stocks", "active": "true", "ticker.gte": first, "sort": "ticker", "order": "asc"}
        target = f"/v3/reference/tickers?{urlencode({**query, 'limit': _TICKERS_PAGE})}"
        request = Request(target, f"tickers from {first}", priority, most_attempts=_REFERENCE_ATTEMPTS)
        with self._counted() as tally:
            return self._sender.send(request, read_page, tally)

    def tickers(
        self, market: str, *, kind: str | None = None, exchange: str | None = None, priority: int = _STANDARD
    ) -> tuple[tuple[Described, ...], Counters]:
        """Return all active tickers of a market, by ticker, and what that cost: a request for each thousand.

        Args:
            market: as the vendor calls it: `stocks`, `crypto`, `fx` or `indices`.
            kind: the vendor's type of security, such as CS or ETF; None for all.
            exchange: the code (ISO 10383) of the primary exchange, such as XNAS; None for all.
            priority: place in the rate limit queue.

        Raises:
            PipelineError: as `bars`.
        """
        path, only = "/v3/reference/tickers", {"type": kind, "exchange": exchange}
        query = {"market": market, "active": "true", "sort": "ticker", "order": "asc", "limit": _TICKERS_PAGE}
        query |= {name: value for name, value in only.items() if value is not None}
        request = Request(f"{path}?{urlencode(query)}", f"tickers of {market}", priority)
        with self._counted() as tally:
            pages = list(self._pages(request, read_list, tally, path))
        return tuple(each for page in pages for each in page.rows), tally.counters

    def _if_found(self, target: str, what: str, read: Callable[[bytes], _R | None], priority: int) -> _R | None:
        request = Request(target, what, priority, most_attempts=_REFERENCE_ATTEMPTS)
        with self._counted() as tally:
            try:
                return self._sender.send(request, read, tally)
            except VendorRequestError as error:
                if error.not_found:
                    return None
                raise

    def upcoming_closings(self, *, priority: int = _STANDARD) -> tuple[Announcement, ...]:
        """Return the coming holidays and early closes of US stocks, by date.

        Raises:
            PipelineError: as `bars`.
        """
        request = Request("/v1/marketstatus/upcoming", "coming holidays", priority)
        with self._counted() as tally:
            return self._sender.send(request, read_upcoming, tally)

    def market_is_closed(self, *, priority: int = _STANDARD) -> bool:
        """Return whether the vendor says that US stocks do not trade now, not even before or after the market's hours.

        Raises:
            PipelineError: as `bars`.
        """
        request = Request("/v1/marketstatus/now", "market status", priority)
        with self._counted() as tally:
            return self._sender.send(request, read_is_closed, tally)

    def grouped_daily(self, day: date, *, priority: int = _STANDARD) -> Fetched:
        """Return the day bars of all US stocks, in one request: a bar frame with a column `symbol` in front.

        Every `ts` is 00:00 New York of `day`, as in `bars`, although the vendor stamps the close. A row whose values
        contradict each other is left out with a warning. No rows on a day without a session.

        Raises:
            PipelineError: as `bars`.
        """
        target = f"/v2/aggs/grouped/locale/us/market/stocks/{day}?adjusted=false"
        midnight = calendar_for(AssetClass.US_EQUITY).midnight(day)
        request = Request(target, f"US stocks on {day}", priority, self._beyond_history(midnight))
        with self._counted() as tally:
            frame = self._sender.send(request, lambda body: read_market_day(body, day), tally)
        return Fetched(frame, tally.counters)

    def _pages(
        self,
        request: Request,
        read: Callable[[bytes], Page[_R]],
        tally: Tally,
        path: str,
        repeated: Mapping[str, str] = MappingProxyType({}),
        remaining: Callable[[], tuple[int, int]] | None = None,
    ) -> Iterator[Page[_R]]:
        """Yield the pages in order, starting with the answer to `request`.

        The vendor's `next_url` is only a hint: its path and query are used, never its host or a key.

        Args:
            request: the one for the first page.
            read: decodes and checks a page.
            tally: every attempt is counted here.
            path: what every page's path starts with.
            repeated: parameters to send with every page, because the vendor's cursor was seen to lose them.
            remaining: returns the first and the last millisecond still to be read, where the path ends in such a window
                (`…/from/to`); a next page's window that leaves some of them out is widened.

        Raises:
            DataError: a next page has already been read or leads elsewhere, or the pages do not end.
            PipelineError: as `Sender.send`.
        """
        what = request.what
        seen = {request.target}
        empty_pages = 0
        for _ in range(PAGE_CAP):
            page = self._sender.send(request, read, tally)
            yield page
            if not page.next_url:
                return
            empty_pages = 0 if page.count else empty_pages + 1
            if empty_pages >= EMPTY_PAGE_CAP:
                raise DataError(f"{what}: {empty_pages} pages in a row are empty and name a next one.")
            try:
                parts = urlsplit(page.next_url)
            except ValueError:
                raise DataError(f"{what}: next_url is not an address.") from None
            target = parts.path.removeprefix(self._base_path)
            if not unquote(target).startswith(unquote(path)):
                raise DataError(f"{what}: next_url leads elsewhere, to {target[:100]!r}.")
            if remaining is not None:
                target = widened(target, *remaining())
            query = [
                (name, value)
                for name, value in parse_qsl(parts.query, keep_blank_values=True)
                if name.lower().replace("_", "") != "apikey" and name not in repeated
            ]
            target = f"{target}?{urlencode([*query, *repeated.items()])}"
            if target in seen:
                raise DataError(f"{what}: the next page is one that has already been read.")
            seen.add(target)
            request = request._replace(target=target)
        raise DataError(f"{what}: no end after {PAGE_CAP} pages.")

    def _beyond_history(self, end: datetime) -> bool:
        return self._plan is not None and self._plan.history is not None and end <= self._clock() - self._plan.history

    @contextmanager
    def _counted(self) -> Iterator[Tally]:
        """Count the cost of one call; a failure carries it, with the key removed once more from its message."""
        tally = Tally()
        try:
            with tally.fetching():
                yield tally
        except PipelineError as error:
            error.args = (self._transport.redacted(str(error)),)
            error.usage = tally.counters  # type: ignore[attr-defined]
            raise
        finally:
            with self._lock:
                self._usage += tally.counters
