"""The manifests and the chart's values: accepted by Kubernetes' and Dagster's own models, and consistent.

The chart itself cannot be had from a package index, so its templates are not rendered: what they make of the values is
written here, and given to Dagster.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster_postgres.utils import pg_url_from_config

from market_data_pipeline.settings import known_variables, load_settings
from market_data_pipeline.settings.project import LOCATION
from market_data_pipeline_tests.conftest import REPOSITORY
from market_data_pipeline_tests.deploy.image import steps

FOLDER: Final = REPOSITORY / "deploy" / "kubernetes"
# The Secrets that docs/deployment.md lets people make, with values as they have.
SECRETS: Final = {
    "market-data": {
        "DATABASE_URL": "postgresql://pipeline:a-password@postgresql.example/market_data",
        "DAGSTER_POSTGRES_URL": "postgresql://pipeline:a-password@postgresql.example/dagster",
        "MARKET_DATA_API_TOKEN": "a-long-random-text",
    },
    "market-data-vendor": {"POLYGON_API_KEY": "a-key"},
    "market-data-owner": {"MARKET_DATA_OWNER_URL": "postgresql://owner:a-password@postgresql.example/market_data"},
    "market-data-dagster": {"postgresql-password": "a-password"},
}

Document = dict[str, Any]


def documents() -> list[Document]:
    return [
        document
        for file in sorted(FOLDER.glob("*.yaml"))
        if file.name != "values.yaml"
        for document in yaml.safe_load_all(file.read_text())
    ]


def values() -> Document:
    found: Document = yaml.safe_load((FOLDER / "values.yaml").read_text())
    return found


def of_kind(kind: str) -> list[Document]:
    return [document for document in documents() if document["kind"] == kind]


def config_map(name: str) -> dict[str, str]:
    (found,) = (each["data"] for each in of_kind("ConfigMap") if each["metadata"]["name"] == name)
    return found


def pods() -> dict[str, Document]:
    """The pods of our own manifests."""
    return {each["metadata"]["name"]: each["spec"]["template"] for each in [*of_kind("Deployment"), *of_kind("Job")]}


def parts() -> list[Document]:
    """The pods of the chart, as the values describe them."""
    chart = values()
    return [*chart["dagster-user-deployments"]["deployments"], chart["dagsterWebserver"], chart["dagsterDaemon"]]


@pytest.fixture
def kubernetes() -> None:
    """Dagster's libraries for Kubernetes, which take two seconds to import."""
    pytest.importorskip("dagster_k8s", reason="this environment is older than requirements-dev.lock")


def as_model(document: Document) -> Any:
    from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
    from kubernetes import client

    model = getattr(client, f"V1{document['kind']}")
    return k8s_model_from_dict(model, k8s_snake_case_dict(model, document))


def test_kubernetes_models_accept_every_manifest_and_refuse_a_misspelt_one(kubernetes: None) -> None:
    for document in documents():
        if document["kind"] != "ServiceMonitor":  # of Prometheus' operator
            as_model(document)
    (api,) = of_kind("Deployment")
    api["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(Exception, match="readinesProbe"):
        as_model(api)


def test_no_pod_runs_as_root_or_writes_to_its_image() -> None:
    (user,) = (step.text for step in steps(REPOSITORY / "deploy/container/Containerfile") if step.instruction == "USER")
    launcher = values()["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    contexts = [
        (pod["spec"]["securityContext"], container["securityContext"])
        for pod in pods().values()
        for container in pod["spec"]["containers"]
    ]
    contexts += [(part["podSecurityContext"], part["securityContext"]) for part in parts()]
    contexts += [(launcher["podSpecConfig"]["securityContext"], launcher["containerConfig"]["securityContext"])]
    assert len(contexts) == 6
    for pod, container in contexts:
        assert pod["runAsNonRoot"] is True
        assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == user
        assert container["readOnlyRootFilesystem"] is True
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}


def test_what_selects_pods_selects_some_that_exist() -> None:
    chart = {"app.kubernetes.io/name": "dagster"}  # the labels of the chart's pods and of dagster-k8s' jobs
    labels = [pod["metadata"]["labels"] for pod in pods().values()]
    labels += [
        chart | {"component": "dagster-webserver"},
        chart | {"component": "dagster-daemon"},
        chart | {"app.kubernetes.io/component": "run_worker"},
        {"component": "user-deployments", "deployment": values()["dagster-user-deployments"]["deployments"][0]["name"]},
    ]
    selectors = [each["spec"]["podSelector"]["matchLabels"] for each in of_kind("NetworkPolicy")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind("Deployment")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind("PodDisruptionBudget")]
    selectors += [each["spec"]["selector"] for each in of_kind("Service")]
    assert len(selectors) == 8
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector
    (monitor,), (service,) = of_kind("ServiceMonitor"), of_kind("Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    alerts = (REPOSITORY / "deploy/grafana/alerts.yaml").read_text()
    assert f'up{{job="{service["metadata"]["labels"][monitor["spec"]["jobLabel"]]}"}}' in alerts
    assert [each["port"] for each in monitor["spec"]["endpoints"]] == [
        port["name"] for port in service["spec"]["ports"]
    ]


def test_the_network_lets_in_what_the_pods_listen_on() -> None:
    chart = values()
    ports = {
        "market-data-api": of_kind("Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["ports"][0][
            "containerPort"
        ],
        "market-data-webserver": chart["dagsterWebserver"]["service"]["port"],
        "market-data-code": chart["dagster-user-deployments"]["deployments"][0]["port"],
    }
    admitted = {
        each["metadata"]["name"]: rule["ports"][0]["port"]
        for each in of_kind("NetworkPolicy")
        for rule in each["spec"].get("ingress", ())
    }
    assert admitted == ports


def test_every_pod_finds_settings_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = [
        (container.get("env", []), [each.values() for each in container["envFrom"]])
        for pod in pods().values()
        for container in pod["spec"]["containers"]
    ]
    given = [
        {each["name"]: each["value"] for each in env}
        | {key: value for (source,) in sources for key, value in named(source["name"]).items()}
        for env, sources in environments
    ]
    for part in parts():
        sources = [each["name"] for each in [*part["envConfigMaps"], *part["envSecrets"]]]
        given.append(part.get("env", {}) | {key: value for name in sources for key, value in named(name).items()})
    assert len(given) == 5
    for variables in given:
        assert variables.keys() <= set(known_variables())
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            settings = load_settings(project_root=tmp_path)
            assert settings.kind_of_bars == "vendor"
            assert not settings.embedded_database
    vendor = [variables for variables in given if "POLYGON_API_KEY" in variables]
    owner = [variables for variables in given if "MARKET_DATA_OWNER_URL" in variables]
    assert (len(vendor), len(owner)) == (1, 1)  # the code server with its runs, and the migrations


def named(name: str) -> dict[str, str]:
    """The content of a Secret or a ConfigMap."""
    return SECRETS[name] if name in SECRETS else config_map(name)


def test_the_documents_name_the_secrets_that_must_exist() -> None:
    text = (REPOSITORY / "docs" / "deployment.md").read_text()
    for name, content in SECRETS.items():
        assert re.search(rf"create secret generic {name} ", text), name
        assert all(key in text for key in content)


def test_the_workspace_names_the_location_and_the_service_of_the_code_server() -> None:
    (entry,) = yaml.safe_load(config_map("market-data-workspace")["workspace.yaml"])["load_from"]
    (deployment,) = values()["dagster-user-deployments"]["deployments"]
    assert entry["grpc_server"] == {"host": deployment["name"], "port": deployment["port"], "location_name": LOCATION}
    assert f"--location-name={LOCATION}" in deployment["dagsterApiGrpcArgs"]
    assert values()["dagsterWebserver"]["workspace"]["externalConfigmap"] == "market-data-workspace"


def test_dagster_accepts_the_instance_that_the_chart_makes_of_the_values() -> None:
    chart = values()
    daemon = chart["dagsterDaemon"]
    concurrency = {
        "runs": {"max_concurrent_runs": chart["concurrency"]["runs"]["maxConcurrentRuns"]},
        "pools": {snake(name): value for name, value in chart["concurrency"]["pools"].items()},
    }
    custom = daemon["runCoordinator"]["config"]["customRunCoordinator"]
    workers = {part: {snake(name): value for name, value in daemon[part].items()} for part in ("schedules", "sensors")}
    retention = {
        snake(kind): {"purge_after_days": each["purgeAfterDays"]}
        for kind, each in chart["retention"].items()
        if kind != "enabled"
    }
    instance = {
        **chart["additionalInstanceConfig"],
        **workers,
        "concurrency": concurrency,
        "retention": retention,
        "run_coordinator": custom,
        "telemetry": chart["telemetry"],
    }
    checked = process_config(dagster_instance_config_schema(), instance)
    assert checked.success, checked.errors
    # What one machine has, with the reasons beside it, except for what a cluster needs otherwise.
    ours = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    monitoring = instance.pop("run_monitoring")
    assert {name: ours[name] for name in instance} == instance
    differing = {name for name, value in monitoring.items() if ours["run_monitoring"].get(name) != value}
    assert differing == {"start_timeout_seconds", "cancel_timeout_seconds", "max_resume_run_attempts"}


def test_runs_are_jobs_that_kubernetes_accepts(kubernetes: None) -> None:
    from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
    from dagster_k8s.launcher import K8sRunLauncher

    launcher = values()["runLauncher"]["config"]["k8sRunLauncher"]
    job_config = {snake(key): value for key, value in launcher["runK8sConfig"].items()}
    config = {
        "instance_config_map": "dagster-instance",
        "dagster_home": values()["global"]["dagsterHome"],
        "postgres_password_secret": values()["global"]["postgresqlSecretName"],
        "service_account_name": "dagster",
        "load_incluster_config": launcher["loadInclusterConfig"],
        "image_pull_policy": launcher["imagePullPolicy"],
        "fail_pod_on_run_failure": launcher["failPodOnRunFailure"],
        "run_k8s_config": job_config,
    }
    checked = process_config(K8sRunLauncher.config_type(), config)
    assert checked.success, checked.errors
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig("registry.example/market-data:1", "/srv/market-data"),
        args=["dagster", "api", "execute_run"],
        job_name="a-run",
        component="run_worker",
        user_defined_k8s_config=UserDefinedDagsterK8sConfig.from_dict(job_config),
    )
    (container,) = job.spec.template.spec.containers
    assert job.spec.ttl_seconds_after_finished == 3600
    assert job.spec.template.spec.security_context.run_as_non_root is True
    assert container.security_context.read_only_root_filesystem is True
    assert container.resources.limits == {"memory": "1Gi"}
    assert container.command is None  # the image's entry point stays
    assert job.spec.template.metadata.labels["app.kubernetes.io/component"] == "run_worker"


def test_the_output_of_runs_and_the_storage_are_configured_as_their_classes_want(kubernetes: None) -> None:
    from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

    chart = values()
    logs = {snake(name): value for name, value in chart["computeLogManager"]["config"]["s3ComputeLogManager"].items()}
    assert process_config(S3ComputeLogManager.config_type(), logs).success
    given = chart["postgresql"]
    url = pg_url_from_config(
        {
            "postgres_db": {
                "username": given["postgresqlUsername"],
                "password": "a-password",
                "hostname": given["postgresqlHost"],
                "db_name": given["postgresqlDatabase"],
                "port": given["service"]["port"],
                "scheme": given["postgresqlScheme"],
                "params": given["postgresqlParams"],
            }
        }
    )
    assert url.startswith("postgresql+psycopg2://pipeline:a-password@postgresql.example:5432/dagster?")
    assert dg.__version__ in (FOLDER / "values.yaml").read_text()  # the chart of the locked Dagster


def snake(name: str) -> str:
    """Dagster's spelling of a name of the chart."""
    return re.sub(r"(?<=[a-z])[A-Z]", lambda found: f"_{found[0].lower()}", name)
