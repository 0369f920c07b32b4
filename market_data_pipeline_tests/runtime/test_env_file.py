"""The project's `.env` and the environment, in each way that the README names, as Dagster and the package read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.runtime.env_file import write_env
from market_data_pipeline.settings import load_settings, process_environment
from market_data_pipeline.settings.project import is_local

OWN = "postgresql://me:it's%40me@db/prices"
OTHER = "postgresql://me@other/prices"
DAGSTERS = "postgresql+psycopg2://me@db/dagster"


def _in_dagsters_process(folder: Path) -> dict[str, str]:
    """Return the environment of a process of Dagster's: it reads `.env` of the folder, which wins."""
    exported = {**os.environ, **process_environment(load_settings())}
    return {**exported, **_read(folder, exported)}


def _read(folder: Path, exported: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (exported or {}).items():
            patch.setenv(name, value)
        return {name: value for name, value in dotenv_values(folder / ".env").items() if value is not None}


def _names(url: str) -> str:
    return "its own" if is_local(url, load_settings().state_dir) else url.partition("://")[2]


def test_a_new_file_holds_what_the_dagster_command_needs_and_no_other_user_can_read_it(tmp_path: Path) -> None:
    result = write_env()

    assert result.path == tmp_path / ".env"
    assert result.path.stat().st_mode & 0o777 == 0o600
    assert _read(tmp_path) == {
        "DAGSTER_HOME": str(tmp_path),
        "DAGSTER_POSTGRES_URL": load_settings().dagster_postgres_url,
        "PGTZ": "UTC",
        "PGCLIENTENCODING": "UTF8",
    }


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    write_env()
    before = (tmp_path / ".env").read_bytes()

    assert not write_env().changed
    assert (tmp_path / ".env").read_bytes() == before


def test_what_the_user_wrote_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    mine = f"# notes\nPOLYGON_API_KEY=k3y   # ours\nexport DAGSTER_HOME={tmp_path}/home\n\nDAGSTER_POSTGRES_URL=''"
    (tmp_path / ".env").write_text(mine)
    (tmp_path / ".env").chmod(0o644)

    result = write_env()

    assert (tmp_path / ".env").read_text().startswith(mine)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert result.kept == ("DAGSTER_HOME",)
    assert _read(tmp_path)["DAGSTER_HOME"] == f"{tmp_path}/home"
    assert _read(tmp_path)["DAGSTER_POSTGRES_URL"].startswith("postgresql+psycopg2://market_data:")
    assert not write_env().changed


def test_what_the_user_adds_below_is_kept_too(tmp_path: Path) -> None:
    write_env()
    with (tmp_path / ".env").open("a") as stream:
        stream.write("MARKET_DATA_HISTORY_DAYS=30\n")

    assert not write_env().changed
    assert load_settings().history_days == 30


# What is in `.env`, what is in the environment, and then which servers hold the bars and Dagster's history.
WAYS = {
    "nothing": ({}, {}, "its own", "its own"),
    "one in the environment": ({}, {"DATABASE_URL": OWN}, OWN, OWN),
    "one in the file": ({"DATABASE_URL": OWN}, {}, OWN, OWN),
    "both in the environment": ({}, {"DATABASE_URL": OWN, "DAGSTER_POSTGRES_URL": DAGSTERS}, OWN, DAGSTERS),
    "both in the file": ({"DATABASE_URL": OWN, "DAGSTER_POSTGRES_URL": DAGSTERS}, {}, OWN, DAGSTERS),
    "one in each": ({"DAGSTER_POSTGRES_URL": DAGSTERS}, {"DATABASE_URL": OWN}, OWN, DAGSTERS),
    "the environment wins": ({"DATABASE_URL": OWN}, {"DATABASE_URL": OTHER}, OTHER, OTHER),
    "only Dagster's": ({}, {"DAGSTER_POSTGRES_URL": DAGSTERS}, "its own", DAGSTERS),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("initialised", [False, True], ids=["from nothing", "after a first start"])
def test_bars_and_dagsters_history_are_where_the_settings_say_in_our_processes_and_in_dagsters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, initialised: bool
) -> None:
    lines, variables, bars, history = WAYS[way]
    if initialised:
        write_env()  # with the embedded server, from which the project then changes to another
    with (tmp_path / ".env").open("a") as stream:
        stream.writelines(f'{name}="{value}"\n' for name, value in lines.items())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    write_env()

    assert _names(load_settings().database_url) == bars.partition("://")[2] or bars
    inside = _in_dagsters_process(tmp_path)
    assert _names(inside["DAGSTER_POSTGRES_URL"]) == (history.partition("://")[2] or history)
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    assert _names(load_settings().database_url) == (bars.partition("://")[2] or bars)
    assert _names(load_settings().dagster_postgres_url) == (history.partition("://")[2] or history)


@pytest.mark.parametrize("way", WAYS)
def test_a_commands_environment_is_that_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    lines, variables, _, _ = WAYS[way]
    given = "".join(f'{name}="{value}"\n' for name, value in lines.items())
    (tmp_path / ".env").write_text(given)
    with pytest.MonkeyPatch.context() as command:
        for name, value in {**variables, "POLYGON_API_KEY": "hunter2"}.items():
            command.setenv(name, value)
        write_env()
    written = (tmp_path / ".env").read_bytes()
    (tmp_path / ".env").write_text(given)
    write_env()

    assert (tmp_path / ".env").read_bytes() == written
    assert b"hunter2" not in written


def test_a_password_in_a_file_of_its_own_is_not_copied_into_the_projects(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://me:hunter2@db/prices\n")
    (tmp_path / ".env").write_text("DATABASE_URL_FILE=url\n")
    write_env()
    assert "hunter2" not in (tmp_path / ".env").read_text()
    settings = load_settings()
    assert settings.database_url == "postgresql://me:hunter2@db/prices"
    assert process_environment(settings)["DAGSTER_POSTGRES_URL"] == "postgresql+psycopg2://me:hunter2@db/prices"


def test_back_on_the_embedded_server_everything_is_there_again(tmp_path: Path) -> None:
    write_env()
    embedded = load_settings()
    with (tmp_path / ".env").open("a") as stream:
        stream.write(f'DATABASE_URL="{OWN}"\n')
    write_env()
    assert _read(tmp_path)["DAGSTER_POSTGRES_URL"] == load_settings().dagster_postgres_url
    lines = (tmp_path / ".env").read_text().splitlines(keepends=True)
    (tmp_path / ".env").write_text("".join(line for line in lines if not line.startswith("DATABASE_URL")))

    assert load_settings() == embedded  # also before anything writes the file again
    write_env()
    assert _in_dagsters_process(tmp_path)["DAGSTER_POSTGRES_URL"] == embedded.dagster_postgres_url


def test_a_shell_that_read_the_file_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_env()
    command = "set -a; . ./.env; exec env"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    for name, value in (line.split("=", 1) for line in done.stdout.splitlines() if line.startswith(("DAGSTER", "PG"))):
        monkeypatch.setenv(name, value)
    assert os.environ["DAGSTER_POSTGRES_URL"] == load_settings().dagster_postgres_url

    monkeypatch.setenv("DATABASE_URL", OWN)

    assert load_settings().dagster_postgres_url.partition("://")[2] == OWN.partition("://")[2]


def test_the_file_of_an_earlier_version_keeps_what_it_took_over_and_nothing_that_follows_from_it(
    tmp_path: Path,
) -> None:
    embedded = "postgresql+psycopg2://market_data:x@/sandbox_dagster?host=%2Fold%2F.market-data%2Frun&port=5432"
    begin = "# --- written by `market-data init`: put your own settings outside these two lines ---"
    end = "# --- end of what `market-data init` wrote ---"
    for block, bars, history in (
        (f"DAGSTER_HOME='/old'\nDAGSTER_POSTGRES_URL='{embedded}'\nPGTZ='UTC'\n", "its own", "its own"),
        (f"DAGSTER_HOME='/old'\nDATABASE_URL='{OTHER}'\nDAGSTER_POSTGRES_URL='{embedded}'\n", OTHER, OTHER),
        (f"DATABASE_URL='{OTHER}'\nDAGSTER_POSTGRES_URL='{DAGSTERS}'\n", OTHER, DAGSTERS),
    ):
        (tmp_path / ".env").write_text(f"MARKET_DATA_HISTORY_DAYS=30\n\n{begin}\n{block}{end}\nMARKET_DATA_UI_PORT=1\n")
        for rewritten in (False, True):
            if rewritten:
                write_env()
                assert not write_env().changed
            settings = load_settings()
            assert (settings.history_days, settings.ui_port, settings.dagster_home) == (30, 1, tmp_path)
            assert _names(settings.database_url) == (bars.partition("://")[2] or bars)
            assert _names(settings.dagster_postgres_url) == (history.partition("://")[2] or history)
        assert begin not in (tmp_path / ".env").read_text()
        assert _read(tmp_path)["DAGSTER_POSTGRES_URL"] == settings.dagster_postgres_url


def test_what_dagster_reads_itself_may_not_contradict_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"DAGSTER_POSTGRES_URL={DAGSTERS}\n")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://me:hunter2@elsewhere/dagster")

    with pytest.raises(
        ConfigurationError, match=r"read DAGSTER_POSTGRES_URL from \.env, .*: remove it there or in the environment"
    ) as why:
        write_env()
    assert "hunter2" not in str(why.value)

    monkeypatch.delenv("DAGSTER_POSTGRES_URL")
    (tmp_path / ".env").write_text("DAGSTER_POSTGRES_URL=postgresql://me@db/dagster\n")
    with pytest.raises(ConfigurationError, match=r"let it begin with postgresql\+psycopg2://"):
        write_env()

    (tmp_path / ".env").write_text("DAGSTER_HOME=/nowhere-else\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"read DAGSTER_HOME from \.env"):
        write_env()
    (tmp_path / ".env").write_text(f"DAGSTER_HOME={tmp_path}/\nPGTZ=Etc/UTC\n")
    write_env()


def test_after_the_project_moved_the_paths_are_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.setenv("MARKET_DATA_PROJECT_ROOT", str(tmp_path / "old"))
    write_env()
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.setenv("MARKET_DATA_PROJECT_ROOT", str(tmp_path / "new"))

    assert load_settings().dagster_home == tmp_path / "new"
    assert write_env().changed
    assert _read(tmp_path / "new")["DAGSTER_HOME"] == str(tmp_path / "new")
    settings = load_settings()
    assert is_local(_read(tmp_path / "new")["DAGSTER_POSTGRES_URL"], settings.state_dir)
    assert settings.embedded_database


def test_a_bad_value_stops_it_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_PLAN", "gold")

    with pytest.raises(ConfigurationError, match="POLYGON_PLAN is 'gold'"):
        write_env()

    assert not (tmp_path / ".env").exists()


def test_dagsters_own_command_uses_the_database_of_its_environment(tmp_path: Path) -> None:
    """The command of the checkout, told only DATABASE_URL in a folder whose `.env` means the embedded server."""
    write_env()
    code = (
        "import os, sys; sys.argv[1:] = ['instance', 'info'];"
        "from market_data_pipeline.cli import dagster\n"
        "try: dagster._prepare()\n"
        "finally: print(os.environ['DAGSTER_POSTGRES_URL'])"
    )
    environment = {**os.environ, "DATABASE_URL": OWN}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr  # nobody answers there, which it says in a sentence
    assert done.stdout.strip().partition("://")[2] == OWN.partition("://")[2]
    assert not (tmp_path / ".market-data" / "postgres").exists()
