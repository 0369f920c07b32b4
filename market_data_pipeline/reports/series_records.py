"""The records that answers about a series hold: their columns, and the statements that read them.

Each statement also returns what else is known of the series, as one row more, so that an answer is read in a single
round trip and snapshot. Ranges are half-open [start, end) of bar starts; a missing bound is open. Records come in
ascending order of `ts` and are the newest `limit` of the range.

Values travel in PostgreSQL's binary format: 500 records with features take 1.4 ms of its processor time and 0.6 ms of
ours; text takes 2.1 ms of ours, and JSON written by PostgreSQL 3.3 ms of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, tzinfo
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME, calendar_for
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.life import ASK_AGAIN_AFTER, Life
from market_data_pipeline.domain.objectives import SETTLED_AT, TIER_OBJECTIVES
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe, asset_class_of
from market_data_pipeline.store.feature_values import CODED, CODES, FLOATS, MASK, shift_of
from market_data_pipeline.store.features import feature_columns, own_value
from market_data_pipeline.store.prepared import Statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.prepared import PreparedReader

    Rows = Sequence[Sequence[Any]]

Kind = Literal["instant", "float", "integer", "boolean", "text"]


class Column(NamedTuple):
    """One column of a record."""

    name: str
    kind: Kind
    nullable: bool
    description: str
    labels: tuple[str, ...] = ()  # the values of a text column


_PRICE: Final = "US dollars"

BAR_COLUMNS: Final = (
    Column("ts", "instant", False, "The bar's START, UTC."),
    Column("open", "float", False, f"First trade, {_PRICE}."),
    Column("high", "float", False, f"Highest trade, {_PRICE}."),
    Column("low", "float", False, f"Lowest trade, {_PRICE}."),
    Column("close", "float", False, f"Last trade, {_PRICE}."),
    Column(
        "volume", "float", True, "Shares traded (crypto: units; forex: quotes); may be fractional; null for indices."
    ),
    Column("vwap", "float", True, f"Volume-weighted average price, {_PRICE}; null where the vendor sent none."),
    Column("trades", "integer", True, "Number of trades; null where the vendor sent none."),
)

_KINDS: Final[dict[str, Kind]] = {"float": "float", "bool": "boolean", "text": "text"}


def record_columns(own: Sequence[Feature] = ()) -> tuple[Column, ...]:
    """Return the columns of a record of features: the bar, the 17, and the project's `own` features."""
    return (
        *BAR_COLUMNS,
        *(
            Column(f.name, _KINDS[f.dtype], True, f"{f.description[0].upper()}{f.description[1:]}.", f.labels)
            for f in (*FEATURES, *own)
        ),
    )


@dataclass(frozen=True, slots=True)
class Range:
    """Which records are requested: the newest `limit` with start <= ts < end, aware UTC; None leaves a bound open."""

    start: datetime | None
    end: datetime | None
    limit: int


class Watermarks(NamedTuple):
    """The instants of `series_state` from which freshness is computed; aware UTC, None where there is none yet.

    `updated_at` is when the features were last computed; in an answer of bars, when the bars were last verified.
    """

    verified_at: datetime | None
    next_due_at: datetime | None
    updated_at: datetime
    settled_until: datetime | None = None
    life: Life = Life.TRADING
    life_since: datetime | None = None


class FutileLook(NamedTuple):
    """A finished look that left a series without a bar.

    Attributes:
        looked_at: when the vendor was asked, aware UTC.
        next_at: when the schedule asks again.
        life: of the series.
        base_held: whether it is only yet to be made of 5m bars that are held.
    """

    looked_at: datetime
    next_at: datetime
    life: Life
    base_held: bool


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """What is known of a series before its records are read."""

    tracked: bool  # active in the universe
    features: Watermarks | None  # None when never computed
    bars: Watermarks | None  # None when never fetched
    next_action: datetime | None  # aware UTC; when the next known split, or dividend where they adjust, takes effect
    futile: FutileLook | None  # the last look, if it found that the vendor has nothing


_SUMMARY: Final = """
    select
        coalesce(s.active, false) as tracked,
        t.verified_at,
        t.next_due_at,
        t.settled_until,
        t.features_computed_at,
        t.life,
        t.life_since,
        case
            when t.verified_at is not null and t.bar_count = 0 and t.last_error is null then
                coalesce(case when t.life = 'unknown' then l.asked_at end, t.verified_at)
        end as futile_at,
        s.tier,
        coalesce(b.bar_count, 0) > 0 as base_held,
        coalesce(t.verified_at, t.features_computed_at, t.last_ts) as bars_at,
        (
            select min(p.execution_date) from market_data.splits as p
            where p.symbol = requested.symbol and p.execution_date > %(today)s
        ) as next_split,
        {next_dividend} as next_dividend
    from (select cast(%(symbol)s as text) as symbol) as requested
    left join market_data.symbols as s on s.symbol = requested.symbol
    left join market_data.series_state as t on t.symbol = requested.symbol and t.timeframe = %(timeframe)s
    left join market_data.series_state as b on b.symbol = requested.symbol and b.timeframe = %(base)s
    left join market_data.listings as l on l.symbol = requested.symbol
"""

_NEXT_DIVIDEND: Final = """(
            select min(p.ex_date) from market_data.dividends as p
            where p.symbol = requested.symbol and p.ex_date > %(today)s
        )"""

_SIMILAR: Final = (
    "select symbol from market_data.symbols where upper(symbol) = upper(%(symbol)s) and active order by symbol limit 1"
)

_IN_RANGE: Final = """
    ts >= coalesce(%(start)s, '-infinity'::timestamptz) and ts < coalesce(%(end)s, 'infinity'::timestamptz)
"""

# The view bars_adjusted does the same bar by bar. Reading the splits once takes a third of the time.
_SPLITS: Final = f"""
    splits as materialized (
        select split_from / split_to as ratio, execution_date::timestamp at time zone '{EXCHANGE_ZONE_NAME}' as since
        from market_data.splits_as_of(coalesce(cast(%(as_of)s as timestamptz), 'infinity'))
        where
            %(adjusted)s
            and symbol = %(symbol)s
            and execution_date
            <= (coalesce(cast(%(as_of)s as timestamptz), market_data.clock()) at time zone '{EXCHANGE_ZONE_NAME}')::date
    )
"""  # noqa: S608 - constants

_ADJUSTED: Final = {
    **dict.fromkeys(("open", "high", "low", "close", "vwap"), "b.{0} * x.factor as {0}"),
    "volume": "b.volume / x.factor as volume",
}
_DIVIDENDS: Final = """
    dividends as materialized (
        select factor as ratio, in_force_from as since
        from market_data.dividend_factors(
            %(symbol)s, coalesce(cast(%(as_of)s as timestamptz), 'infinity'::timestamptz)
        )
    )
"""
_BAR: Final = ", ".join(_ADJUSTED.get(c.name, "b.{0}").format(c.name) for c in BAR_COLUMNS)
_FACTOR: Final = "lateral (select market_data.product(s.ratio) as factor from splits as s where b.ts < s.since) as x"
# The same for prices that are adjusted for dividends too; volume is adjusted for splits alone.
_WITH_DIVIDENDS: Final = """
    lateral (select market_data.product(s.ratio) as shares from splits as s where b.ts < s.since) as y
    cross join lateral (
        select y.shares * market_data.product(d.ratio) as factor from dividends as d where b.ts < d.since
    ) as x
"""
_TOTAL_RETURN_BAR: Final = _BAR.replace("b.volume / x.factor", "b.volume / y.shares")


_PARAMETERS: Final = {
    "symbol": "text",
    "timeframe": "text",
    "base": "text",
    "today": "date",
    "start": "timestamptz",
    "end": "timestamptz",
    "limit": "bigint",
    "adjusted": "boolean",
    "as_of": "timestamptz",
    "early": "date[]",
}

# Bars lie in sessions, so the clock of the exchange and its early closes tell which of them lie in the regular hours.
_LOCAL: Final = f"(ts at time zone '{EXCHANGE_ZONE_NAME}')"
_CLOSE: Final = f"case when {_LOCAL}::date = any(%(early)s) then time '13:00' else time '16:00' end"
_REGULAR: Final = f"{_LOCAL}::time >= time '09:30' and {_LOCAL}::time < {_CLOSE}"


# Bars are read from the partitions of their timeframe, by the number of the series: the newest of them are found
# without a look at the others. They are read from the views while some are still being moved to `records`.
_NUMBER: Final = (
    "(select s.id from market_data.series as s where s.symbol = %(symbol)s and s.timeframe = '{timeframe}')"
)
_RECORDS: Final = f"select * from market_data.records_{{timeframe}} where series = {_NUMBER}"  # noqa: S608 - constants
_VIEW: Final = "select * from market_data.bars where symbol = %(symbol)s and timeframe = '{timeframe}'"
_VIEW_AS_OF: Final = "select * from market_data.bars_as_of(%(symbol)s, '{timeframe}', %(as_of)s)"
_VERSION: Final = "b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades"
# The newest of what the function bars_as_of returns: they are among the newest of both tables.
_NEWEST_AS_OF: Final = f"""
    select distinct on (v.ts) v.* from (
        (
            select {_VERSION}, null::bigint as id from market_data.records_{{timeframe}} as b
            where b.series = {_NUMBER} and b.ingested_at <= %(as_of)s and {{where}}
            order by b.ts desc
            limit {{limit}}
        )
        union all
        (
            select distinct on (b.ts) {_VERSION}, b.id from market_data.bar_revisions as b
            where
                b.symbol = %(symbol)s and b.timeframe = '{{timeframe}}'
                and b.ingested_at <= %(as_of)s and b.superseded_at > %(as_of)s and {{where}}
            order by b.ts desc, b.id desc
            limit {{limit}}
        )
    ) as v
    order by v.ts desc, v.id desc
    limit {{limit}}
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Selection:
    """What is read of a series.

    Attributes:
        features: bars with their features, instead of bars alone.
        own: the project's own features, which are read with the others.
        as_of: the bars as they were stored at an instant; adjusted by the splits known and in effect then.
        dividends: prices are adjusted for dividends too.
        regular: only the bars of the regular hours, see `reading.regular`.
    """

    features: bool = False
    own: tuple[Feature, ...] = ()
    as_of: bool = False
    dividends: bool = False
    regular: bool = False


BARS: Final = Selection()
BARS_AS_OF: Final = Selection(as_of=True)
TOTAL_RETURN_BARS: Final = Selection(dividends=True)
TOTAL_RETURN_BARS_AS_OF: Final = Selection(as_of=True, dividends=True)


@cache
def _statement(selection: Selection, timeframe: Timeframe, *, all_moved: bool) -> Statement:
    """Return the statement that reads a selection of a series of `timeframe`, in the columns of its records.

    The first row has the summary as JSON in one column more, and nothing else. Of `records`, the features that are
    booleans or labels are one column.
    """
    where = f"{_IN_RANGE} and {_REGULAR}" if selection.regular else _IN_RANGE
    values, relation = _TOTAL_RETURN_BAR if selection.dividends else _BAR, "b"
    names = [column.name for column in BAR_COLUMNS]
    if selection.features and all_moved:
        newest = (
            f"b as materialized ({_newest(selection, timeframe, f'{where} and features_after is not null', all_moved)})"
        )
        computed = [*FLOATS, CODES, *(feature.name for feature in selection.own)]
        own = [f"{own_value(feature, 'b')} as {feature.name}" for feature in selection.own]
        values, names = ", ".join([values, *(f"b.{name}" for name in (*FLOATS, CODES)), *own]), [*names, *computed]
    elif selection.features:
        of_series = f"symbol = %(symbol)s and timeframe = '{timeframe}'"
        newest = f"""
            f as materialized (
                select * from market_data.features where {of_series} and {where} order by ts desc limit %(limit)s
            ),
            b as materialized (
                select * from market_data.bars
                where {of_series} and ts >= (select min(f.ts) from f) and ts <= (select max(f.ts) from f)
            )
        """  # noqa: S608 - constants
        values, relation = f"{values}, {feature_columns(selection.own, 'f')}", "f inner join b using (ts)"
        names = [column.name for column in record_columns(selection.own)]
    elif selection.regular and timeframe in {Timeframe.H1, Timeframe.H4}:
        newest = _newest_made(selection, timeframe, all_moved)
    else:
        newest = f"b as materialized ({_newest(selection, timeframe, where, all_moved)})"
    return Statement(
        f"""
        with {_SPLITS}, {f"{_DIVIDENDS}, " if selection.dividends else ""}{newest},
        found as (select {values} from {relation} cross join {_WITH_DIVIDENDS if selection.dividends else _FACTOR}),
        summary as ({_SUMMARY.format(next_dividend=_NEXT_DIVIDEND if selection.dividends else "null::date")})
        select {", ".join(names)}, null::text as summary from found
        union all
        select {", ".join("null" for _ in names)}, row_to_json(summary)::text from summary
        order by ts nulls first
        """,  # noqa: S608 - constants, and names that were checked when declared
        _PARAMETERS,
    )


def _newest(selection: Selection, timeframe: Timeframe, where: str, all_moved: bool, limit: str = "%(limit)s") -> str:
    """Return the query for the newest of a selection's stored bars that a condition holds for."""
    if all_moved and selection.as_of:
        return _NEWEST_AS_OF.format(timeframe=timeframe, where=where, limit=limit)
    stored = (_RECORDS if all_moved else _VIEW_AS_OF if selection.as_of else _VIEW).format(timeframe=timeframe)
    return f"select * from ({stored}) as r where {where} order by ts desc limit {limit}"  # noqa: S608 - constants


def _newest_made(selection: Selection, timeframe: Timeframe, all_moved: bool) -> str:
    """Return the expressions with the bars of the regular hours that are made of 5m bars; see `reading.regular`.

    The newest n of them are made of the newest 5m bars of which n + 1 may be made, because the oldest one may be cut.
    """
    span = f"interval '{timeframe.minutes} minutes'"
    within = f"""
        ts >= coalesce(%(start)s, '-infinity'::timestamptz)
        and ts < coalesce(%(end)s, 'infinity'::timestamptz) + {span}
        and {_REGULAR}
    """
    each = timeframe.minutes // timeframe.base.minutes
    stored = _newest(selection, timeframe.base, within, all_moved, f"(%(limit)s + 1) * {each}")
    latest = _newest(selection, timeframe.base, "true", all_moved, "1")
    return f"""
        base as materialized (
            select *, date_bin({span}, {_LOCAL}, {_LOCAL}::date + time '09:30') as bucket, {_CLOSE} as closes
            from ({stored}) as stored
        ),
        made as (
            select
                bucket at time zone '{EXCHANGE_ZONE_NAME}' as ts,
                least(bucket + {span}, bucket::date + min(closes)) at time zone '{EXCHANGE_ZONE_NAME}' as ends_at,
                (bucket::date + 1 + time '{SETTLED_AT:%H:%M}') at time zone '{EXCHANGE_ZONE_NAME}' as settles_at,
                (array_agg(open order by ts))[1] as open, max(high) as high, min(low) as low,
                (array_agg(close order by ts desc))[1] as close, sum(volume) as volume,
                case when bool_and(vwap is not null) then sum(vwap * volume) / nullif(sum(volume), 0) end as vwap,
                case when bool_and(trades is not null) then sum(trades)::bigint end as trades
            from base
            group by bucket
        ),
        b as materialized (
            select * from made
            where
                ts >= coalesce(%(start)s, '-infinity'::timestamptz) and ts < coalesce(%(end)s, 'infinity'::timestamptz)
                and (
                    ends_at <= (select latest.ts from ({latest}) as latest)
                    + interval '{Timeframe.M5.minutes} minutes'
                    or settles_at <= coalesce(%(as_of)s, market_data.clock())
                )
            order by ts desc
            limit %(limit)s
        )
    """  # noqa: S608 - constants


def has_other_hours(series: Series) -> bool:
    """Return whether some of a series' bars may lie outside the regular hours, or begin or end there."""
    return series.timeframe is not Timeframe.D1 and calendar_for(asset_class_of(series.symbol)).has_extended_hours


def regular_bars(selection: Selection, series: Series) -> Selection:
    """Return what reads, of a selection, the bars of the regular hours."""
    return replace(selection, regular=True) if has_other_hours(series) else selection


@cache
def _early_closes() -> str:
    """Return the days that close early as PostgreSQL's text of an array."""
    return f"{{{','.join(map(str, calendar_for(AssetClass.US_EQUITY).early_closes()))}}}"


def features_selection(own: Sequence[Feature] = (), *, regular: bool = False) -> Selection:
    """Return the selection of split-adjusted bars with features, in the order of `record_columns(own)`."""
    return Selection(features=True, own=tuple(own), regular=regular)


class _Known(msgspec.Struct):
    """The summary as the statement returns it."""

    tracked: bool
    verified_at: datetime | None
    next_due_at: datetime | None
    settled_until: datetime | None
    features_computed_at: datetime | None
    life: Life | None
    life_since: datetime | None
    futile_at: datetime | None
    tier: Tier | None
    base_held: bool
    bars_at: datetime | None
    next_split: date | None
    next_dividend: date | None

    def watermarks(self, updated_at: datetime | None) -> Watermarks | None:
        if updated_at is None or self.life is None:
            return None
        return Watermarks(
            self.verified_at, self.next_due_at, updated_at, self.settled_until, self.life, self.life_since
        )


_KNOWN: Final = msgspec.json.Decoder(_Known)


def similar_symbol(connection: sa.Connection, symbol: str) -> str | None:
    """Return the tracked symbol that differs from `symbol` only in the case of its letters, or None."""
    found: str | None = connection.exec_driver_sql(_SIMILAR, {"symbol": symbol}).scalar()
    return found


def read_records(
    reader: PreparedReader,
    selection: Selection,
    series: Series,
    requested: Range,
    now: datetime,
    *,
    adjusted: bool = True,
    as_of: datetime | None = None,
) -> tuple[SeriesSummary, Rows]:
    """Return what is known of `series` at `now`, aware UTC, and its records in the order of the selection's columns.

    The series need not exist. With `as_of`, only what was known at that instant is applied.
    """
    zone = calendar_for(asset_class_of(series.symbol)).tz
    all_moved = _all_moved(reader)
    statement = _statement(selection, series.timeframe, all_moved=all_moved)
    summary, *rows = reader.rows(
        statement,
        {
            "symbol": series.symbol,
            "timeframe": series.timeframe.value,
            "base": series.timeframe.base.value,
            "today": now.astimezone(zone).date(),
            "start": requested.start,
            "end": requested.end,
            "limit": requested.limit,
            "adjusted": adjusted,
            "as_of": as_of,
            "early": _early_closes() if "early" in statement.names else None,
        },
    )
    known = _summary(_KNOWN.decode(summary[-1]), zone)
    if selection.features and all_moved:
        return known, [row[:_CODE] + _labels(row[_CODE]) + row[_CODE + 1 : -1] for row in rows]
    return known, [row[:-1] for row in rows]


_MOVED: Final = Statement("select to_regclass('market_data.series_to_move') is null", {})
_CODE: Final = len(BAR_COLUMNS) + len(FLOATS)


def _all_moved(reader: PreparedReader) -> bool:
    """Return whether `records` has all bars; that no more changes then."""
    if not reader.facts.get(_MOVED):
        reader.facts[_MOVED] = reader.rows(_MOVED, {})[0][0]
    return bool(reader.facts[_MOVED])


@cache
def _labels(code: int) -> tuple[bool | str | None, ...]:
    """Return the features that are booleans or labels, of the code that holds them; there are a few hundred."""
    places = [(feature, (code >> shift_of(feature) & MASK) - 1) for feature in CODED]
    return tuple(
        None if place < 0 else feature.labels[place] if feature.labels else place == 1 for feature, place in places
    )


def _summary(known: _Known, zone: tzinfo) -> SeriesSummary:
    day = min(filter(None, (known.next_split, known.next_dividend)), default=None)
    in_effect = None if day is None else datetime.combine(day, time(), zone).astimezone(UTC)
    futile = None
    if known.futile_at is not None and known.life is not None:
        wait = TIER_OBJECTIVES[known.tier].cadence if known.life.expects_bars and known.tier else ASK_AGAIN_AFTER
        futile = FutileLook(known.futile_at, known.futile_at + wait, known.life, known.base_held)
    return SeriesSummary(
        known.tracked,
        known.watermarks(known.features_computed_at),
        known.watermarks(known.bars_at),
        in_effect,
        futile,
    )
