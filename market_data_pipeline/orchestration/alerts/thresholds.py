"""What has crossed a line since people were last told: series beyond their RPO, the vendor's rate, its key, a job.

Each change is told once and grouped: one message for all series that crossed within a tick. What was told stands in
`open_alerts` and is committed when the message was delivered, so neither a restart nor a dead webhook loses or repeats
one. Add here: something else about which people are told when it begins and when it is over. Keep out: how a message
reaches them (operations.alerting), and failed runs, which Dagster tells of itself (alerts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, deliver
from market_data_pipeline.orchestration.checks.freshness import spoken
from market_data_pipeline.orchestration.results import WORST_SHOWN
from market_data_pipeline.store.alerts import close_alert, note_alerts, open_alert

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.reports.freshness import LaggingSeries, TierFreshness
    from market_data_pipeline.settings import Settings

# Of the requests of the last hour. One refusal among a handful says nothing; and who hovers around the line is not told
# each time it is crossed.
REFUSED_SHARE: Final = 0.05
REFUSED_SHARE_OVER: Final = REFUSED_SHARE / 2
FEWEST_REQUESTS: Final = 20

_UNFOLLOWED: Final = """
delete from market_data.open_alerts as a
where a.kind = 'series' and not exists (
    select from market_data.symbols as s where s.active and s.symbol = split_part(a.subject, '|', 1)
)
"""

_VENDOR: Final = """
with recent as (
    select id, run_id, status, requests, rate_limited, error_class, error from market_data.ingest_log
    where finished_at > market_data.clock() - interval '1 hour'
),
refused as (
    select id, run_id, error from recent where error_class = 'VendorRefusedError' order by id desc limit 1
)
select
    coalesce(sum(requests), 0) as requests,
    coalesce(sum(rate_limited), 0) as rate_limited,
    (select error from refused) as refused,
    exists (
        select from recent as r cross join refused as f
        where r.status <> 'failed' and r.requests > 0 and (r.id > f.id or r.run_id = f.run_id)
    ) as answered_since,
    count(*) filter (where status <> 'failed' and requests > 0) as answered
from recent
"""


def tell_crossings(engine: Engine, settings: Settings, standing: Mapping[Tier, TierFreshness]) -> None:
    """Tell people of everything that has crossed a line, or is back, since they were last told.

    What cannot be delivered is tried again at the next call.
    """
    urls = settings.alert_urls
    _forget_unfollowed(engine)
    tell(engine, urls, lambda connection: _series(connection, standing, settings.ui_url))
    for change in (_rate, _key):
        tell(engine, urls, change)


def tell(engine: Engine, urls: Sequence[str], change: Callable[[Connection], Alert | None]) -> bool:
    """Commit what `change` notes as told, if its alert is delivered or there is none; return whether it was."""
    with engine.connect() as connection:
        alert = change(connection)
        if alert is not None and not deliver(urls, alert):
            connection.rollback()
            return False
        connection.commit()
        return True


def _forget_unfollowed(engine: Engine) -> None:
    """Drop what was told of series whose symbol is not followed any more: nobody needs to hear of them again."""
    import sqlalchemy as sa

    with engine.begin() as connection:
        connection.execute(sa.text(_UNFOLLOWED))


def _series(connection: Connection, standing: Mapping[Tier, TierFreshness], ui_url: str) -> Alert | None:
    from market_data_pipeline.reports.freshness import alert_changes

    changes = alert_changes(connection)
    if not any(changes):
        return None
    note_alerts(
        connection,
        "series",
        {late.series.partition_key: late.tier for late in changes.late},
        [recovered.series.partition_key for recovered in changes.recovered],
    )
    opened = {tier: [late for late in changes.late if late.tier == tier] for tier in Tier}
    closed = {tier: sum(recovered.tier == tier for recovered in changes.recovered) for tier in Tier}
    titles, lines = [], []
    for tier in Tier:
        rpo, of_tier = spoken(TIER_OBJECTIVES[tier].rpo), standing[tier]
        if late := opened[tier]:
            titles.append(f"{of_tier.late} of {of_tier.series} {tier} series are more than {rpo} behind")
            lines += _reasons(late)
        if closed[tier]:
            rest = f", {of_tier.late} are still behind" if of_tier.late else ""
            titles.append(f"{closed[tier]} {tier} series are back within {rpo}{rest}")
    tier = next((tier for tier in Tier if opened[tier] or closed[tier]), Tier.CRITICAL)
    return Alert(
        "; ".join(titles),
        tuple(lines),
        Tone.TROUBLE if any(opened.values()) else Tone.RECOVERY,
        f"{ui_url}/assets/{tier}/features?view=checks",
    )


def _reasons(late: Sequence[LaggingSeries]) -> list[str]:
    """Return a line for each reason with the series that it keeps, at most `WORST_SHOWN` of either."""
    by_reason: dict[str, list[str]] = {}
    for one in late:
        by_reason.setdefault(one.reason, []).append(one.series.partition_key)
    lines = [f"{_some(keys)}: {reason}" for reason, keys in list(by_reason.items())[:WORST_SHOWN]]
    more = len(by_reason) - len(lines)
    return [*lines, *([f"… and {more} more reasons"] if more > 0 else [])]


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - WORST_SHOWN} more" if len(keys) > WORST_SHOWN else ""
    return ", ".join(keys[:WORST_SHOWN]) + more


def _rate(connection: Connection) -> Alert | None:
    asked = _vendor(connection)
    share = asked.rate_limited / asked.requests if asked.requests else 0.0
    said = f"{share:.1%} of the vendor's {asked.requests} answers of the last hour were 429"
    if share > REFUSED_SHARE and asked.requests >= FEWEST_REQUESTS:
        if open_alert(connection, "rate_limit", "", "over"):
            return Alert(
                f"{said}: too many requests",
                (
                    f"More than {REFUSED_SHARE:.0%} means that another program shares the key, or that POLYGON_PLAN or "
                    "POLYGON_CALLS_PER_MINUTE says more than the vendor allows; `market-data health` shows the rate.",
                ),
                Tone.WARNING,
            )
    elif share <= REFUSED_SHARE_OVER and close_alert(connection, "rate_limit", ""):
        return Alert(f"{said}: that is in order again", tone=Tone.RECOVERY)
    return None


def _key(connection: Connection) -> Alert | None:
    asked = _vendor(connection)
    if asked.refused and not asked.answered_since:
        if open_alert(connection, "vendor_key", "", "refused"):
            return Alert("The vendor refuses the key or the plan: nothing can be refreshed", (asked.refused,))
    elif asked.answered and close_alert(connection, "vendor_key", ""):
        return Alert("The vendor answers to the key again", tone=Tone.RECOVERY)
    return None


def _vendor(connection: Connection) -> Any:
    import sqlalchemy as sa

    return connection.execute(sa.text(_VENDOR)).one()
