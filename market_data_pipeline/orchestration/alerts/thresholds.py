"""Threshold alerts: series beyond their tier's RPO, refused requests, a refused key; when each begins and when it ends.

All series that cross their threshold between two ticks share one message; those of a symbol that was alerted before, or
of a market that is silent as a whole (lives), are noted without one. An open alert is a row of `open_alerts`,
committed when the message was delivered, so neither a restart nor a dead webhook loses or repeats one. Add here:
another condition with a beginning and an end. Keep out: failed runs (failed_runs).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, asset_class_of
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, alert_once
from market_data_pipeline.orchestration.alerts.identities import alert_identities
from market_data_pipeline.orchestration.alerts.lives import MARKET, alert_lives, alert_silent_markets
from market_data_pipeline.orchestration.checks.freshness import in_hours
from market_data_pipeline.orchestration.metadata import with_reasons
from market_data_pipeline.store.alerts import (
    close_alert,
    close_untracked,
    note_alerts,
    open_alert,
    open_alerts,
    open_kinds,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.domain.series import AssetClass
    from market_data_pipeline.reports.freshness import TierFreshness
    from market_data_pipeline.reports.health import VendorAnswers
    from market_data_pipeline.settings import Settings

# Of the requests of the last hour. One refusal among a few says nothing; the lower threshold for the end keeps a share
# that hovers around the upper one from alerting repeatedly.
REFUSED_SHARE: Final = 0.05
REFUSED_SHARE_OVER: Final = REFUSED_SHARE / 2
FEWEST_REQUESTS: Final = 20


class Condition(NamedTuple):
    """What is worth an alert when it begins and when it ends; between the two thresholds both are None."""

    kind: str
    detail: str  # fixed: an open alert is sent again when its detail changes
    begins: Alert | None
    ends: Alert | None


def alert_thresholds(engine: Engine, settings: Settings, tiers: Mapping[Tier, TierFreshness]) -> None:
    """Send the alerts on all threshold crossings since the last ones; the next call retries what failed."""
    from market_data_pipeline.reports.health import vendor_answers
    from market_data_pipeline.reports.securities import new_changes

    urls = settings.alert_urls
    with engine.begin() as connection:
        close_untracked(connection)
        answers, opened = vendor_answers(connection), open_kinds(connection)
        renamed = bool(new_changes(connection))
    silent = alert_silent_markets(engine, settings)
    alert_once(engine, urls, lambda connection: _series(connection, tiers, settings.ui_url, silent))
    alert_lives(engine, settings)
    if renamed:
        alert_identities(engine, settings)
    for condition in (_rate_limit(answers), _vendor_key(answers)):
        if condition.begins or condition.kind in opened:  # at most ticks, neither: no transaction for each
            alert_once(engine, urls, partial(_changed, condition=condition))


def _changed(connection: Connection, condition: Condition) -> Alert | None:
    if condition.begins:
        return condition.begins if open_alert(connection, condition.kind, "", condition.detail) else None
    return condition.ends if condition.ends and close_alert(connection, condition.kind, "") else None


def _series(
    connection: Connection, tiers: Mapping[Tier, TierFreshness], ui_url: str, silent: Collection[AssetClass]
) -> Alert | None:
    """Return the alert on symbols that fell behind, or have recovered with all their series, since the last one."""
    from market_data_pipeline.reports.freshness import alert_changes

    changes = alert_changes(connection)
    if not any(changes):
        return None
    late, over = changes.late, {one.series.partition_key for one in changes.recovered}
    alerted = open_alerts(connection, "series")
    # One cause is alerted once: a silent market's for all its series, and a symbol's for those that follow its first. A
    # delisted symbol's day bars may be looked at a day later than the others, and seem late meanwhile.
    known = {one.subject.partition("|")[0] for one in (*alerted, *open_alerts(connection, "life"))}
    of_market = [one for one in late if one.is_answered and asset_class_of(one.symbol) in silent]
    new = [one for one in late if one not in of_market and one.symbol not in known]
    # A symbol is back when all of it is. One of which no bars are expected any more has not come back.
    still_late = {one.subject.partition("|")[0] for one in alerted if one.subject not in over}
    closed = [one for one in changes.recovered if one.symbol not in still_late or not Life(one.life).expects_bars]
    back = [one for one in closed if Life(one.life).expects_bars and one.alerted != MARKET]
    opened = {one.series.partition_key: MARKET if one in of_market else one.tier for one in late}
    note_alerts(connection, "series", opened, [one.series.partition_key for one in closed])
    titles, lines, shown = [], [], []
    for tier, now in tiers.items():
        rpo = in_hours(TIER_OBJECTIVES[tier].rpo)
        behind = [one for one in new if one.tier == tier]
        recovered = sum(one.tier == tier for one in back)
        if behind:
            titles.append(f"{now.late} of {now.series} {tier} series are more than {rpo} behind")
            lines += with_reasons((one.reason, one.series.partition_key) for one in behind)
        if recovered:
            rest = f", {now.late} are still behind" if now.late else ""
            titles.append(f"{recovered} {tier} series are back within {rpo}{rest}")
        if behind or recovered:
            shown.append(tier)
    if not shown:
        return None
    link = f"{ui_url}/assets/{shown[0]}/features?view=checks"
    return Alert("; ".join(titles), tuple(lines), Tone.TROUBLE if new else Tone.RECOVERY, link)


def _rate_limit(answers: VendorAnswers) -> Condition:
    share = answers.rate_limited / answers.requests if answers.requests else 0.0
    said = f"{share:.1%} of the vendor's {answers.requests} answers in the last hour were 429"
    begins = Alert(
        f"{said}: too many requests",
        (
            f"More than {REFUSED_SHARE:.0%} means that another program shares the key, or that POLYGON_PLAN or "
            "POLYGON_CALLS_PER_MINUTE is higher than the vendor allows; `market-data health` shows the rate.",
        ),
        Tone.WARNING,
    )
    return Condition(
        "rate_limit",
        "over",
        begins if share > REFUSED_SHARE and answers.requests >= FEWEST_REQUESTS else None,
        Alert(f"{said}: back to normal", tone=Tone.RECOVERY) if share <= REFUSED_SHARE_OVER else None,
    )


def _vendor_key(answers: VendorAnswers) -> Condition:
    refused = answers.refusal if answers.refusal and not answers.answered_since else None
    return Condition(
        "vendor_key",
        "refused",
        Alert("The vendor refuses the key or the plan: nothing can be refreshed", (refused,)) if refused else None,
        Alert("The vendor accepts the key again", tone=Tone.RECOVERY) if answers.answered else None,
    )
