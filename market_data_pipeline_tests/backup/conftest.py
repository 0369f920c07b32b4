"""Two databases with something in them, a folder for backups, and empty databases to restore into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from dagster import DagsterInstance

from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.database_urls import psycopg2_url
from market_data_pipeline.store.calendar import sync_sessions
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.conftest import World

NOW = datetime(2025, 3, 14, 21, 0, tzinfo=UTC)
STORAGE = "storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\ntelemetry: {enabled: false}\n"


@pytest.fixture(scope="module")
def new_database(postgres_url: str) -> Iterator[Callable[..., str]]:
    """Return a function that makes a database and gives its URL."""
    with ExitStack() as stack:

        def make(template: str = "template1") -> str:
            name = copy_database(postgres_url, template)
            stack.callback(drop_database, postgres_url, name)
            return with_database(postgres_url, name)

        yield make


@pytest.fixture(scope="module")
def vendor_clock() -> list[datetime]:
    return [NOW]


@pytest.fixture(scope="module")
def world(new_database: Callable[..., str], migrated_template: str, vendor_clock: list[datetime]) -> Iterator[World]:
    """A database with five days of a symbol, and the vendor that they came from."""
    with running_server(open_source(None), lambda: vendor_clock[0], plan="advanced") as base_url:
        made = World(base_url, new_database(migrated_template), NOW)
        assert {one.status for one in made.refresh("AAPL", history_days=5).values()} == {"ok"}
        sync_sessions(engine(made.database_url))
        yield made


@pytest.fixture(scope="module")
def dagster_url(new_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with Dagster's storage in it, which knows a partition."""
    url, home = psycopg2_url(new_database()), tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text(STORAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_POSTGRES_URL", url)
        with DagsterInstance.from_config(str(home)) as instance:
            instance.get_run_records(limit=1)
            instance.add_dynamic_partitions("critical_symbols", ["AAPL"])
    return url


@pytest.fixture
def settings(world: World, dagster_url: str, tmp_path: Path) -> Settings:
    """The project whose databases are backed up."""
    return Settings(database_url=world.database_url, dagster_postgres_url=dagster_url, project_root=tmp_path)


@pytest.fixture
def empty(new_database: Callable[..., str], tmp_path: Path) -> Settings:
    """A project on two empty databases."""
    return Settings(
        database_url=new_database(), dagster_postgres_url=psycopg2_url(new_database()), project_root=tmp_path
    )


@dataclass(frozen=True)
class Store:
    """A server that speaks S3, with a bucket.

    Attributes:
        url: of the bucket.
        endpoint: of the server.
        options: what MARKET_DATA_BACKUP_OPTIONS holds for it.
    """

    url: str
    endpoint: str
    options: dict[str, str]

    def client(self) -> Any:
        """Return boto3's client: what tests see of the bucket does not go through the code under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.options["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.options["AWS_SECRET_ACCESS_KEY"],
            region_name=self.options["AWS_REGION"],
        )

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return [each["Key"] for each in self.client().list_objects_v2(Bucket="backups").get("Contents", [])]


@pytest.fixture
def store() -> Iterator[Store]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "AWS_ACCESS_KEY_ID": "the-key-of-the-bucket",
        "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-bucket",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    made = Store("s3://backups/market-data", options["AWS_ENDPOINT_URL"], options)
    try:
        requests.post(f"{made.endpoint}/moto-api/reset", timeout=60).raise_for_status()
        made.client().create_bucket(
            Bucket="backups", CreateBucketConfiguration={"LocationConstraint": options["AWS_REGION"]}
        )
        yield made
    finally:
        server.stop()


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()
