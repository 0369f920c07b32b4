"""The state of a series in PostgreSQL: one row of `series_state`, as its last execution left it."""

from __future__ import annotations

from dataclasses import dataclass, fields
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


def write_state(connection: StoreConnection, series: Series, state: SeriesState) -> None:
    """Store the state of a series after a successful execution, and clear its errors."""
    connection.execute(
        """
        insert into market_data.series_state (
            symbol, timeframe, tier, first_ts, last_ts, bar_count, feature_count, feature_version, splits_digest,
            revision, base_revision, quiet_slots, verified_at, next_due_at, features_computed_at, audited_splits,
            own_features, settled_until, life, life_since
        )
        values (
            %(symbol)s, %(timeframe)s, %(tier)s, %(first_ts)s, %(last_ts)s, %(bar_count)s, %(feature_count)s,
            %(feature_version)s, %(splits_digest)s, %(revision)s, %(base_revision)s, %(quiet_slots)s, %(verified_at)s,
            %(next_due_at)s, %(features_computed_at)s, %(reverified_splits)s, %(own_features)s, %(settled_until)s,
            %(life)s, %(life_since)s
        )
        on conflict (symbol, timeframe) do update set
            first_ts = excluded.first_ts,
            last_ts = excluded.last_ts,
            bar_count = excluded.bar_count,
            feature_count = excluded.feature_count,
            feature_version = excluded.feature_version,
            splits_digest = excluded.splits_digest,
            revision = excluded.revision,
            base_revision = excluded.base_revision,
            quiet_slots = excluded.quiet_slots,
            verified_at = excluded.verified_at,
            next_due_at = excluded.next_due_at,
            features_computed_at = excluded.features_computed_at,
            audited_splits = excluded.audited_splits,
            own_features = excluded.own_features,
            settled_until = excluded.settled_until,
            life = excluded.life,
            life_since = excluded.life_since,
            last_error_class = null,
            last_error = null,
            consecutive_failures = 0
        """,
        {**series._asdict(), **{field.name: getattr(state, field.name) for field in fields(state)}},
    )


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
