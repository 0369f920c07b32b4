"""How many pages the vendor's answers to requests take and what they weigh, before anything is sent.

Whoever knows best is asked. The project's own sandbox is at hand and knows it all (sandbox_market); of any vendor's
symbol the bars that it holds tell how often it trades (trading_habits), and earlier answers what they weigh
(answer_weights). A symbol that holds nothing is taken for one like those that do, and before anything is held for a
name that somebody trades every minute, which liquid ones are and others fall short of: then only bounds are certain.
Keep out: what is asked for (plan).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.series import AssetClass, Timeframe, asset_class_of
from market_data_pipeline.polygon.request_windows import ANSWER_BYTES, SPLITS_PAGE, Estimate, Habit, estimate, pages_of
from market_data_pipeline.reports.answer_weights import MOST_BYTES_PER_BAR, AnswerWeights
from market_data_pipeline.reports.trading_habits import Rows, fractional_part, read_habits
from market_data_pipeline.store.market_days import listed_symbols
from market_data_pipeline.store.reference import MARKET_DAY, SPLITS, last_check

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.polygon.request_windows import Window
    from market_data_pipeline.reports.sandbox_market import SandboxMarket
    from market_data_pipeline.reports.trading_habits import Habits
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.coverage import Coverage

_PEERS: Final = 50  # symbols looked at to tell what others are like
_SURE: Final = 4.5  # standard deviations: three, of days that differ by half as much again as chance alone makes them

# How many stocks an answer for the whole market lists: 12,000 trade on a day.
_MARKET_ROWS: Final = 12_000
_MOST_MARKET_ROWS: Final = 20_000
_SPLIT_BYTES: Final = 160  # of a row, at most
_MOST_SPLITS_A_DAY: Final = 14  # five full pages a year, several times what all US stocks have had in any

# Volumes with fractions weigh more. Measured over the sandbox's years before and after 2026, with the coarser bars
# counted: 67.3 and 71.6 bytes a row.
_FRACTIONS_WEIGH: Final = 0.068

_NOBODY: Final = Habit(0.0, 0.0, 0.0)  # trades it
_EVERYBODY: Final = Habit(1.0, 1.0, MOST_BYTES_PER_BAR)


class Cost(NamedTuple):
    """What requests cost: at the least, as is to be expected, and at the most; the same where it is known."""

    least: Estimate = Estimate()
    likely: Estimate = Estimate()
    most: Estimate = Estimate()


def sure(cost: Estimate) -> Cost:
    """Return a cost that is known."""
    return Cost(cost, cost, cost)


def total(costs: Iterable[Cost]) -> Cost:
    """Return the cost of all of them."""
    return Cost(*(sum(each, Estimate()) for each in zip(Cost(), *costs, strict=True)))


class Ask(NamedTuple):
    """Requests of one fetched series, and what is held of its days."""

    symbol: str
    requests: tuple[Window, ...]
    held: Mapping[date, Coverage]

    @property
    def of_minutes(self) -> bool:
        """Whether they are for 5m bars."""
        return any(window.timeframe is Timeframe.M5 for window in self.requests)


class AnswerSizes:
    """What answers will weigh.

    Args:
        connection: a connection; used by the constructor alone.
        asked: all requests for bars that are planned.
        timing: of each asset class.
        near: the vendor is a server on this machine.
        market: the sandbox's market where the sandbox is the vendor.
        strangers: ask it of symbols alone that hold nothing: what the others hold may be another market's.

    Attributes:
        unknown: symbols of which nothing tells how often they trade.
        unweighed: of some answers, as `of` found, none of such a length has been weighed, and they come compressed.
    """

    def __init__(
        self,
        connection: StoreConnection,
        asked: Collection[Ask],
        timing: Mapping[AssetClass, Timing],
        *,
        near: bool,
        market: SandboxMarket | None = None,
        strangers: bool = False,
    ) -> None:
        now = timing[AssetClass.US_EQUITY].now
        symbols = {each.symbol for each in asked}
        self._timing = timing
        self._market = market
        self._habits = read_habits(connection, symbols, now) if market is None or strangers else {}
        strange = (each.symbol for each in asked if each.of_minutes and each.symbol not in self._habits)
        self.unknown = frozenset(strange if market is None else ())
        peers = _held_symbols(connection) if self.unknown else []
        self._peers: dict[AssetClass, list[Habits]] = {}
        for symbol, habits in read_habits(connection, peers, now).items():
            self._peers.setdefault(asset_class_of(symbol), []).append(habits)
        self._weights = AnswerWeights(connection, {*symbols, *peers}, near=near)
        self._market_day = last_check(connection, MARKET_DAY)
        self._splits = last_check(connection, SPLITS)
        self.unweighed = False
        self._alike: dict[tuple[AssetClass, tuple[Window, ...]], Estimate] = {}

    def of(self, asked: Ask) -> Cost:
        """Return what requests for bars of one symbol cost."""
        habits = self._habits.get(asked.symbol)
        if habits is None and self._market is not None:
            return sure(self._looked_up(self._market, asked))
        likely = self._like_others(asked) if asked.symbol in self.unknown else self._expected(asked, habits)
        if asked.symbol in self.unknown or not self._weights.is_learned(asked.symbol):
            return Cost(estimate(asked.requests, _NOBODY), likely, estimate(asked.requests, _EVERYBODY))
        return Cost(self._expected(asked, habits, -_SURE), likely, self._expected(asked, habits, _SURE))

    def market_days(self, days: Sequence[date]) -> Cost:
        """Return the cost of so many days of the whole market."""
        calls = len(days)
        if not calls:
            return Cost()
        if self._market_day is not None and self._market_day.bytes:
            return sure(Estimate(calls, calls, calls * self._market_day.bytes))
        if self._market is not None:
            return sure(Estimate(calls, calls, sum(map(self._market.market_day, days))))
        row = self._weights.of("", Timeframe.M5, _MARKET_ROWS).row
        return Cost(
            *(
                Estimate(calls, calls, round(calls * (ANSWER_BYTES + rows * weight)))
                for rows, weight in ((0, 0.0), (_MARKET_ROWS, row), (_MOST_MARKET_ROWS, MOST_BYTES_PER_BAR))
            )
        )

    def listed(self, connection: StoreConnection, symbols: Collection[str]) -> dict[str, bool | None]:
        """Return whether answers for the whole market list each symbol; None where nothing tells."""
        said = listed_symbols(connection)
        market = self._market
        return {
            symbol: said.get(symbol) if symbol in said or market is None else market.lists(symbol) for symbol in symbols
        }

    def splits(self, since: date) -> Cost:
        """Return the cost of the market's list of splits from a date on."""
        if self._splits is not None and self._splits.bytes:
            return sure(Estimate(self._splits.requests, self._splits.requests, self._splits.bytes))
        now = self._timing[AssetClass.US_EQUITY].now
        if self._market is not None:
            return sure(Estimate(1, 1, self._market.splits(since, now)))
        one = Estimate(1, 1, ANSWER_BYTES)
        rows = (now.date() - since).days * _MOST_SPLITS_A_DAY
        calls = 1 + rows // SPLITS_PAGE
        return Cost(Estimate(1, 1, 0), one, Estimate(calls, calls, calls * ANSWER_BYTES + rows * _SPLIT_BYTES))

    def _looked_up(self, market: SandboxMarket, asked: Ask) -> Estimate:
        cost = Estimate()
        for window in asked.requests:
            told = market.told(asked.symbol, window)
            pages = pages_of(told.rows.base_bars)
            cost += Estimate(pages, pages, round(pages * ANSWER_BYTES + told.bytes))
        return cost

    def _expected(self, asked: Ask, habits: Habits | None, doubt: float = 0.0) -> Estimate:
        """Return the cost with as many rows as are to be expected, and `doubt` standard deviations more."""
        cost = Estimate()
        timing = self._timing[asset_class_of(asked.symbol)]
        for window in asked.requests:
            if habits is None or window.timeframe is Timeframe.D1:
                found = Rows(window.base_bars, window.base_bars)
            else:
                found = habits.rows(window, asked.held, timing)
                most = found.rows * self._weights.most_minutes(asked.symbol)
                found = found._replace(base_bars=min(found.base_bars, most))
            rows = max(found.rows + doubt * found.doubt, 0.0)
            pages = pages_of(found.base_bars * (rows / found.rows if found.rows else 1.0))
            weight = self._weights.of(asked.symbol, window.timeframe, rows)
            self.unweighed = self.unweighed or weight.is_stretched(rows)
            if doubt:
                weight = weight._replace(row=weight.bounds(rows)[doubt > 0])
            size = weight.of(pages, rows)
            if habits is not None and asset_class_of(asked.symbol) is AssetClass.US_EQUITY:
                size *= 1 - _FRACTIONS_WEIGH * (habits.fractional - fractional_part(window.interval))
            cost += Estimate(pages, pages, round(size))
        return cost

    def _like_others(self, asked: Ask) -> Estimate:
        """Return the mean of what others' answers to the same requests would cost."""
        key = asset_class_of(asked.symbol), asked.requests
        if key not in self._alike:
            costs = [self._expected(asked._replace(held={}), habits) for habits in self._peers.get(key[0], ())]
            row = self._weights.of(asked.symbol, Timeframe.M5, asked.requests[0].base_bars).row
            whole = sum(costs, Estimate()) if costs else estimate(asked.requests, Habit(bytes_per_bar=row))
            self._alike[key] = Estimate(
                *(round(value / max(len(costs), 1)) for value in (whole.calls, whole.pages, whole.bytes))
            )
        return self._alike[key]


def _held_symbols(connection: StoreConnection) -> list[str]:
    rows = connection.rows(
        """
        select symbol from market_data.series_state
        where timeframe = '5m' and bar_count > 0
        order by md5(symbol)
        limit $1::bigint
        """,
        _PEERS,
    )
    return [row["symbol"] for row in rows]
