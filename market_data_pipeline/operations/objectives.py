"""The published document of what we promise, made of `domain.objectives` and nothing else.

Keep out: promises (domain.objectives) and whether they are kept (reports).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.objectives import (
    CACHE_LIFESPAN,
    DUE_GRACE,
    FRESHNESS,
    RECOVERY_OBJECTIVES,
    SETTLE_AFTER,
    SETTLED_AT,
    TIER_OBJECTIVES,
)

if TYPE_CHECKING:
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
            str(state): {
                "up_to_seconds": None if rule.up_to is None else _seconds(rule.up_to),
                "condition": rule.condition,
                "action": rule.action,
            }
            for state, rule in FRESHNESS.items()
        },
        "cache_lifespan_seconds": _seconds(CACHE_LIFESPAN),
        "due": {
            "grace_seconds": _seconds(DUE_GRACE),
            "settle_after_seconds": _seconds(SETTLE_AFTER),
            "settled_at": f"{SETTLED_AT:%H:%M} of the next day",
            "settled_at_timezone": "America/New_York",
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


def _seconds(duration: timedelta) -> int:
    return int(duration.total_seconds())
