"""The published document of the objectives, generated from `domain.objectives` alone.

`market-data objectives --markdown docs/objectives.md` writes it; a test fails while that file differs. Keep out:
promises (domain.objectives) and whether they are kept (reports, drill).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.objectives import (
    CACHE_LIFESPAN,
    DUE_GRACE,
    FRESHNESS,
    RECOVERY_OBJECTIVES,
    SETTLE_AFTER,
    SETTLED_AT,
    TIER_OBJECTIVES,
    Freshness,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta


def objectives_document() -> dict[str, Any]:
    """Return the objectives as JSON values; durations are whole seconds, names end in `_seconds`."""
    return {
        "tiers": {
            str(tier): {
                "rpo_seconds": _seconds(promise.rpo),
                "cadence_seconds": _seconds(promise.cadence),
                "cron": promise.cron,
                "cron_timezone": promise.cron_timezone,
                "warn_after_seconds": _seconds(promise.warn_after),
                "fail_after_seconds": _seconds(promise.fail_after),
                "description": promise.description,
            }
            for tier, promise in TIER_OBJECTIVES.items()
        },
        "freshness": {
            state.name: {
                "up_to_seconds": None if rule.up_to is None else _seconds(rule.up_to),
                "cache_lifespan_seconds": _seconds(CACHE_LIFESPAN) if state is Freshness.STALE else None,
                "condition": rule.condition,
                "action": rule.action,
            }
            for state, rule in FRESHNESS.items()
        },
        "due": {
            "grace_seconds": _seconds(DUE_GRACE),
            "settle_after_seconds": _seconds(SETTLE_AFTER),
            "settled_at": f"{SETTLED_AT:%H:%M} of the next day",
            "settled_at_timezone": EXCHANGE_ZONE_NAME,
        },
        "recovery": {
            str(outage): {
                "rto_seconds": _seconds(promise.rto),
                "symptom": promise.symptom,
                "procedure": list(promise.procedure),
            }
            for outage, promise in RECOVERY_OBJECTIVES.items()
        },
    }


def objectives_markdown() -> str:
    """Return the objectives as the page `docs/objectives.md`."""
    document = objectives_document()
    tiers = [
        (f"`{name}`", span(tier["rpo_seconds"]), f"`{tier['cron']}` {tier['cron_timezone']}",
         span(tier["warn_after_seconds"]), span(tier["fail_after_seconds"]), tier["description"])
        for name, tier in document["tiers"].items()
    ]  # fmt: skip
    states = [
        (f"`{name}`", limit(rule), rule["condition"], rule["action"]) for name, rule in document["freshness"].items()
    ]
    outages = [(f"`{name}`", span(one["rto_seconds"]), one["symptom"]) for name, one in document["recovery"].items()]
    procedures = "\n".join(
        f"### {name}\n\nOver within {span(one['rto_seconds'])}.\n\n"
        + "".join(f"{number}. {step}\n" for number, step in enumerate(one["procedure"], start=1))
        for name, one in document["recovery"].items()
    )
    due = document["due"]
    return _PAGE.format(
        tiers=_table(("tier", "RPO", "refreshed", "light warns after", "and fails after", "promise"), tiers),
        states=_table(("state", "up to", "condition", "what the API does"), states),
        outages=_table(("failure", "RTO", "symptom"), outages),
        procedures=procedures,
        grace=span(due["grace_seconds"]),
        settle=span(due["settle_after_seconds"]),
        settled_at=f"{due['settled_at']} ({due['settled_at_timezone']})",
    )


def limit(rule: dict[str, Any]) -> str | None:
    """Return the greatest staleness of a state of freshness in words; None for a state without any."""
    if rule["cache_lifespan_seconds"] is not None:
        return f"no limit; cached for {span(rule['cache_lifespan_seconds'])}"
    return None if rule["up_to_seconds"] is None else span(rule["up_to_seconds"])


def span(seconds: float) -> str:
    """Return a duration in the units that people use for it: 45 s, 12 min, 3 h 20 min, 26 h, 2 d 4 h."""
    whole = int(seconds)
    days, hours = divmod(whole // 3_600, 24) if whole >= 48 * 3_600 else (0, whole // 3_600)
    parts = [(days, "d"), (hours, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    spoken = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(spoken[:2]) or ("0 s" if seconds == 0 else "under 1 s")


_PAGE: Final = """\
# Objectives

What is promised: how fresh each tier is (RPO, the recovery point), what staleness means, and how fast each failure is
over (RTO, the recovery time). `market-data objectives --markdown docs/objectives.md` writes this page from
`domain/objectives.py`, which schedules, freshness policies, sensors and the read API follow as well.

## Freshness per tier

{tiers}
The RPO is the staleness that no series of the tier may exceed. Staleness is how long the first bar that is missing has
been due; a bar is due at its end, plus the plan's delay, plus {grace}. The lights are Dagster's freshness policies:
they see when the tier was last refreshed, not each series.

## States of a series

{states}
A bar may still change until {settle} after the plan serves it; a session is settled at {settled_at}.

## Recovery per failure

{outages}
`market-data drill` causes each of them in a scratch project and measures how long it lasts.

{procedures}"""


def _table(columns: tuple[str, ...], rows: Sequence[Sequence[str | None]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell or '-' for cell in line)} |\n" for line in lines)


def _seconds(duration: timedelta) -> int:
    return int(duration.total_seconds())
