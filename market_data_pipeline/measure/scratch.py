"""A scratch project beside the user's own, for measurements that must not touch it.

It has a folder in `.market-data/scratch`, its own databases and no `.env`: its settings are in the environment of this
process, from which Dagster's processes inherit them. Nothing of it remains at the end, even after a failure; what a
killed command left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
import yaml

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError, UsageError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.runtime.processes import commands, end_trees
from market_data_pipeline.runtime.sandbox import stop_sandbox_in
from market_data_pipeline.settings import Settings, load_settings, project
from market_data_pipeline.settings.sandbox import HOST
from market_data_pipeline.store.connection import describe, drop_database, libpq_url, open_connection

_PREFIX: Final = "market_data_scratch_"  # of databases; one without connections may be dropped
_TRIES: Final = 5  # each is lost only to a command that starts within the same milliseconds
_STORAGE: Final = {
    "custom": {
        "module": "market_data_pipeline.orchestration.storage",
        "class": "KeptConnectionStorage",
        "config": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}},
    }
}


@contextmanager
def scratch_project(
    settings: Settings,
    name: str,
    *,
    universe: Mapping[Tier, tuple[str, ...]],
    own_server: bool,
    files: Mapping[str, str] = MappingProxyType({}),
    **variables: object,
) -> Iterator[Settings]:
    """Yield the settings of a new project; its environment and folder are this process's own while the block runs.

    Args:
        settings: of the user's project, whose vendor, plan, limits and own features are used. The clock is the real
            one, no alert is sent, and no token is needed.
        name: of the command that needs it.
        universe: the symbols to follow.
        own_server: True for an embedded PostgreSQL of its own, which may be broken; else two new databases on the
            server of DATABASE_URL.
        files: further files in its folder, by name.
        variables: of the environment, instead of the values from `settings`.

    Raises:
        ConfigurationError: the role of DATABASE_URL may not create databases, or the folder cannot be written.
        DatabaseUnavailableError: its server cannot be reached.
    """
    remove_leftovers(settings)
    root = settings.state_dir / "scratch" / f"{name}-{os.getpid()}"
    with ExitStack() as stack:
        stack.enter_context(_folder(root))
        _write_files(root, settings, universe)
        for file, text in files.items():
            (root / file).write_text(text, encoding="utf-8")
        urls = {} if own_server else stack.enter_context(_databases(settings))
        stack.enter_context(_environment({**_variables(settings, root), **urls, **_texts(variables)}))
        stack.enter_context(contextlib.chdir(root))
        stack.callback(_end, root)
        yield load_settings()


def select_symbols(
    universe: Mapping[Tier, tuple[str, ...]], symbols: Collection[str], count: int | None
) -> dict[Tier, tuple[str, ...]]:
    """Return those of a universe that are in `symbols`, by tier; without any the first `count`, None for 25 or all.

    Raises:
        UsageError: it lacks one of `symbols`, or has fewer than `count`.
    """
    if unknown := [symbol for symbol in symbols if not any(symbol in of_tier for of_tier in universe.values())]:
        raise UsageError(f"Not in the universe: {', '.join(unknown)}; MARKET_DATA_UNIVERSE names its file.")
    if symbols:
        return {tier: tuple(each for each in of_tier if each in symbols) for tier, of_tier in universe.items()}
    all_of_it = sum(map(len, universe.values()))
    if count is not None and count > all_of_it:
        raise UsageError(f"The universe has {all_of_it} symbols, not {count}; MARKET_DATA_UNIVERSE names its file.")
    left = min(count or 25, all_of_it)
    chosen = {}
    for tier, symbols in universe.items():
        chosen[tier] = symbols[:left]
        left -= len(chosen[tier])
    return chosen


def remove_leftovers(settings: Settings) -> None:
    """Remove the scratch projects of killed commands, and end the processes that they left."""
    for root in sorted((settings.state_dir / "scratch").glob("[!.]*")):
        with contextlib.suppress(OSError), (root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its command runs
            _end(root)
            shutil.rmtree(root, ignore_errors=True)


def _end(root: Path) -> None:
    """End everything that runs in a scratch project except this process."""
    state = project.state_dir(root)
    end_trees(process for command in commands(state) for process in command.processes if process.pid != os.getpid())
    stop_sandbox_in(state)
    server = EmbeddedPostgres(state / "postgres")
    if server.data_dir.exists():
        server.stop()
        shutil.rmtree(project.socket_dir(state), ignore_errors=True)  # elsewhere when the path is long


@contextmanager
def _folder(root: Path) -> Iterator[None]:
    """Keep the folder, locked, while the block runs."""
    draft = root.with_name(f".{root.name}")  # so that it is not mistaken for a leftover before it is locked
    try:
        draft.mkdir(mode=0o711, parents=True)
        lock = (draft / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        draft.rename(root)
    except OSError as error:
        raise ConfigurationError(f"{root} cannot be written: {error.strerror}.") from None
    try:
        with lock:
            yield
    finally:
        shutil.rmtree(root, ignore_errors=True)
        with contextlib.suppress(OSError):
            root.parent.rmdir()  # fails if another command has one


def _write_files(root: Path, settings: Settings, universe: Mapping[Tier, tuple[str, ...]]) -> None:
    tiers = {"tiers": {str(tier): list(symbols) for tier, symbols in universe.items()}}
    (root / "universe.yaml").write_text(yaml.safe_dump(tiers), encoding="utf-8")
    try:
        dagster = yaml.safe_load((settings.dagster_home / "dagster.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{settings.dagster_home / 'dagster.yaml'} cannot be read: {error}.") from None
    # Runs stay on this machine: elsewhere they would get the environment of the user's project.
    dagster.pop("run_launcher", None)
    (root / "dagster.yaml").write_text(yaml.safe_dump({**dagster, "storage": _STORAGE}), encoding="utf-8")


def _variables(settings: Settings, root: Path) -> dict[str, str]:
    """Return every variable that settings are read from; an empty one counts as not set."""
    limit, module = settings.calls_per_minute, settings.features_module
    taken_over = _texts(
        {
            "POLYGON_API_KEY": settings.api_key.get_secret_value() if settings.api_key else "",
            "POLYGON_BASE_URL": settings.base_url or "",
            "POLYGON_PLAN": settings.plan,
            "POLYGON_CALLS_PER_MINUTE": "" if limit is None else limit,
            "MARKET_DATA_MAX_CONCURRENT_SYMBOLS": settings.max_concurrent_symbols,
            "MARKET_DATA_FEATURES_MODULE": module or "",
            "MARKET_DATA_HISTORY_DAYS": settings.history_days,
            "MARKET_DATA_PROJECT_ROOT": root,
            "MARKET_DATA_UNIVERSE": root / "universe.yaml",
            "DAGSTER_HOME": root,
            # An importable module of own features may lie in the user's project.
            "PYTHONPATH": os.pathsep.join(filter(None, (str(settings.project_root), os.environ.get("PYTHONPATH")))),
        }
    )
    others = {str(field.validation_alias): "" for field in Settings.model_fields.values()}
    return {**others, **taken_over}


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _databases(settings: Settings) -> Iterator[dict[str, str]]:
    """Create two databases on the server of DATABASE_URL, dropped at the end; yield the variables that name them."""
    if settings.embedded_database:
        EmbeddedPostgres.of(settings).ensure_running()
    name = f"{_PREFIX}{os.getpid()}_{secrets.token_hex(4)}"
    names = (name, f"{name}_dagster")
    urls = [_other(settings, each) for each in names]
    try:
        with ExitStack() as stack:
            for each, url in zip(names, urls, strict=True):
                stack.enter_context(_held(settings, each, url))
            yield dict(zip(("DATABASE_URL", "DAGSTER_POSTGRES_URL"), urls, strict=True))
    finally:  # also when Ctrl-C comes while they are created
        with contextlib.suppress(DatabaseUnavailableError), _administration(settings) as connection:
            for each in names:
                drop_database(connection, each)


def _held(settings: Settings, name: str, url: str) -> psycopg.Connection[Any]:
    """Create a database and return a connection to it, while which is open no other command takes it for unused.

    Another command may drop it before that connection is open: then it is created again.
    """
    for _ in range(_TRIES):
        _create(settings, name)
        with contextlib.suppress(DatabaseUnavailableError):
            return open_connection(url, autocommit=True)
    raise ConfigurationError(f"The scratch database {name} on {describe(settings.owner_url)} cannot be opened.")


def _create(settings: Settings, name: str) -> None:
    try:
        with _administration(settings) as connection:
            _drop_unused(connection)
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(f'create database "{name}"')
    except psycopg.Error as error:
        reason = (error.diag.message_primary or type(error).__name__).removesuffix(".")
        raise ConfigurationError(
            f"No scratch database can be created on {describe(settings.owner_url)}: {reason}. Grant the role CREATEDB, "
            "or leave DATABASE_URL out to use the embedded server."
        ) from None


def _administration(settings: Settings) -> psycopg.Connection[Any]:
    return open_connection(settings.owner_url, autocommit=True)


def _drop_unused(connection: psycopg.Connection[Any]) -> None:
    """Drop the databases of killed commands: those without connections."""
    left = connection.execute(
        """
        select datname from pg_database as d
        where starts_with(datname, %s) and pg_has_role(datdba, 'member')
            and not exists (select from pg_stat_activity as a where a.datid = d.oid)
        """,
        (_PREFIX,),
    )
    for (name,) in left.fetchall():
        with contextlib.suppress(psycopg.errors.ObjectInUse, psycopg.errors.InvalidCatalogName):
            connection.execute(f'drop database "{name}"')


def _other(settings: Settings, name: str) -> str:
    """Return the owner's URL with another database name; the owner owns the scratch databases too."""
    parts = urlsplit(libpq_url(settings.owner_url))
    rest = [(key, value) for key, value in parse_qsl(parts.query) if key != "dbname"]
    return urlunsplit(parts._replace(path=f"/{name}", query=urlencode(rest)))


# Below those that a system gives to whoever asks for any port: 32768 on for Linux, 49152 on for others.
_PORTS: Final = range(20_000, 32_768)
_reserved: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nothing listens on, and that no other caller gets while this process lives."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            if sys.platform == "linux":  # a name that the kernel gives to one process at a time
                reserved = socket.socket(socket.AF_UNIX)
                reserved.bind(f"\0market-data port {port}")
                _reserved.append(reserved)
            found.append(port)
    return found
