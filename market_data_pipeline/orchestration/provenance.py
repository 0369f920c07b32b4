"""Who requested a run, why, and for which series: read from its tags and config, for the audit log and reports.

Run tags (https://docs.dagster.io/guides/build/assets/metadata-and-tags/tags). Add here: another way to start a run.
"""

from __future__ import annotations

import getpass
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dagster as dg

TRIGGER_TAG: Final = "market_data/trigger"  # what started the run: schedule, staleness, request or cli
USER_TAG: Final = "market_data/user"  # on runs that a person started by one of our commands: user@host
REASON_TAG: Final = "market_data/reason"  # in words, where the trigger is not enough

SHARD_TAG: Final = "market_data/shard"  # on runs for a shard of a tier: its first and last symbol

SCHEDULED_FOR_TAG: Final = ".dagster/scheduled_execution_time"
_RANGE: Final = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
_LONGEST: Final = 500  # characters: a reason or a list of symbols is for people to read


class Provenance(NamedTuple):
    """What started a run."""

    trigger: str  # schedule:NAME, sensor:NAME, backfill:ID or retry:RUN by Dagster, backfill or cli by us, or manual
    requested_by: str  # a schedule's or sensor's name, user@host, or dagster
    reason: str
    series: str


def caller() -> str:
    """Return the user and host of this process: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def provenance(tags: Mapping[str, str], run_config: Mapping[str, Any]) -> Provenance:
    """Return what started a run with these tags and this config."""
    trigger = _trigger(tags)
    kind, _, name = trigger.partition(":")
    by = tags.get(USER_TAG) or (name if kind in {"schedule", "sensor"} else "dagster")
    return Provenance(
        trigger, by, _cut(tags.get(REASON_TAG) or _reason(kind, name, tags)), _cut(_series(tags, run_config))
    )


def of_run(run: dg.DagsterRun) -> Provenance:
    """Return what started a run."""
    return provenance(run.tags, run.run_config)


def _trigger(tags: Mapping[str, str]) -> str:
    for tag, name in (
        ("dagster/parent_run_id", "retry"),
        ("dagster/schedule_name", "schedule"),
        ("dagster/sensor_name", "sensor"),
        ("dagster/backfill", "backfill"),
    ):
        if tag in tags:
            return f"{name}:{tags[tag]}"
    return tags.get(TRIGGER_TAG, "manual")


def _reason(kind: str, name: str, tags: Mapping[str, str]) -> str:
    if kind == "schedule":
        at = tags.get(SCHEDULED_FOR_TAG, "")
        try:
            return f"scheduled for {datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%MZ}"
        except ValueError:
            return "scheduled"
    if kind == "retry":
        return f"run {name[:8]} ended before its work was done"
    if kind == "backfill":
        return "a backfill of partitions, requested in Dagster" if name else "market-data requested what is missing"
    if kind == "sensor" and TRIGGER_TAG not in tags:
        return "a condition or sensor of the project's own assets"
    return "started by hand" if kind in {"manual", "cli"} else "late or requested series"


def _series(tags: Mapping[str, str], run_config: Mapping[str, Any]) -> str:
    if SHARD_TAG in tags:
        selected = tags[SHARD_TAG]
    elif "dagster/partition" in tags:
        selected = tags["dagster/partition"]
    elif all(tag in tags for tag in _RANGE):
        selected = f"{tags[_RANGE[0]]} to {tags[_RANGE[1]]}"
    else:
        selected = ""
    steps: list[Mapping[str, Any]] = list((run_config.get("ops") or {}).values())
    config = (steps[0].get("config") if steps else None) or {}
    symbols = "" if SHARD_TAG in tags else ", ".join(config.get("symbols") or ())
    timeframes = ", ".join(config.get("timeframes") or ())
    said = [selected or symbols or "all symbols", *([symbols] if selected and symbols else [])]
    return ": ".join([" narrowed to ".join(said), *([timeframes] if timeframes else [])])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"
