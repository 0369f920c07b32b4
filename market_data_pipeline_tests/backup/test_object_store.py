"""Backups in a bucket, on a real server of the S3 protocol: streamed there and back, whole or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import requests
import sqlalchemy as sa

from market_data_pipeline.backup import object_store
from market_data_pipeline.backup.make import make_backup
from market_data_pipeline.backup.object_store import Bucket, find_stored
from market_data_pipeline.backup.restore import restore_backup
from market_data_pipeline.backup.scheduled import scheduled_backup
from market_data_pipeline.backup.verify import verify
from market_data_pipeline.domain.errors import BackupError, BackupUnreachableError, ConfigurationError
from market_data_pipeline.orchestration.jobs.backup import backup_schedule
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.reports.backups import last_backup
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.backup.conftest import Store, query
from market_data_pipeline_tests.waiting import until

COMMAND = "from market_data_pipeline.cli.main import main; main()"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few objects for a small database, so that their order and number matter."""
    monkeypatch.setattr(object_store, "_PART", 100_000)


@pytest.fixture
def stored(settings: Settings, store: Store) -> Settings:
    """The project, whose backups go to the bucket."""
    return settings.model_copy(update={"backup_dir": store.url, "backup_options": secret(store.options)})


@pytest.fixture
def target(empty: Settings, store: Store) -> Settings:
    """A project on empty databases that knows the bucket."""
    return empty.model_copy(update={"backup_options": secret(store.options)})


def secret(options: dict[str, str]) -> object:
    return Settings.model_validate({"MARKET_DATA_BACKUP_OPTIONS": options}).backup_options


def test_what_was_streamed_to_a_bucket_restores_to_equal_databases_with_no_copy_on_the_disk(
    stored: Settings, target: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))  # what needed a folder for a copy would fail

    made = scheduled_backup(stored)

    names = [file.name for file in made.manifest.market_data.files]
    assert len(names) > 2
    assert names == [f"{number:06}" for number in range(1, len(names) + 1)]
    name = str(made.backup).removeprefix(f"{store.url}/")
    assert f"market-data/{name}/manifest.json" in store.names()
    last = "select location, bytes, next_due_at - finished_at from market_data.backups order by id desc limit 1"
    assert query(stored.database_url, last) == [(f"{store.url}/{name}", made.manifest.size, timedelta(hours=26))]
    monkeypatch.delenv("TMPDIR")
    assert verify(target, store.url, files_only=True).problems == []

    done = restore_backup(target, store.url)

    assert (str(done.backup), done.found) == (str(made.backup), ())
    assert verify(target, f"{store.url}/{name}").problems == []
    bars = "select count(*), sum(close) from market_data.bars"
    assert query(target.database_url, bars) == query(stored.database_url, bars)
    assert restore_backup(target, store.url).found == ("dagster", "market_data")


def test_the_bars_of_a_backup_without_features_lie_beside_the_dump_in_a_bucket(
    stored: Settings, target: Settings, store: Store
) -> None:
    made = make_backup(stored, store.url, keep=None, features=False)

    beside = [file.name for file in made.manifest.market_data.files if file.name.startswith("records.copy.gz.")]
    assert beside[0] == "records.copy.gz.000001"
    restore_backup(target, store.url)

    bars = "select symbol, timeframe, ts, close, recorded_at from market_data.bars order by 1, 2, 3"
    assert query(target.database_url, bars) == query(stored.database_url, bars)
    assert query(target.database_url, "select count(*) from market_data.features") == [(0,)]


def test_age_and_size_of_a_backup_in_a_bucket_are_reported(stored: Settings, store: Store) -> None:
    made = scheduled_backup(stored)

    source = engine(stored.database_url)
    with source.connect() as connection:
        last = last_backup(connection)
        age = connection.execute(sa.text("select extract(epoch from clock_timestamp())")).scalar_one()
    source.dispose()

    assert last is not None
    assert (last.location, last.bytes, last.late) == (str(made.backup), made.manifest.size, False)
    assert last.age_seconds == pytest.approx(float(age) - made.manifest.taken_at.timestamp(), abs=60)


def test_older_backups_go_when_a_newer_one_is_whole(stored: Settings, store: Store) -> None:
    first, second = (make_backup(stored, store.url, keep=None) for _ in range(2))

    third = make_backup(stored, store.url, keep=2)

    assert third.removed == (str(first.backup).rpartition("/")[2],)
    assert Bucket.at(store.url, store.options).backups() == [
        str(one.backup).rpartition("/")[2] for one in (second, third)
    ]
    assert not any(third.removed[0] in key for key in store.names())


def test_a_failed_backup_leaves_nothing_in_the_bucket(stored: Settings, store: Store) -> None:
    before = make_backup(stored, store.url, keep=None)
    held = store.names()
    with closing(psycopg.connect(stored.owner_url)) as holder:
        holder.execute("lock table market_data.backups in access exclusive mode")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("market_data_pipeline.backup.make._LOCK_WAIT", "10ms")
            with pytest.raises(BackupError, match=r"pg_dump of .* failed"):
                make_backup(stored, store.url, keep=1)

    assert store.names() == held
    assert str(find_stored(store.url, stored)) == str(before.backup)


def test_what_a_killed_backup_left_is_no_backup_and_is_removed_once_it_is_old(
    stored: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket.at(store.url, store.options)
    before = make_backup(stored, store.url, keep=None)
    left = "2025-01-01T000000Z"
    bucket.put(f"{left}/dagster/000001", b"the beginning")
    assert str(find_stored(store.url, stored)) == str(before.backup)

    make_backup(stored, store.url, keep=None)
    assert any(left in key for key in store.names()), "another process may be writing it now"
    monkeypatch.setattr(object_store, "_ABANDONED", timedelta(0))
    until(lambda: time.time() > max(at.timestamp() for _, at in bucket.objects(f"{left}/").values()))
    make_backup(stored, store.url, keep=None)

    assert not any(left in key for key in store.names())


def test_a_killed_command_ends_its_dump_and_its_parts_count_for_nothing(stored: Settings, store: Store) -> None:
    environment = {
        **os.environ,
        "DATABASE_URL": stored.database_url,
        "DAGSTER_POSTGRES_URL": stored.dagster_postgres_url,
        "MARKET_DATA_BACKUP_OPTIONS": json.dumps(store.options),
    }
    with closing(psycopg.connect(stored.owner_url)) as holder:
        holder.execute("lock table market_data.backups in access exclusive mode")
        killed = subprocess.Popen([sys.executable, "-c", COMMAND, "backup", store.url], env=environment)
        until(lambda: bool(dumps(stored)))
        line = b"".join(command_lines())
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    until(lambda: not dumps(stored))

    assert store.url.encode() in line
    assert not any(value.encode() in line for value in (store.options["AWS_SECRET_ACCESS_KEY"],))
    with pytest.raises(BackupError, match="has no backup in it"):
        find_stored(store.url, stored)


def test_a_damaged_or_missing_part_is_named_and_nothing_is_restored(
    stored: Settings, target: Settings, store: Store
) -> None:
    made = make_backup(stored, store.url, keep=None)
    name = str(made.backup).rpartition("/")[2]
    middle = f"market-data/{name}/market_data/000002"
    client = store.client()
    content = bytearray(client.get_object(Bucket="backups", Key=middle)["Body"].read())
    content[len(content) // 2] ^= 1
    client.put_object(Bucket="backups", Key=middle, Body=bytes(content))
    client.delete_object(Bucket="backups", Key=f"market-data/{name}/dagster/000001")

    problems = verify(target, store.url, files_only=True).problems

    assert problems == [
        f"{made.backup}/dagster/000001 is missing.",
        f"{made.backup}/market_data/000002 is not as it was written: its checksum differs.",
    ]
    with pytest.raises(BackupError, match=r"is missing\. Nothing was restored"):
        restore_backup(target, store.url)
    assert query(target.database_url, "select to_regnamespace('market_data')") == [(None,)]


def test_a_part_that_changes_while_it_is_restored_ends_the_restore_with_nothing_in_the_database(
    stored: Settings, target: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_backup(stored, store.url, keep=None)
    last = made.manifest.market_data.files[-1].name
    monkeypatch.setattr(object_store.StoredBackup, "damaged", lambda *_: [])
    store.client().put_object(Bucket="backups", Key=f"market-data/{made.backup.name}/market_data/{last}", Body=b"other")

    with pytest.raises(BackupError, match=f"market_data/{last} is not as it was written"):
        restore_backup(target, store.url)

    tables = "select count(*) from pg_class where relnamespace = to_regnamespace('market_data')"
    until(lambda: query(target.database_url, tables) == [(0,)])


@pytest.mark.parametrize(
    ("change", "url", "sentence"),
    [
        ({}, "s3://other/market-data", "There is no bucket for s3://other/market-data: create it"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"},
            "s3://backups/market-data",
            "There are no credentials for s3://backups/market-data: put them into MARKET_DATA_BACKUP_OPTIONS",
        ),
        ({"AWS_REGIONN": "x"}, "s3://backups", "check it, and the names of options in MARKET_DATA_BACKUP_OPTIONS"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_said_before_anything_is_dumped(
    settings: Settings,
    store: Store,
    change: dict[str, str | None],
    url: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    options = {name: value for name, value in {**store.options, **change}.items() if value is not None}
    with pytest.raises(ConfigurationError) as error:
        make_backup(settings.model_copy(update={"backup_options": secret(options)}), url, keep=None)

    assert sentence in str(error.value)
    assert store.options["AWS_SECRET_ACCESS_KEY"] not in str(error.value)
    assert store.names() == []


def test_a_refused_key_is_told_without_the_key_and_an_unreachable_store_may_be_tried_again(
    stored: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.post(f"{store.endpoint}/moto-api/reset-auth", data="0", timeout=60).raise_for_status()
    try:
        with pytest.raises(ConfigurationError, match="Access to s3://backups/market-data is denied") as error:
            make_backup(stored, store.url, keep=None)
    finally:
        requests.post(f"{store.endpoint}/moto-api/reset-auth", data="inf", timeout=60).raise_for_status()
    assert "the-key" not in str(error.value)

    nowhere = stored.model_copy(
        update={"backup_options": secret({**store.options, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})}
    )
    monkeypatch.setattr(object_store, "_RETRIES", 0)
    with pytest.raises(BackupUnreachableError, match="cannot be reached") as failure:
        make_backup(nowhere, store.url, keep=None)
    assert failure.value.kind == "transient"


def test_the_nightly_job_goes_to_the_bucket_of_the_settings(
    stored: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", stored.database_url)
    monkeypatch.setenv("MARKET_DATA_BACKUP_DIR", store.url)
    with dg.build_schedule_context(resources={"pipeline": PipelineResource()}) as context:
        assert len(backup_schedule.evaluate_tick(context).run_requests or ()) == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://key:secret@bucket/x", "secrets belong in MARKET_DATA_BACKUP_OPTIONS"),
        ("az://container/x?sig=secret", "secrets belong in MARKET_DATA_BACKUP_OPTIONS"),
        ("ftp://host/x", "neither a folder nor the URL of an object store"),
        ("s3://", "neither a folder nor the URL of an object store"),
    ],
)
def test_a_place_that_cannot_be_one_is_refused_without_being_repeated(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as error:
        load_settings(MARKET_DATA_BACKUP_DIR=url)
    assert "secret@" not in str(error.value)
    assert "sig=" not in str(error.value)


def dumps(settings: Settings) -> list[tuple[object, ...]]:
    return query(
        settings.database_url,
        "select pid from pg_stat_activity where datname = current_database() and application_name = 'pg_dump'",
    )


def command_lines() -> list[bytes]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(process.read_bytes())
    return found
