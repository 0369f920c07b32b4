"""What `deploy/grafana` asks of /metrics is what /metrics answers; and how a late backup is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline_tests.serving.conftest import Api, evaluate
from market_data_pipeline_tests.serving.seeding import Seed

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
HEALTH = "/api/v1/admin/scheduler-health"


def alerts() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    return found


def backup(seed: Seed, age: str, due: str | None) -> None:
    seed.run(
        "insert into market_data.backups (taken_at, finished_at, location, bytes, next_due_at) values"
        " (now() - %s::interval, now() - %s::interval, 'host:/srv/backups/one', 1000000, now() + %s::interval)",
        age, age, due,
    )  # fmt: skip


def test_dashboard_and_alerts_ask_only_for_metrics_and_labels_that_are_there(
    api: Api, seed: Seed, dagster_instance: dg.DagsterInstance
) -> None:
    seed.series("AAPL")
    evaluate(dagster_instance)
    backup(seed, "1 hour", "25 hours")
    api.get("/")
    samples: dict[str, set[str]] = {"up": {"job"}}
    for family in text_string_to_metric_families(api.get("/metrics").text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)

    expressions = [rule["expr"] for rule in alerts().values()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    for expression in expressions:
        named = re.findall(r"\b(market_data_\w+|up)\b(?:\{(\w+)=\"[^\"]*\"\})?", expression)
        assert named, expression
        for name, label in named:
            assert name in samples, expression
            assert not label or label in samples[name], expression
        for grouped in re.findall(r"\bby \((\w+)\)", expression):
            assert all(grouped in samples[name] for name, _ in named), expression
        assert expression.count("(") == expression.count(")"), expression
    shown = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name in re.findall(r"market_data_\w+", target["expr"])
    }
    assert {name for name in samples if name.startswith("market_data_series")} <= shown


def test_alerts_follow_the_objectives_and_say_what_to_do() -> None:
    rules = alerts()
    for tier, objective in TIER_OBJECTIVES.items():
        name = f"MarketData{tier.value.title().replace('_', '')}BeyondRpo"
        bound = f'market_data_staleness_seconds_max{{tier="{tier}"}} > {objective.rpo.total_seconds():.0f}'
        assert rules[name]["expr"] == bound
    for rule in rules.values():
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert all(rule["annotations"][part].endswith(".") for part in ("summary", "description"))


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


@pytest.mark.parametrize(("due", "late"), [("-1 hour", True), ("1 hour", False), (None, False)])
def test_a_backup_that_did_not_come_in_time_is_reported(
    api: Api, seed: Seed, dagster_instance: dg.DagsterInstance, due: str | None, late: bool
) -> None:
    assert api.get(HEALTH).json()["last_backup"] is None
    assert "\nmarket_data_backup_late " not in api.get("/metrics").text
    backup(seed, "27 hours", due)

    report = api.get(HEALTH).json()

    assert any("the next one was due by" in reason for reason in report["reasons"]) is late
    assert (report["last_backup"]["location"], report["last_backup"]["late"]) == ("host:/srv/backups/one", late)
    assert 97_200 <= report["last_backup"]["age_seconds"] < 98_000
    text = api.get("/metrics").text
    assert f"market_data_backup_late {float(late)}" in text
    assert "market_data_backup_bytes 1e+06" in text
