"""Which series of a run get an event of their own in Dagster: those that changed, and each of the others once a day.

A materialization takes 1.5 kB with its indexes, and a millisecond; one for every series and tick would be 1.9 million
events a day where 2,000 symbols are refreshed every 15 minutes. Dagster shows a partition by its newest events, so
another one that says "unchanged" shows nothing new. What a run did to each series is in the audit log, and in the run's
own result.

In a large tier, the routine of a session alone, new bars at every tick, would be 600,000 events a day. There a series
that only grew is materialized again after four hours; one with corrected bars, with bars filled in or with a warning at
once. Assets of a project's own may start when a partition is materialized, so where there are any, every change counts.

A partition's status stays right: a series whose partition shows as missing or failed is materialized when it is
refreshed, whether it changed or not, and a failed series is shown as failed. An asset's freshness policy
(https://docs.dagster.io/guides/observe/asset-freshness-policies) looks at its newest materialization, so a run in which
nothing changed materializes one series.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.orchestration.dagster_internals import log_materializations, log_planned, query_events
from market_data_pipeline.orchestration.metadata import materializations
from market_data_pipeline.orchestration.partitions import bars_key, features_key, symbols_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dagster as dg

    from market_data_pipeline.domain.series import Tier
    from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest

# The features' events, because they are written after those of the bars. Timestamps are UTC without a time zone. Each
# part is one descent of Dagster's index on (asset_key, dagster_event_type, partition, id).
_NEWEST: Final = """
    select
        p.partition,
        m.timestamp,
        f.id is not null and f.id > coalesce(m.id, 0) as unfulfilled
    from unnest(cast(:partitions as text[])) as p (partition)
    left join lateral (
        select id, timestamp from event_logs
        where asset_key = :asset and dagster_event_type = 'ASSET_MATERIALIZATION' and partition = p.partition
        order by id desc limit 1
    ) as m on true
    left join lateral (
        select id from event_logs
        where asset_key = :asset and dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED' and partition = p.partition
        order by id desc limit 1
    ) as f on true
"""


# A tier of so many symbols writes 75,000 events a day at most, 0.1 GB.
_LARGE: Final = 250
_SPACING: Final = timedelta(hours=4)


class Shown(NamedTuple):
    """What Dagster shows of partitions before a run: keys like `AAPL|5m`."""

    newest: Mapping[str, datetime]  # when it was last materialized; those that were planned since are left out
    failed: frozenset[str]  # planned and not materialized since


def shown(instance: dg.DagsterInstance, tier: Tier, partitions: Sequence[str]) -> Shown:
    """Return what is shown of a tier's partitions; nothing where the storage is not PostgreSQL."""
    values = {"asset": features_key(tier).to_string(), "partitions": list(partitions)}
    rows = query_events(instance, _NEWEST, values)
    return Shown(
        {row.partition: row.timestamp.replace(tzinfo=UTC) for row in rows if row.timestamp and not row.unfulfilled},
        frozenset(row.partition for row in rows if row.unfulfilled),
    )


def spacing(instance: dg.DagsterInstance, tier: Tier, *, own_assets: bool) -> timedelta:
    """Return how long after its last materialization a series that only grew is materialized again."""
    return timedelta(0) if own_assets or len(symbols_of(instance, tier)) <= _LARGE else _SPACING


def is_due(outcome: SeriesOutcome, newest: datetime | None, now: datetime, apart: timedelta) -> bool:
    """Return whether a series that was committed is to be materialized.

    Args:
        outcome: of the series.
        newest: when it was last materialized; None when it shows as missing or failed.
        now: aware.
        apart: as `spacing` has it.
    """
    if newest is None or newest.astimezone(UTC).date() < now.astimezone(UTC).date():
        return True
    if outcome.status == "unchanged":
        return False
    is_news = outcome.counters.rows_updated or outcome.rows_filled or outcome.warning
    return bool(is_news) or now - newest >= apart


class PartitionEvents:
    """Writes the events of a run's series as they commit.

    Args:
        context: of the run's step.
        tier: of the run.
        requests: what the run refreshes.
        planned: True when Dagster has planned every partition at the run's launch, so that what is not materialized
            shows as failed without more.
        own_assets: whether the project has assets of its own beside the pipeline's.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        tier: Tier,
        requests: Sequence[SymbolRequest],
        *,
        planned: bool,
        own_assets: bool,
    ) -> None:
        self._context, self._tier, self._planned = context, tier, planned
        keys = [f"{one.symbol}|{timeframe}" for one in requests for timeframe in one.timeframes]
        self._shown = shown(context.instance, tier, keys)
        self._apart = spacing(context.instance, tier, own_assets=own_assets)
        self._skipped: SeriesOutcome | None = None
        self._materialized = False

    def log(self, outcomes: Sequence[SeriesOutcome]) -> None:
        """Write the materializations of those that are due."""
        committed = [one for one in outcomes if not one.failed]
        now, newest = datetime.now(UTC), self._shown.newest
        due = [one for one in committed if is_due(one, newest.get(one.series.partition_key), now, self._apart)]
        self._materialize(due)
        if committed and not due:
            self._skipped = committed[-1]

    def close(self, outcomes: Sequence[SeriesOutcome]) -> None:
        """Show the run's failed series as failed, and one materialization where nothing changed in the whole run."""
        if not self._materialized and self._skipped is not None:
            self._materialize([self._skipped])
        if self._planned:
            return
        for one in outcomes:
            if one.failed and one.series.partition_key not in self._shown.failed:
                keys = (bars_key(self._tier), features_key(self._tier))
                log_planned(self._context, keys, one.series.partition_key)

    def _materialize(self, outcomes: Sequence[SeriesOutcome]) -> None:
        if outcomes:
            log_materializations(self._context, [event for one in outcomes for event in materializations(one)])
            self._materialized = True
