"""The embedded PostgreSQL as a process: started on demand, left running for later commands, and stopped.

Keep out: how its data folder is created and configured (postgres_cluster), and where it is (settings.project).
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from market_data_pipeline.runtime import postgres_cluster as cluster
from market_data_pipeline.settings import project

if TYPE_CHECKING:
    import psutil

    from market_data_pipeline.settings import Settings

# Recovery after a crash replays at most max_wal_size, 4 GB, which takes a slow disk about two minutes.
_START_SECONDS: Final = 300
_STOP_SECONDS: Final = 60
_LEFTOVER_SECONDS: Final = 60  # a killed server's children notice within milliseconds, unless the machine is busy


class EmbeddedPostgres:
    """The PostgreSQL server in a folder of this project.

    It listens on a socket in a folder that only its owner can enter, still requires a password, and has no TCP port.
    It survives the command that started it, and `stop` ends it for all commands.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        """Set the server's data folder; the folder above it holds the passwords and the socket.

        With `durable` False nothing is flushed to disk: for data that a crash of the machine may lose, as in tests.
        """
        self.durable = durable
        self.data_dir = data_dir.resolve()
        self.state_dir = self.data_dir.parent

    @classmethod
    def of(cls, settings: Settings) -> EmbeddedPostgres:
        """Return the project's server."""
        return cls(settings.state_dir / "postgres")

    @property
    def url(self) -> str:
        """The libpq URL of the database `market_data`, the same whether the server runs or not."""
        return project.local_url(self.state_dir)

    @property
    def owner_url(self) -> str:
        """The same for the role that owns the relations and may create databases and roles."""
        return project.local_url(self.state_dir, role=project.OWNER)

    def ensure_running(self) -> str:
        """Start the server unless it runs; return its URL once it answers. Concurrent calls are harmless.

        Raises:
            ConfigurationError: the data folder, the disk or the permissions do not allow it.
            DatabaseUnavailableError: it runs but does not answer.
        """
        if self._refusal() is None:
            return self.url
        with self._lock():
            if self._refusal() is not None:
                self._start()
        return self.url

    def stop(self) -> None:
        """Stop the server, which disconnects its clients; nothing happens when it does not run."""
        if not self.data_dir.exists():
            return
        with self._lock():
            self._stop()

    def is_running(self) -> bool:
        """Return True when there is a server process for the data folder."""
        return self._pid() is not None

    def process(self) -> psutil.Process | None:
        """Return the server's main process; None when it does not run."""
        import psutil  # here, because readers name the server without having it

        pid = self._pid()
        with suppress(psutil.NoSuchProcess):
            return None if pid is None else psutil.Process(pid)
        return None

    def _start(self) -> None:
        cluster.check_paths(self.data_dir)
        as_user = cluster.owner(self.data_dir)
        sockets = project.socket_dir(self.state_dir)
        if self._pid() is not None:
            if (sockets / f".s.PGSQL.{project.PORT}").exists():
                return self._await_answer(as_user)
            self._stop()  # its socket is gone, for example with the old path of a project that was moved
        cluster.open_binaries(as_user)
        if os.geteuid() == 0:
            self.state_dir.chmod(0o711)  # the server's user may pass through, but not read passwords and settings
        cluster.open_the_way(self.data_dir, as_user)
        cluster.private_folder(sockets, as_user)
        try:
            self._create_or_check(as_user)
            cluster.configure(self.data_dir, as_user, sockets, durable=self.durable)
        except OSError as error:
            raise ConfigurationError(self._why("prepared", str(error))) from None
        self._launch(as_user, sockets)
        self._await_answer(as_user)

    def _create_or_check(self, as_user: cluster.Owner) -> None:
        try:
            found = (self.data_dir / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if self.data_dir.exists() and any(self.data_dir.iterdir()):
                raise ConfigurationError(
                    f"{self.data_dir} holds files but is not a database: move it away; bars are then fetched again."
                ) from None
            if failure := cluster.create(self.data_dir, as_user, self._passwords(), durable=self.durable):
                raise ConfigurationError(self._why("created", failure)) from None
            return
        except PermissionError:
            raise ConfigurationError(_of_another_user(self.data_dir)) from None
        if found != str(cluster.MAJOR_VERSION):
            raise ConfigurationError(
                f"{self.data_dir} was made by PostgreSQL {found} and this is {cluster.MAJOR_VERSION}: run `market-data "
                "backup DIR` with the version of this code that made it, move it away, then run `market-data restore "
                f"DIR` with this one; or {cluster.OWN_SERVER_HINT}."
            )
        if os.geteuid() != 0 and self.data_dir.stat().st_uid != as_user.uid:
            raise ConfigurationError(_of_another_user(self.data_dir))

    def _launch(self, as_user: cluster.Owner, sockets: Path) -> None:
        # No server runs here, so these files are left over from a crash. PostgreSQL would notice that itself, except
        # when a new process has the old pid, as after the restart of a container.
        for name in (f".s.PGSQL.{project.PORT}", f".s.PGSQL.{project.PORT}.lock"):
            (sockets / name).unlink(missing_ok=True)
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        log = self.data_dir / "start.log"
        log.unlink(missing_ok=True)
        arguments = ("start", "-w", "-t", str(_START_SECONDS), "-s", "-D", self.data_dir, "-l", log)
        patience = time.monotonic() + _LEFTOVER_SECONDS
        while failure := cluster.run("pg_ctl", *arguments, as_user=as_user, new_session=True):
            output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            if "pre-existing shared memory" not in output or time.monotonic() > patience:
                raise ConfigurationError(self._why("started", f"{output}\n{failure}"))
            log.unlink()  # children of a killed server have not ended yet
            time.sleep(0.1)

    def _await_answer(self, as_user: cluster.Owner) -> None:
        patience = time.monotonic() + _START_SECONDS
        while refusal := self._refusal():
            if "password authentication failed" in refusal or "no pg_hba.conf entry" in refusal:
                return self._set_passwords(as_user)
            if self._pid() is None or time.monotonic() > patience:
                raise DatabaseUnavailableError(f"The embedded PostgreSQL does not answer: {refusal}")
            time.sleep(0.05)
        return None

    def _set_passwords(self, as_user: cluster.Owner) -> None:
        """Set the roles' passwords to those in the files, after a file was deleted and created again."""
        sockets = project.socket_dir(self.state_dir)
        self._stop()
        if failure := cluster.give_roles(self.data_dir, as_user, self._passwords()):
            raise ConfigurationError(self._why("given its passwords", failure))
        cluster.configure(self.data_dir, as_user, sockets, durable=self.durable)
        self._launch(as_user, sockets)
        if refusal := self._refusal():
            raise DatabaseUnavailableError(f"The embedded PostgreSQL does not answer: {refusal}")

    def _passwords(self) -> dict[str, str]:
        return {role: project.password(self.state_dir, role) for role in (project.OWNER, project.ROLE)}

    def _stop(self) -> None:
        if self._pid() is None:
            return
        arguments = ("stop", "-m", "fast", "-w", "-t", str(_STOP_SECONDS), "-s", "-D", self.data_dir)
        if failure := cluster.run("pg_ctl", *arguments, as_user=cluster.owner(self.data_dir)):
            raise DatabaseUnavailableError(self._why("stopped", failure))

    def _refusal(self) -> str | None:
        """Return None when the server answers, else why not."""
        try:
            if not (project.socket_dir(self.state_dir) / f".s.PGSQL.{project.PORT}").exists():
                return "there is no socket"
        except PermissionError:
            raise ConfigurationError(_of_another_user(self.state_dir)) from None
        try:
            for url in (self.url, self.owner_url):
                psycopg.connect(url, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            return " ".join(str(error).split())
        return None

    def _pid(self) -> int | None:
        """Return the pid of the server: a live process whose working directory is the data folder."""
        try:
            # Bytes: a later line is the folder's name, in whatever encoding.
            pid = int((self.data_dir / "postmaster.pid").read_bytes().split(b"\n", 1)[0])
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        works_in = Path(f"/proc/{pid}/cwd")
        try:
            return pid if works_in.samefile(self.data_dir) else None
        except FileNotFoundError:
            return None if Path("/proc/self/cwd").exists() else pid  # a system without /proc: trust the file
        except PermissionError:
            return None

    def _why(self, not_done: str, output: str) -> str:
        """Return a sentence from the output of a program or the log."""
        if "No space left on device" in output or "free disk space" in output:
            return f"The embedded PostgreSQL could not be {not_done}: the disk of {self.state_dir} is full."
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        # For "FATAL: configuration file … contains errors" the LOG line before it says what is wrong.
        telling = [line for line in lines if re.search(r"FATAL|PANIC|error:|LOG: +(invalid|unrecognized|syntax)", line)]
        words = "; ".join(re.sub(r"^.*?\b(FATAL|PANIC|LOG|error): +", "", line) for line in (telling or lines[-1:])[:3])
        forbidden = "ermission denied" in output or "not permitted" in output
        hint = "run as the user who owns it" if forbidden else f"see {self.data_dir / 'log'}"
        return f"The embedded PostgreSQL in {self.data_dir} could not be {not_done}: {words} ({hint})."

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the project's lock on starting and stopping; the kernel releases it when the holder dies."""
        file = self.state_dir / "postgres.lock"
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"{file} cannot be opened ({error.strerror}): run as its owner, or {cluster.OWN_SERVER_HINT}."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _of_another_user(folder: Path) -> str:
    return f"{folder} belongs to another user: run as that user, or {cluster.OWN_SERVER_HINT}."
