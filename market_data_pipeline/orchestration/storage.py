"""Dagster's PostgreSQL storage as `dagster.yaml` names it: dagster-postgres, which keeps its connection.

dagster-postgres alone opens a connection for each statement: 68 in a run with nothing to do, each a new process of the
server. Here the parts of an instance's storage share one connection, which is kept until the instance is disposed of;
if it has been lost, a new one replaces it. Concurrent threads briefly get additional connections. All of them notice
within a minute and a half that the server's machine is gone. Slots of pools are claimed and freed in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import (
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
    retry_pg_connection_fn,
)
from sqlalchemy import event, inspect

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.orchestration.dagster_internals import use_engine
from market_data_pipeline.orchestration.pool_slots import change_slots_in_turn
from market_data_pipeline.settings.database_urls import postgres_url as libpq_form
from market_data_pipeline.settings.database_urls import psycopg2_url
from market_data_pipeline.store.connection import with_keepalives
from market_data_pipeline.store.connection_settings import KEEPALIVES

if TYPE_CHECKING:
    from collections.abc import Mapping


# Of runs, events and schedules, and the one that a run storage of an older Dagster lacks; where these are, all are.
_TABLES: Final = {"runs", "event_logs", "instigators", "instance_info"}


def _keep_alive(connection: Any, _: object) -> None:
    """Let the server, too, give up on this connection when this machine is gone: a slot's turn may be held on it."""
    with connection.cursor() as cursor:
        names, values = zip(*KEEPALIVES.items(), strict=True)
        cursor.execute(
            "select set_config(name, value, false) from unnest(%s::text[], %s::text[]) as given (name, value)"
            " where current_setting(name, true) is not null",
            (list(names), list(values)),
        )
    connection.commit()


class KeptConnectionStorage(DagsterPostgresStorage):
    """What `storage: postgres` of Dagster is, with the same configuration: `postgres_url` or `postgres_db`.

    Either may leave the driver open.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: Any = None,
        token_provider: Any = None,
    ) -> None:
        try:
            url = with_keepalives(psycopg2_url(libpq_form(postgres_url)))
        except ValueError as error:
            raise ConfigurationError(f"The URL of Dagster's storage {error}.") from None
        engine = create_pg_engine(
            url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=-1,
            pool_pre_ping=True,
        )
        event.listen(engine, "connect", _keep_alive)
        if should_autocreate_tables:
            found = retry_pg_connection_fn(lambda: inspect(engine).get_table_names())
            should_autocreate_tables = not set(found) >= _TABLES
        super().__init__(url, should_autocreate_tables, inst_data, token_provider)
        use_engine(engine, self.run_storage, self.event_log_storage, self.schedule_storage)
        change_slots_in_turn(self.event_log_storage, engine)

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> KeptConnectionStorage:
        """Return the storage that `dagster.yaml` describes."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )
