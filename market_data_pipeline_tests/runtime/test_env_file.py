"""The `.env` that `market-data init` writes, read back as Dagster and the package read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from dotenv import dotenv_values

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.runtime.env_file import write_env
from market_data_pipeline.settings import load_settings
from market_data_pipeline.settings.project import is_local


def _read(folder: Path) -> dict[str, str | None]:
    return dict(dotenv_values(folder / ".env"))


def test_a_new_file_holds_what_the_dagster_command_needs_and_no_other_user_can_read_it(tmp_path: Path) -> None:
    result = write_env()

    assert result.path == tmp_path / ".env"
    assert result.path.stat().st_mode & 0o777 == 0o600
    assert _read(tmp_path) == {
        "DAGSTER_HOME": str(tmp_path),
        "DAGSTER_POSTGRES_URL": load_settings().dagster_postgres_url,
        "PGTZ": "UTC",
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
    assert str(_read(tmp_path)["DAGSTER_POSTGRES_URL"]).startswith("postgresql+psycopg2://market_data:")
    assert not write_env().changed


def test_what_the_user_adds_below_is_kept_too(tmp_path: Path) -> None:
    write_env()
    with (tmp_path / ".env").open("a") as stream:
        stream.write("MARKET_DATA_HISTORY_DAYS=30\n")

    assert not write_env().changed
    assert load_settings().history_days == 30


def test_a_database_of_the_environment_is_taken_over_so_that_later_commands_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_env()
    monkeypatch.setenv("DATABASE_URL", "postgres://me:it's%40me@db/prices")
    write_env()
    monkeypatch.delenv("DATABASE_URL")
    write_env()

    assert _read(tmp_path)["DATABASE_URL"] == "postgresql://me:it's%40me@db/prices"
    assert _read(tmp_path)["DAGSTER_POSTGRES_URL"] == "postgresql+psycopg2://me:it's%40me@db/prices"
    assert load_settings().database_url == "postgresql://me:it's%40me@db/prices"


def test_another_database_of_the_environment_replaces_the_one_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@old/prices")
    write_env()
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@new/prices")
    write_env()

    assert _read(tmp_path)["DATABASE_URL"] == "postgresql://me@new/prices"
    assert _read(tmp_path)["DAGSTER_POSTGRES_URL"] == "postgresql+psycopg2://me@new/prices"


def test_a_database_that_the_user_wrote_into_the_file_is_the_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://me@mine/prices\n")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@other/prices")

    result = write_env()

    assert result.kept == ("DATABASE_URL",)
    assert _read(tmp_path)["DATABASE_URL"] == "postgresql://me@mine/prices"
    assert _read(tmp_path)["DAGSTER_POSTGRES_URL"] == "postgresql+psycopg2://me@mine/prices"


def test_a_storage_of_dagsters_own_is_taken_over_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://me@db/dagster")
    write_env()
    monkeypatch.delenv("DAGSTER_POSTGRES_URL")
    write_env()

    assert _read(tmp_path)["DAGSTER_POSTGRES_URL"] == "postgresql+psycopg2://me@db/dagster"


def test_a_key_of_the_environment_is_not_written_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", "hunter2")
    write_env()

    assert "hunter2" not in (tmp_path / ".env").read_text()


def test_after_the_project_moved_the_paths_are_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.setenv("MARKET_DATA_PROJECT_ROOT", str(tmp_path / "old"))
    write_env()
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.setenv("MARKET_DATA_PROJECT_ROOT", str(tmp_path / "new"))

    assert write_env().changed
    assert _read(tmp_path / "new")["DAGSTER_HOME"] == str(tmp_path / "new")
    settings = load_settings()
    assert is_local(str(_read(tmp_path / "new")["DAGSTER_POSTGRES_URL"]), settings.state_dir)
    assert settings.embedded_database


def test_a_bad_value_stops_it_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_PLAN", "gold")

    with pytest.raises(ConfigurationError, match="POLYGON_PLAN is 'gold'"):
        write_env()

    assert not (tmp_path / ".env").exists()
