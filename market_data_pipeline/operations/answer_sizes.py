"""How large the vendor's answers are, learned from those that came before.

What a symbol holds tells how often it trades, and so how many pages it fills; what its answers weighed tells how large
the next are. Of a symbol that holds nothing the sandbox's catalogue knows as much; at another vendor it is taken for
one like those that are held, and before anything is held for a name that somebody trades every minute, which liquid
ones are and others fall short of. Keep out: what is asked for (plan).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.series import AssetClass, Timeframe, asset_class_of
from market_data_pipeline.domain.sessions import calendar_for, slot_count
from market_data_pipeline.polygon.windows import ANSWER_BYTES, BYTES_PER_BAR, Estimate, Habit, estimate
from market_data_pipeline.store.reference_checks import MARKET_DAY, SPLITS, last_check

if TYPE_CHECKING:
    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.polygon.windows import Window
    from market_data_pipeline.store.bulk import Bulk

_MEMORY: Final = timedelta(days=28)  # of bars, to tell how often a symbol trades
_SESSIONS: Final = 5  # fewer settled ones tell nothing
_LARGE_ANSWER: Final = 1_000  # bars; what stands around them weighs little then
_LARGE_ANSWERS: Final = 500  # looked at: a backfill of several hundred symbols
_PEERS: Final = 50  # symbols looked at to tell what others are like

# How many stocks an answer for the whole market lists: of the vendor's, 12,000 trade on a day; of the sandbox's, 53.
_MARKET_ROWS: Final = 12_000
_SANDBOX_MARKET_ROWS: Final = 53

# Before any answer has been weighed. The sandbox does not compress (sandbox.server), nor has any other server on this
# machine a reason to; measured over a year of the packaged universe, and of two round-the-clock tickers.
_SANDBOX_BYTES_PER_BAR: Final = {AssetClass.US_EQUITY: 101.4, AssetClass.CRYPTO: 109.8}

# Volumes of stocks have fractions of a share since 2026 and are whole before. Measured over the sandbox's years before
# and after, with the coarser bars counted: 67.3 and 71.6 bytes a row.
_FRACTIONS_SINCE: Final = datetime(2026, 1, 1, tzinfo=UTC)
_FRACTIONS_WEIGH: Final = 0.068


class Traded(NamedTuple):
    """Which part of a symbol's minutes has a trade, of its 5m slots a bar, and of its held bars fractional volumes."""

    minutes: float = 1.0
    bars: float = 1.0
    fractional: float = 1.0


class AnswerSizes:
    """What answers to requests of some symbols will weigh, and how many pages they take.

    Args:
        bulk: a connection.
        symbols: all that requests are planned for.
        now: aware UTC.
        near: the vendor is a server on this machine.
        listed: what the sandbox's catalogue says of a symbol; None where there is none.

    Attributes:
        unknown: symbols of which nothing tells how often they trade.
    """

    def __init__(
        self,
        bulk: Bulk,
        symbols: Collection[str],
        now: datetime,
        *,
        near: bool,
        listed: Callable[[str], Traded | None] = lambda symbol: None,
    ) -> None:
        self._near = near
        self._weighed = _bytes_per_bar(bulk)
        self._traded = _traded(bulk, symbols, now)
        strangers = [symbol for symbol in symbols if symbol not in self._traded]
        catalogued = {symbol: found for symbol in strangers if (found := listed(symbol)) is not None}
        self._traded |= catalogued
        self.unknown = frozenset(strangers) - catalogued.keys()
        self._peers: dict[AssetClass, list[Traded]] = {}
        if self.unknown:
            for symbol, traded in _traded(bulk, _held_symbols(bulk), now).items():
                self._peers.setdefault(asset_class_of(symbol), []).append(traded)
        self._market_day = last_check(bulk, MARKET_DAY)
        self._splits = last_check(bulk, SPLITS)

    def of(self, symbol: str, asked: Sequence[Window]) -> Estimate:
        """Return what the requests `asked` of one symbol cost."""
        known = self._traded.get(symbol)
        likely = [known] if known else self._peers.get(asset_class_of(symbol)) or [Traded()]
        costs = [estimate(asked, self._habit(symbol, one, asked)) for one in likely]
        total, count = sum(costs, Estimate()), len(costs)
        return Estimate(*(round(value / count) for value in (total.calls, total.pages, total.bytes)))

    def least(self, symbol: str, asked: Sequence[Window]) -> Estimate:
        """Return what they cost at the least: the same, or one page each when the symbol is unknown."""
        return self.of(symbol, asked) if symbol not in self.unknown else estimate(asked, Habit(0, 0, 0))

    def market_day(self) -> Estimate:
        """Return the cost of one day of the whole market."""
        if self._market_day is not None and self._market_day.bytes:
            return Estimate(1, 1, self._market_day.bytes)
        rows = _SANDBOX_MARKET_ROWS if self._near else _MARKET_ROWS
        return Estimate(1, 1, ANSWER_BYTES + round(rows * self._bytes_per_bar("", AssetClass.US_EQUITY)))

    def splits(self) -> Estimate:
        """Return the cost of the market's list of splits."""
        if self._splits is not None and self._splits.bytes:
            return Estimate(self._splits.requests, self._splits.requests, self._splits.bytes)
        return Estimate(1, 1, ANSWER_BYTES)

    def _habit(self, symbol: str, traded: Traded, asked: Sequence[Window]) -> Habit:
        weight = self._bytes_per_bar(symbol, asset_class_of(symbol))
        if symbol in self._weighed and asset_class_of(symbol) is AssetClass.US_EQUITY:
            asked_for = _fractional(*(window.interval for window in asked))
            weight *= 1 - _FRACTIONS_WEIGH * (traded.fractional - asked_for)
        return Habit(traded.minutes, traded.bars, weight)

    def _bytes_per_bar(self, symbol: str, asset_class: AssetClass) -> float:
        usual = _SANDBOX_BYTES_PER_BAR[asset_class] if self._near else BYTES_PER_BAR
        return self._weighed.get(symbol) or self._weighed.get(asset_class) or usual


def _fractional(*intervals: Interval) -> float:
    """Return which part of the intervals lies where volumes have fractions."""
    whole = sum((interval.end - interval.start for interval in intervals), timedelta())
    since = sum(
        (max(interval.end - max(interval.start, _FRACTIONS_SINCE), timedelta()) for interval in intervals), timedelta()
    )
    return since / whole if whole else 1.0


def _bytes_per_bar(bulk: Bulk) -> dict[str, float]:
    """Return the bytes a bar of each symbol's last large answers, and of all of an asset class under its name."""
    rows = bulk.rows(
        """
        select
            coalesce(symbol, case when crypto then 'crypto' else 'us_equity' end) as name,
            sum(bytes)::float8 / sum(rows_fetched) as bytes_per_bar
        from (
            select symbol, symbol like 'X:%' as crypto, bytes, rows_fetched
            from market_data.ingest_log
            where timeframe = '5m' and rows_fetched >= $1::bigint and bytes > 0 and rate_limited = 0
            order by id desc
            limit $2::bigint
        ) as large
        group by grouping sets ((symbol), (crypto))
        having sum(rows_fetched) > 0
        """,
        *(_LARGE_ANSWER, _LARGE_ANSWERS),
    )
    return {row["name"]: row["bytes_per_bar"] for row in rows}


def _held_symbols(bulk: Bulk) -> list[str]:
    rows = bulk.rows(
        """
        select symbol from market_data.series_state
        where timeframe = '5m' and bar_count > 0
        order by md5(symbol)
        limit $1::bigint
        """,
        _PEERS,
    )
    return [row["symbol"] for row in rows]


def _traded(bulk: Bulk, symbols: Collection[str], now: datetime) -> dict[str, Traded]:
    """Return how often symbols trade, those left out that do not hold enough to tell.

    Of a 5m bar with n trades 5 * (1 - 0.8**n) minutes have one, when the trades fall anywhere in it alike.
    """
    if not symbols:
        return {}
    since = now - _MEMORY
    rows = bulk.rows(
        """
        with days as (
            select symbol, array_agg(session_date) as dates, sum(rows)::float8 as rows
            from market_data.coverage
            where timeframe = '5m' and symbol = any($1::text[]) and session_date >= $2::timestamptz::date
                and status in ('complete', 'empty_confirmed')
            group by symbol
        ),

        traded as (
            select symbol, avg(1 - power(0.8, least(coalesce(trades, 100), 100)))::float8 as minutes
            from market_data.bars
            where timeframe = '5m' and symbol = any($1::text[]) and ts >= $2
            group by symbol
        )

        select days.symbol, days.dates, days.rows, coalesce(traded.minutes, 1) as minutes, held.first_ts, held.last_ts
        from days
        left join traded on traded.symbol = days.symbol
        left join market_data.series_state as held on held.symbol = days.symbol and held.timeframe = '5m'
        """,
        *(sorted(symbols), since),
    )
    from market_data_pipeline.domain.intervals import Interval

    traded = {}
    for row in rows:
        calendar = calendar_for(asset_class_of(row["symbol"]))
        sessions = [session for day in row["dates"] if (session := calendar.session_on(day)) is not None]
        if len(sessions) < _SESSIONS:
            continue
        filled = row["rows"] / sum(slot_count(Timeframe.M5, session) for session in sessions)
        fractional = _fractional(Interval(row["first_ts"], row["last_ts"])) if row["first_ts"] else 1.0
        traded[row["symbol"]] = Traded(filled * row["minutes"], filled, fractional)
    return traded
