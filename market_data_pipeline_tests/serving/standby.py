"""A PostgreSQL with a streaming standby: two servers of this machine, which reach each other by sockets."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from market_data_pipeline.runtime import postgres_cluster
from market_data_pipeline_tests.conftest import in_memory
from market_data_pipeline_tests.waiting import until

PRIMARY, STANDBY = 5432, 5433


@dataclass(frozen=True)
class Pair:
    """Both servers, each known by its port.

    Attributes:
        folder: of their sockets, logs and data.
        identity: how their programs are started.
    """

    folder: Path
    identity: dict[str, Any]

    def url(self, *ports: int, more: str = "") -> str:
        """Return the URL of one of them, or of whichever takes the connection."""
        hosts = ",".join([str(self.folder)] * len(ports))
        return f"postgresql://postgres@/postgres?host={hosts}&port={','.join(map(str, ports))}{more}"

    def run(self, program: str, *arguments: object) -> None:
        command = [str(postgres_cluster.binaries() / program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self.identity)

    def control(self, port: int, action: str, *more: str) -> None:
        """Start, stop or promote one of them and wait until that is done."""
        data, log = self.folder / str(port), self.folder / f"{port}.log"
        self.run("pg_ctl", "-D", data, "-w", "-s", "-l", log, *more, action)

    def start(self, port: int, *settings: str) -> None:
        given = [f"port={port}", f"unix_socket_directories={self.folder}", "listen_addresses=", "fsync=off", *settings]
        self.control(port, "start", "-o", " ".join(f"-c {setting}" for setting in given))


@contextmanager
def running_pair() -> Iterator[Pair]:
    """Start both; a commit returns when the standby has it, too, so none of those can be lost with the primary."""
    folder = Path(tempfile.mkdtemp(prefix="market-data-pair-", dir=in_memory()))
    identity: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        user = postgres_cluster.owner(folder)
        os.chown(folder, *user)
        identity |= {"user": user.uid, "group": user.gid}
    pair = Pair(folder, identity)
    try:
        pair.run(
            "initdb", "-D", folder / str(PRIMARY), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
        )
        pair.start(PRIMARY)
        pair.run(
            "pg_basebackup", "-D", folder / str(STANDBY), "-R", "-X", "stream", "-c", "fast", "-N",
            "-d", pair.url(PRIMARY),
        )  # fmt: skip
        pair.start(STANDBY)
        with psycopg.connect(pair.url(PRIMARY), autocommit=True) as connection:
            connection.execute("alter system set synchronous_standby_names = '*'")
            connection.execute("select pg_reload_conf()")
            synchronous = "select 1 from pg_stat_replication where sync_state = 'sync'"
            until(lambda: connection.execute(synchronous).fetchone())
        yield pair
    finally:
        for port in (PRIMARY, STANDBY):
            if (folder / str(port) / "postmaster.pid").exists():
                pair.control(port, "stop", "-m", "immediate")
        shutil.rmtree(folder)
