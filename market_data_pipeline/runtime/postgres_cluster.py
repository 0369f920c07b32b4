"""What the embedded PostgreSQL consists of: its binaries, system user, data folder, roles and configuration.

Keep out: when the server runs (postgres).
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from itertools import chain
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import project
from market_data_pipeline.store.postgres_tools import packaged_programs

if TYPE_CHECKING:
    from collections.abc import Mapping

MAJOR_VERSION: Final = 18
# Who runs the server for root, the first that exists: what the wheel's own code creates, then what every system has.
_ACCOUNTS: Final = ("pgserver", "daemon", "nobody")
_NOT_FOR_A_SHELL: Final = re.compile(r'[$`"\\\n]')  # initdb and pg_ctl put paths between double quotes
OWN_SERVER_HINT: Final = "name a server of your own with DATABASE_URL=postgresql://user:password@localhost/market_data"

# A commit still waits until the operating system has its WAL: it survives a crash of the server, not of the machine.
_NOT_DURABLE: Final = "fsync = off\nfull_page_writes = off\n"
_MB: Final = 1 << 20
_log = logging.getLogger(__name__)


class Owner(NamedTuple):
    """The system user that the server runs as."""

    uid: int
    gid: int


def binaries() -> Path:
    """Return the folder of initdb, pg_ctl and postgres."""
    found = packaged_programs(MAJOR_VERSION)
    if found is None:
        raise ConfigurationError(
            f"The embedded PostgreSQL is not installed: {project.INSTALL_PIPELINE}; or {OWN_SERVER_HINT}."
        )
    return found


def owner(data: Path) -> Owner:
    """Return the server's user: the caller, or an unprivileged one when the caller is root, which PostgreSQL refuses.

    None is created: the owner of the data folder, once there is one, before that any account of `_ACCOUNTS`, or else of
    the machine.

    Raises:
        ConfigurationError: the machine has no account but root's.
    """
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid())
    with suppress(FileNotFoundError):
        found = data.stat()
        if found.st_uid != 0:
            return Owner(found.st_uid, found.st_gid)
    named = {entry.pw_name: entry for entry in reversed(pwd.getpwall()) if entry.pw_uid != 0}
    entry = next((named[name] for name in (*_ACCOUNTS, *named) if name in named), None)
    if entry is None:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and this machine has no other account: run as one, or {OWN_SERVER_HINT}."
        )
    return Owner(entry.pw_uid, entry.pw_gid)


def check_paths(data: Path) -> None:
    """Refuse a folder whose name PostgreSQL's programs would hand to a shell, in which it means something else.

    Raises:
        ConfigurationError: names the folder and the character.
    """
    for path in (data, binaries()):
        if found := _NOT_FOR_A_SHELL.search(str(path)):
            raise ConfigurationError(
                f"The name of {path} contains {found[0]!r}, with which PostgreSQL's programs cannot work: move the "
                f"project to a folder without it, or {OWN_SERVER_HINT}."
            )


def run(program: str, *arguments: str | Path, as_user: Owner, sql: str = "", new_session: bool = False) -> str | None:
    """Run one of the server's programs; return None when it succeeded, else its output.

    It gets none of our environment: a server that outlives the command must not keep its keys, nor use PGPORT or PGDATA
    of the user's shell.
    """
    drop = {"user": as_user.uid, "group": as_user.gid, "extra_groups": ()} if os.geteuid() == 0 else {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:  # a pipe would wait for the server
        try:
            done = subprocess.run(  # type: ignore[call-overload]  # noqa: S603
                [binaries() / program, *arguments],
                check=False,
                text=True,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                cwd="/",
                umask=0o077,
                start_new_session=new_session,
                **({"input": sql} if sql else {"stdin": subprocess.DEVNULL}),
                **drop,
            )
        except OSError as error:
            return f"{program}: {error.strerror}"
        output.seek(0)
        return output.read() if done.returncode else None


def private_folder(path: Path, as_user: Owner) -> None:
    """Make `path` a folder that only `as_user` (and root) can enter.

    Raises:
        ConfigurationError: something else is already there, such as a link or another user's folder.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {as_user.uid, os.geteuid()}:
            raise ConfigurationError(f"{path} is not ours: remove it, or {OWN_SERVER_HINT}.")
        if os.geteuid() == 0:
            os.chown(path, as_user.uid, as_user.gid, follow_symlinks=False)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made private: {error.strerror}.") from None


def open_the_way(to: Path, as_user: Owner) -> None:
    """As root: let `as_user` pass through the folders above `to`, without letting others list them.

    The wheel's own code would open them for reading too. A folder that others can already pass through stays as it is.
    """
    if os.geteuid() != 0:
        return
    for folder in to.parents:
        found = folder.stat()
        bit = stat.S_IXUSR if found.st_uid == as_user.uid else stat.S_IXOTH
        if not found.st_mode & bit:
            _log.warning("Letting other users pass through (not list) %s, so that PostgreSQL can run", folder)
            folder.chmod(stat.S_IMODE(found.st_mode) | bit)


def open_binaries(as_user: Owner) -> None:
    """As root: let `as_user` run the wheel's programs, even if pip ran with a umask of 077."""
    if os.geteuid() != 0:
        return
    top = binaries().parent
    open_the_way(binaries(), as_user)
    if (top / "bin" / "postgres").stat().st_mode & 0o005 == 0o005 and (top / "share").stat().st_mode & 0o005 == 0o005:
        return
    for path in (top, *top.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(stat.S_IMODE(mode) | (0o055 if path.is_dir() or mode & stat.S_IXUSR else 0o044))


def create(data: Path, as_user: Owner, passwords: Mapping[str, str], *, durable: bool) -> str | None:
    """Create the data folder with databases and the roles of `passwords`; return None, or what went wrong.

    It is created under another name and renamed at the end: an interrupted creation is never mistaken for a database.
    No role that can log in is a superuser, so SQL cannot reach the machine.
    """
    draft = data.with_name(f"{data.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    private_folder(draft, as_user)
    # The builtin C.UTF-8 collation sorts the same on every machine and needs no system locale.
    locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    failure = run("initdb", "-D", draft, "-U", "postgres", "--auth=peer", "--no-sync", *locale, as_user=as_user)
    if failure is None:
        configure(draft, as_user, draft, durable=False)  # flushed as a whole below
        # Copied as files: page by page through the WAL, the default, takes nine times the processor time.
        names = chain.from_iterable(project.DATABASES.values())
        made = "".join(f"create database {name} strategy file_copy\n" for name in names)
        failure = single_user(draft, as_user, made + _logins(passwords) + _ownerships())
    if failure is None and durable:
        failure = run("initdb", "--sync-only", "-D", draft, as_user=as_user)
    if failure is None:
        draft.rename(data)
    else:
        shutil.rmtree(draft, ignore_errors=True)
    return failure


def give_roles(data: Path, as_user: Owner, passwords: Mapping[str, str]) -> str | None:
    """Create the roles in a data folder whose server is stopped, or change their passwords; return what went wrong.

    The owner may create the roles of 0012_privileges and databases for tests. Dagster's storage belongs to the
    pipeline's login, because Dagster creates its tables itself. An older folder, in which that login owned everything,
    is corrected.
    """
    sql = _logins(passwords)
    for name, role in _owners().items():
        if role == project.OWNER:
            failure = single_user(data, as_user, f"{sql}reassign owned by {project.ROLE} to {role}\n", name)
            if failure is not None:
                return failure
            sql = ""
    return single_user(data, as_user, _ownerships())


def _logins(passwords: Mapping[str, str]) -> str:
    rights = {project.OWNER: "createdb createrole", project.ROLE: "nocreatedb nocreaterole"}
    return "".join(
        f"do $$ begin if to_regrole('{role}') is null then create role {role}; end if; end $$\n"
        f"alter role {role} login {rights[role]} password '{password}'\n"
        for role, password in passwords.items()
    )


def _owners() -> dict[str, str]:
    """Return the owner of each database."""
    roles = (project.OWNER, project.ROLE)
    return {name: role for pair in project.DATABASES.values() for name, role in zip(pair, roles, strict=True)}


def _ownerships() -> str:
    return "".join(f"alter database {name} owner to {role}\n" for name, role in _owners().items())


def single_user(data: Path, as_user: Owner, sql: str, database: str = "postgres") -> str | None:
    """Run statements, one a line, as superuser in a data folder whose server is stopped; return what went wrong."""
    options = ("-D", data, "-F", "-c", "exit_on_error=true", "-c", "log_min_messages=error")
    return run("postgres", "--single", *options, database, as_user=as_user, sql=sql)


def configure(data: Path, as_user: Owner, sockets: Path, *, durable: bool) -> None:
    """Rewrite the server's configuration, so that a later version of this code updates older data folders too."""
    files = {
        "postgresql.conf": _configuration(sockets) + ("" if durable else _NOT_DURABLE),
        # The superuser has no password. Logins that the owner creates, for people who only read, have their own.
        "pg_hba.conf": "local all all scram-sha-256\n",
    }
    for name, text in files.items():
        # Replaced, not overwritten: as root we must not follow a link that the server's user may have put there.
        descriptor, draft = tempfile.mkstemp(dir=data)
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, not a path
            stream.write(text)
            if os.geteuid() == 0:
                os.fchown(descriptor, as_user.uid, as_user.gid)
        Path(draft).replace(data / name)


def _configuration(sockets: Path) -> str:
    memory = _memory()
    # A sixteenth of the memory, because the machine also runs Dagster and pandas. 1 GB is enough: a year of 25 symbols
    # with features is half a gigabyte.
    shared = max(64 * _MB, min(memory // 16, 1024 * _MB)) // _MB
    quoted = str(sockets).replace("'", "''")  # the configuration's quoting; no comma, see project.socket_dir
    return Template(Path(__file__).with_name("postgresql.conf").read_text(encoding="utf-8")).substitute(
        sockets=quoted, port=project.PORT, shared=shared, cache=memory // 2 // _MB
    )


def _memory() -> int:
    """Return the bytes of memory that this machine or container may use."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            return min(installed, int(limit.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return installed
