"""The statements behind an answer about a series: its state, its features, its bars now and as they were known.

Every function takes a connection inside the answer's one snapshot. Ranges are half-open [start, end) of bar starts;
a missing bound is open. Rows come ascending in `ts` and hold the newest `limit` of the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from market_data_pipeline.domain.series import asset_class_of
from market_data_pipeline.domain.sessions import calendar_for
from market_data_pipeline.serving.columns import BAR_COLUMNS
from market_data_pipeline.serving.standing import Standing
from market_data_pipeline.store.features import feature_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.feature_definitions import Feature
    from market_data_pipeline.domain.series import Series

    Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Range:
    """Which bars are asked for."""

    start: datetime | None
    end: datetime | None
    limit: int


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of a series before its records are read."""

    tracked: bool  # active in the universe
    features: Standing | None  # None when never computed
    bars: Standing | None  # None when never fetched


_HELD: Final = sa.text("""
    select
        coalesce(s.active, false) as tracked,
        t.verified_at,
        t.next_due_at,
        t.features_computed_at,
        coalesce(t.verified_at, t.features_computed_at, t.last_ts) as bars_at
    from (select cast(:symbol as text) as symbol) as asked
    left join market_data.symbols as s on s.symbol = asked.symbol
    left join market_data.series_state as t on t.symbol = asked.symbol and t.timeframe = :timeframe
""")

_SIMILAR: Final = sa.text(
    "select symbol from market_data.symbols where upper(symbol) = upper(:symbol) and active order by symbol limit 1"
)

_NEXT_SPLIT: Final = sa.text("select execution_date from market_data.splits where symbol = :symbol order by 1")

_IN_RANGE: Final = """
    {0}.symbol = :symbol and {0}.timeframe = :timeframe
    and {0}.ts >= coalesce(:start, '-infinity'::timestamptz) and {0}.ts < coalesce(:end, 'infinity'::timestamptz)
"""

_NAMES: Final = ", ".join(f"b.{c.name}" for c in BAR_COLUMNS)

_BARS: Final = {
    adjusted: sa.text(f"""
    select {_NAMES}
    from market_data.{"bars_adjusted" if adjusted else "bars"} as b
    where {_IN_RANGE.format("b")}
    order by b.ts desc
    limit :limit
""")  # noqa: S608 - the names are constants of this package
    for adjusted in (True, False)
}

# What was known at an instant: the bars as they were stored then; adjusted, if wanted, by the splits that had been
# listed by then and were in force on that New York day.
_BARS_AS_OF: Final = sa.text(f"""
    with known as (
        select b.*
        from market_data.bars_as_of(:symbol, :timeframe, :as_of) as b
        where {_IN_RANGE.format("b")}
        order by b.ts desc
        limit :limit
    )

    select
        b.ts, b.open * f.factor, b.high * f.factor, b.low * f.factor, b.close * f.factor,
        b.volume / f.factor, b.vwap * f.factor, b.trades
    from known as b
    cross join lateral (
        select market_data.product(s.split_from / s.split_to) as factor
        from market_data.splits as s
        where
            :adjusted
            and s.symbol = b.symbol
            and s.first_seen_at <= :as_of
            and b.ts < s.execution_date::timestamp at time zone 'America/New_York'
            and s.execution_date <= (cast(:as_of as timestamptz) at time zone 'America/New_York')::date
    ) as f
    order by b.ts desc
""")  # noqa: S608 - the names are constants of this package


def read_held(connection: sa.Connection, series: Series) -> Held:
    """Return what is known of `series`, which need not exist."""
    row = connection.execute(_HELD, {"symbol": series.symbol, "timeframe": series.timeframe}).one()
    features, bars = (
        None if updated_at is None else Standing(row.verified_at, row.next_due_at, updated_at)
        for updated_at in (row.features_computed_at, row.bars_at)
    )
    return Held(row.tracked, features, bars)


def similar_symbol(connection: sa.Connection, symbol: str) -> str | None:
    """Return the tracked symbol that differs from `symbol` in its letters' case only, if there is one."""
    found: str | None = connection.execute(_SIMILAR, {"symbol": symbol}).scalar()
    return found


def next_split(connection: sa.Connection, symbol: str, now: datetime) -> datetime | None:
    """Return when the next split that is listed for `symbol` comes into force after `now`; both aware UTC."""
    zone = calendar_for(asset_class_of(symbol)).tz
    dates = connection.execute(_NEXT_SPLIT, {"symbol": symbol}).scalars()
    instants = (datetime.combine(day, time(), zone).astimezone(UTC) for day in dates)
    return next((instant for instant in instants if instant > now), None)


def features_statement(own: Sequence[Feature] = ()) -> sa.TextClause:
    """Return what reads split-adjusted bars with their features, in the order of `columns.feature_columns(own)`."""
    return sa.text(f"""
        select {_NAMES}, {feature_columns(own, "f")}
        from market_data.features as f
        inner join market_data.bars_adjusted as b using (symbol, timeframe, ts)
        where {_IN_RANGE.format("f")}
        order by f.ts desc
        limit :limit
    """)  # noqa: S608 - the names are constants of this package, or were checked when they were declared


def read_features(connection: sa.Connection, statement: sa.TextClause, series: Series, wanted: Range) -> Rows:
    """Return the rows of a `features_statement`."""
    return _newest(connection, statement, _parameters(series, wanted))


def read_bars(
    connection: sa.Connection, series: Series, wanted: Range, *, adjusted: bool, as_of: datetime | None
) -> Rows:
    """Return bars in the order of `BAR_COLUMNS`; with `as_of`, the values that were known at that instant."""
    parameters = _parameters(series, wanted)
    if as_of is None:
        return _newest(connection, _BARS[adjusted], parameters)
    return _newest(connection, _BARS_AS_OF, parameters | {"adjusted": adjusted, "as_of": as_of})


def _parameters(series: Series, wanted: Range) -> dict[str, Any]:
    return {
        "symbol": series.symbol,
        "timeframe": str(series.timeframe),
        "start": wanted.start,
        "end": wanted.end,
        "limit": wanted.limit,
    }


def _newest(connection: sa.Connection, statement: sa.TextClause, parameters: dict[str, Any]) -> Rows:
    cursor = connection.execute(statement, parameters).cursor
    # The driver's own tuples: SQLAlchemy's rows cost as much again as fetching them.
    return [] if cursor is None else cursor.fetchall()[::-1]
