"""Each file under `deploy` is validated or carried out by a test; a new one needs its line here."""

from __future__ import annotations

import ast
import subprocess
from typing import Final

import pytest

from market_data_pipeline_tests.conftest import REPOSITORY

FOLDER: Final = REPOSITORY / "deploy"
TESTS: Final = REPOSITORY / "market_data_pipeline_tests"
_MANIFEST: Final = "deploy/test_kubernetes.py::test_kubernetes_models_accept_every_manifest_and_refuse_a_misspelt_one"
_UNIT: Final = "test_systemd.py::test_systemd_accepts_the_unit"
TESTED_BY: Final = {
    "cluster/dagster.yaml": (
        "hosts/test_hosts.py::test_a_load_survives_lost_hosts_a_cut_link_and_restarts_and_a_run_is_terminated"
    ),
    "container/.gitignore": "deploy/test_every_file.py::test_secrets_that_the_script_makes_are_never_committed",
    "container/Containerfile": "deploy/test_container.py::test_hadolint_accepts_the_containerfile",
    "container/Containerfile.dockerignore": (
        "deploy/test_container.py::test_the_build_gets_all_that_it_copies_and_no_host_of_packages"
    ),
    "container/compose.yaml": "deploy/test_container.py::test_compose_accepts_its_file",
    "container/create-databases.sh": (
        "deploy/test_container.py::test_a_shell_understands_the_script_that_makes_the_databases_of_the_settings"
    ),
    "container/make-secrets.sh": (
        "deploy/test_container.py::test_secrets_are_made_once_and_only_their_folder_keeps_others_out"
    ),
    "container/workspace.yaml": (
        "deploy/test_container.py::test_daemon_and_ui_find_the_code_server_by_the_name_and_port_that_it_has"
    ),
    "grafana/alerts.yaml": (
        "serving/test_monitoring.py::test_dashboard_and_alerts_ask_only_for_metrics_and_labels_that_are_there"
    ),
    "grafana/dashboard.json": "serving/test_monitoring.py::test_the_dashboard_has_a_place_for_each_panel",
    "kubernetes/api.yaml": _MANIFEST,
    "kubernetes/migrate.yaml": _MANIFEST,
    "kubernetes/monitor.yaml": _MANIFEST,
    "kubernetes/network.yaml": _MANIFEST,
    "kubernetes/settings.yaml": _MANIFEST,
    "kubernetes/values.yaml": (
        "deploy/test_kubernetes.py::test_dagster_accepts_the_instance_that_the_chart_makes_of_the_values"
    ),
    "systemd/market-data-worker.service": _UNIT,
    "systemd/market-data.service": _UNIT,
}


def test_every_file_that_a_person_copies_has_a_test() -> None:
    ours = {
        str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*") if file.is_file() and "secrets" not in file.parts
    }
    assert ours == TESTED_BY.keys()
    for file, test in TESTED_BY.items():
        module, _, name = test.partition("::")
        tree = ast.parse((TESTS / module).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, file


def test_secrets_that_the_script_makes_are_never_committed() -> None:
    asked = ["git", "check-ignore", "--quiet", "deploy/container/secrets/api_token"]
    done = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip(f"this is no checkout: {done.stderr.strip()}")
    assert done.returncode == 0
