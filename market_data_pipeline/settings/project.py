"""Where a project is on disk, and the addresses and passwords of the PostgreSQL server inside it.

Keep out: reading the environment (settings) and starting the server (runtime.postgres).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qs, quote, urlsplit

from market_data_pipeline.domain.errors import ConfigurationError

LOCATION: Final = "market_data_pipeline.definitions"  # the module; workspace.yaml gives the location its name
ROLE: Final = "market_data"  # what the pipeline, the API and Dagster log in as
OWNER: Final = "market_data_owner"  # what migrations log in as: it owns the relations of the market data
# One database per kind of bars, so that synthetic or recorded ones can never mix with a vendor's: our relations in the
# first of each pair, Dagster's history of them in the second.
Kind = Literal["vendor", "sandbox", "replay"]
DATABASES: Final[dict[Kind, tuple[str, str]]] = {
    "vendor": ("market_data", "dagster"),
    "sandbox": ("sandbox", "sandbox_dagster"),
    "replay": ("replay", "replay_dagster"),
}
# Holds universe.yaml, sql/ and project_files/; in a checkout the latter two are links to files at its root.
PACKAGE: Final = Path(__file__).resolve().parent.parent
# What to do about a module that is missing: the base package only reads.
INSTALL_PIPELINE: Final = "run `pip install 'market-data-pipeline[pipeline]'`, or `make install` in a checkout"
DATABASE, DAGSTER_DATABASE = DATABASES["vendor"]
DAGSTER_DATABASES: Final = dict(DATABASES.values())
# Dagster writes times without a zone, in the zone of its connections, and reads them as UTC. A server has the zone of
# the machine that it was created on unless a client names another; and a database in SQL_ASCII takes only ASCII from
# one that names no encoding. libpq reads these variables, and poolers pass them on.
STORAGE_ENVIRONMENT: Final = {"PGTZ": "UTC", "PGCLIENTENCODING": "UTF8"}
PORT: Final = 5432  # names the socket file only; written into URLs so that a PGPORT in the environment cannot change it

LONGEST_SOCKET_PATH: Final = 107  # bytes, Linux: sizeof(sockaddr_un.sun_path) - 1
_ROOT_FILES: Final = ("workspace.yaml", "pyproject.toml")


def find_project_root(start: Path) -> Path:
    """Return the nearest folder at or above `start` that is this project, else the folder above the package."""
    for folder in (start, *start.parents):
        if any(_names_the_package(folder / name) for name in _ROOT_FILES):
            return folder
    above = PACKAGE.parent
    # The next `pip install` may replace the folder of an installed package: it is no place for a database.
    return start if above.name in {"site-packages", "dist-packages"} else above


def _names_the_package(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return "market_data_pipeline" in text or "market-data-pipeline" in text


def state_dir(root: Path) -> Path:
    """Return the folder for the project's own files at run time; it need not exist yet."""
    return root / ".market-data"


def socket_dir(state: Path) -> Path:
    """Return the folder of the server's socket, the same one every time for the same project.

    It is in the state folder unless the socket's path would be longer than the kernel allows or contains a comma, which
    separates hosts in a database URL. Then it is in /tmp, not in XDG_RUNTIME_DIR, which differs between a login shell
    and cron and vanishes at logout. No other user can create the name in /tmp first, because it follows from the
    password.
    """
    here = state / "run"
    if _fits_a_socket(here):
        return here
    name = hashlib.blake2b(os.fsencode(state), key=password(state).encode(), digest_size=8).hexdigest()
    return Path("/tmp") / f"market-data-{name}"  # noqa: S108 - see above; the server checks its owner


def _fits_a_socket(folder: Path) -> bool:
    return "," not in str(folder) and len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= LONGEST_SOCKET_PATH


def _password_file(state: Path, role: str) -> Path:
    return state / {ROLE: "postgres.password", OWNER: "postgres.owner.password"}[role]


def password(state: Path, role: str = ROLE) -> str:
    """Return a role's password, created at the first call and kept in a file that only its owner can read.

    Raises:
        ConfigurationError: the file cannot be read or written.
    """
    file = _password_file(state, role)
    try:
        if not file.exists():
            _create_once(file, secrets.token_urlsafe(32))
        return file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or file} cannot be used ({error.strerror}): the embedded database belongs to the user "
            "who first started it; run as that user, or name a server of your own, "
            "for example DATABASE_URL=postgresql://user:password@localhost/market_data."
        ) from None


def _create_once(file: Path, text: str) -> None:
    """Write `file`, mode 0600, unless another process has just done so; it is never seen half written."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600, exist_ok=False)
    draft.write_text(text, encoding="ascii")
    try:
        file.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def local_url(state: Path, database: str = DATABASE, *, role: str = ROLE) -> str:
    """Return the libpq URL of a database on the project's own server, whether it runs or not."""
    host = quote(str(socket_dir(state)), safe="")
    return f"postgresql://{role}:{quote(password(state, role), safe='')}@/{database}?host={host}&port={PORT}"


def is_local(url: str, state: Path) -> bool:
    """Return True when `url` names the project's own server; no file is created to find out."""
    parts = urlsplit(url)
    if parts.hostname or not (_fits_a_socket(state / "run") or _password_file(state, ROLE).exists()):
        return False
    return parse_qs(parts.query).get("host") == [str(socket_dir(state))]
