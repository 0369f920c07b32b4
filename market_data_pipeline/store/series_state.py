"""The state of a series in PostgreSQL: one row of `series_state`, as its last execution left it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.audit_log import append_log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import psycopg
    import sqlalchemy as sa

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.audit_log import LogRow
    from market_data_pipeline.store.copy import StoreConnection


@dataclass(frozen=True, slots=True)
class SeriesState:
    """A series' row in `series_state`; instants are aware UTC, None until there is one."""

    tier: str
    first_ts: datetime | None = None
    last_ts: datetime | None = None
    bar_count: int = 0
    feature_count: int = 0
    feature_version: int = 0
    splits_digest: str = ""
    revision: int = 0
    base_revision: int = 0
    quiet_slots: int = 0
    verified_at: datetime | None = None
    next_due_at: datetime | None = None
    features_computed_at: datetime | None = None
    reverified_splits: str | None = None
    own_features: str = ""
    settled_until: datetime | None = None
    life: Life = Life.TRADING
    life_since: datetime | None = None


def read_states(connection: StoreConnection, symbol: str) -> dict[Timeframe, SeriesState]:
    """Return the states of a symbol's series."""
    rows = connection.rows(
        """
        select
            timeframe, tier, first_ts, last_ts, bar_count, feature_count, feature_version, splits_digest,
            revision, base_revision, quiet_slots, verified_at, next_due_at, features_computed_at,
            audited_splits as reverified_splits, own_features, settled_until, life, life_since
        from market_data.series_state
        where symbol = %(symbol)s
        """,
        {"symbol": symbol},
    )
    return {Timeframe(row.pop("timeframe")): SeriesState(**{**row, "life": Life(row["life"])}) for row in rows}


_TIMES: Final = frozenset(
    {"first_ts", "last_ts", "verified_at", "next_due_at", "features_computed_at", "settled_until", "life_since"}
)
_NUMBERS: Final = frozenset(
    {"bar_count", "feature_count", "feature_version", "revision", "base_revision", "quiet_slots"}
)
_FIELDS: Final = tuple(field.name for field in fields(SeriesState))
# The database calls one of them by the name that it had first.
_COLUMNS: Final = tuple("audited_splits" if name == "reverified_splits" else name for name in _FIELDS)
_INSERT: Final = f"""
    insert into market_data.series_state (symbol, timeframe, {", ".join(_COLUMNS)})
"""
_REPLACE: Final = f"""
    on conflict (symbol, timeframe) do update set
        {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name != "tier")},
        last_error_class = null,
        last_error = null,
        consecutive_failures = 0
"""
_WRITE: Final = f"""
    {_INSERT} values (%(symbol)s, %(timeframe)s, {", ".join(f"%({name})s" for name in _FIELDS)}) {_REPLACE}
"""
_WRITE_MANY: Final = f"""
    {_INSERT}
    select * from unnest(
        %(symbol)s::text[], %(timeframe)s::text[],
        {
    ", ".join(
        f"%({name})s::{'timestamptz' if name in _TIMES else 'bigint' if name in _NUMBERS else 'text'}[]"
        for name in _FIELDS
    )
}
    )
    {_REPLACE}
"""  # noqa: S608 - names of columns


def write_state(connection: StoreConnection, series: Series, state: SeriesState) -> None:
    """Store the state of a series after a successful execution, and clear its errors."""
    connection.execute(_WRITE, {**series._asdict(), **{name: getattr(state, name) for name in _FIELDS}})


def write_states(connection: StoreConnection, states: Sequence[tuple[Series, SeriesState]]) -> None:
    """Store the states of several series after successful executions, and clear their errors."""
    connection.execute(
        _WRITE_MANY,
        {
            "symbol": [series.symbol for series, _ in states],
            "timeframe": [str(series.timeframe) for series, _ in states],
            **{name: _column([getattr(state, name) for _, state in states], name) for name in _FIELDS},
        },
    )


def _column(values: list[Any], name: str) -> Any:
    """Return a column's values as the connection sends them: numbers in an array, labels as texts."""
    import numpy as np

    if name in _NUMBERS:
        return np.array(values, "int64")
    return [str(value) if isinstance(value, StrEnum) else value for value in values]


def without_history(connection: StoreConnection, symbols: Sequence[str]) -> frozenset[str]:
    """Return those of `symbols` of which nothing is known: no series was ever verified, and no day is covered."""
    rows = connection.rows(
        """
        select wanted.symbol
        from unnest(%(symbols)s::text[]) as wanted (symbol)
        where
            not exists (
                select from market_data.series_state as s
                where s.symbol = wanted.symbol and (s.verified_at is not null or s.bar_count > 0)
            )
            and not exists (select from market_data.coverage as c where c.symbol = wanted.symbol)
        """,
        {"symbols": list(symbols)},
    )
    return frozenset(row["symbol"] for row in rows)


def write_failure(connection: StoreConnection, series: Series, tier: str, row: LogRow) -> None:
    """Count and log a failed execution of a series; its data and the rest of its state stay as they are."""
    connection.execute(
        """
        insert into market_data.series_state (
            symbol, timeframe, tier, last_error_class, last_error, consecutive_failures
        )
        values (%(symbol)s, %(timeframe)s, %(tier)s, %(error_class)s, %(error)s, 1)
        on conflict (symbol, timeframe) do update set
            last_error_class = excluded.last_error_class,
            last_error = excluded.last_error,
            consecutive_failures = series_state.consecutive_failures + 1
        """,
        {**series._asdict(), "tier": tier, "error_class": row.error_class, "error": row.error},
    )
    append_log(connection, series, row)


def forget_features(connection: psycopg.Connection[Any]) -> None:
    """Note of every series that none of its features are stored, so that its next refresh computes all of them."""
    connection.execute(
        "update market_data.series_state set feature_version = 0, feature_count = 0, features_computed_at = null"
    )


def state_of(states: Mapping[Timeframe, SeriesState], timeframe: Timeframe, tier: str) -> SeriesState:
    """Return the state of a series, the initial one when it has none yet."""
    return states.get(timeframe) or SeriesState(tier=tier)


class HeldSeries(NamedTuple):
    """How much of a computed series is stored; instants are aware UTC."""

    symbol: str
    timeframe: Timeframe
    first_ts: datetime | None
    last_ts: datetime | None
    bar_count: int
    feature_count: int
    verified_at: datetime | None


_HELD: Final = """
    select symbol, timeframe, first_ts, last_ts, bar_count, feature_count, verified_at
    from market_data.series_state
    where symbol = any(%(symbols)s::text[]) and features_computed_at is not null
    order by symbol, timeframe
"""


def held_series(engine: sa.Engine, symbols: Sequence[str]) -> list[HeldSeries]:
    """Return the computed series of `symbols`, by symbol and timeframe."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(_HELD, {"symbols": list(symbols)})
        return [HeldSeries(*row)._replace(timeframe=Timeframe(row.timeframe)) for row in rows]
