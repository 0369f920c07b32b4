"""`market-data init`: the `.env` file that lets plain `dagster` commands find the project's instance and databases.

Dagster reads `.env` from the working directory before it builds its instance, so the variables that `dagster.yaml`
uses must be in it. `settings` says what they mean.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from dotenv import dotenv_values

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import load_settings, project, project_root

_BEGIN: Final = "# --- written by `market-data init`: put your own settings outside these two lines ---"
_END: Final = "# --- end of what `market-data init` wrote ---"
_BLOCK: Final = re.compile(rf"^{re.escape(_BEGIN)}\n(.*?)^{re.escape(_END)}\n?", re.MULTILINE | re.DOTALL)
_HEADING: Final = "# Settings of this checkout; .env.example explains them. It holds passwords: keep it private.\n\n"


class EnvFile(NamedTuple):
    """What `write_env` did; `written` and `kept` are names of variables."""

    path: Path
    changed: bool
    written: tuple[str, ...]  # between our markers now
    kept: tuple[str, ...]  # set by the user elsewhere in the file, and therefore not by us


def write_env(*, take_over: bool = True) -> EnvFile:
    """Write what `dagster` commands need into the project's `.env`, mode 0600; a second call changes nothing.

    Only the lines between two markers are ours: a variable that the user set outside them is not repeated. A
    DATABASE_URL or DAGSTER_POSTGRES_URL from the environment is written too, because later commands without it would
    use another database; an API key is not, since the user did not ask to have it on disk. Call this before
    `load_settings`: it corrects the paths of a project that was moved.

    Args:
        take_over: False to leave out values that only the environment sets, until they are known to work.

    Raises:
        ConfigurationError: a value is invalid, or the file cannot be written.
    """
    root = project_root()
    path = (root / ".env").resolve()
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else _HEADING
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    found = _BLOCK.search(text)
    users = _values(_BLOCK.sub("", text))
    ours = _values(found[1]) if found else {}
    lines = _lines(root, users, ours, os.environ if take_over else {})
    block = "\n".join([_BEGIN, *(f"{name}={_quoted(value)}" for name, value in lines.items()), _END, ""])
    if found:
        new = text[: found.start()] + block + text[found.end() :]
    else:
        new = text + ("" if text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n") + block
    changed = new != text or not path.exists() or bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    if changed:
        _replace(path, new)
    _write_dagster_files(root)
    return EnvFile(path, changed, tuple(lines), tuple(name for name in _MANAGED if name in users))


def _write_dagster_files(root: Path) -> None:
    """Copy dagster.yaml and workspace.yaml into a project that has none: one installed by pip, not a checkout."""
    for name in ("dagster.yaml", "workspace.yaml"):
        try:
            if not (root / name).exists():
                shutil.copyfile(project.PACKAGE / "project_files" / name, root / name)
        except OSError as error:
            raise ConfigurationError(f"{root / name} cannot be written: {error.strerror}.") from None


_MANAGED: Final = ("DAGSTER_HOME", "DATABASE_URL", "DAGSTER_POSTGRES_URL", *project.STORAGE_ZONE)
# These decide whether bars are synthetic, recorded or a vendor's, and so which database holds Dagster's history.
_KIND_OF_BARS: Final = {
    "POLYGON_API_KEY": "api_key",
    "POLYGON_BASE_URL": "base_url",
    "MARKET_DATA_SANDBOX_REPLAY": "sandbox_replay",
}


def _lines(
    root: Path, users: Mapping[str, str], ours: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the values of our lines: from the user's own lines, the environment or our lines so far, in that order."""
    given = {name: users.get(name) or environment.get(name, "").strip() for name in _MANAGED}
    database = given["DATABASE_URL"] or ours.get("DATABASE_URL", "")
    dagster = given["DAGSTER_POSTGRES_URL"] or _stated_before(ours)
    # An empty string selects the default, whatever our earlier lines say.
    settings = load_settings(
        project_root=root,
        dagster_home=given["DAGSTER_HOME"],
        database_url=database,
        dagster_postgres_url=dagster,
        **{field: environment.get(name, "").strip() or users.get(name, "") for name, field in _KIND_OF_BARS.items()},
    )
    lines = {"DAGSTER_HOME": str(settings.dagster_home), "DATABASE_URL": "", "DAGSTER_POSTGRES_URL": ""}
    if not settings.embedded_database:
        lines["DATABASE_URL"] = settings.database_url
    lines["DAGSTER_POSTGRES_URL"] = settings.dagster_postgres_url
    lines |= project.STORAGE_ZONE
    return {name: value for name, value in lines.items() if value and not users.get(name)}


def _stated_before(ours: Mapping[str, str]) -> str:
    """Return the DAGSTER_POSTGRES_URL that was taken over from the environment before, empty if it was derived."""
    url, database = ours.get("DAGSTER_POSTGRES_URL", ""), ours.get("DATABASE_URL", "")
    parts = urlsplit(url)
    embedded = (
        not parts.hostname
        and parts.username == project.ROLE
        and parts.path.strip("/") in project.DAGSTER_DATABASES.values()
    )
    derived = embedded or url.partition("://")[2] == database.partition("://")[2]
    return "" if derived else url


def _values(text: str) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text), interpolate=False).items() if value}


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _replace(path: Path, text: str) -> None:
    """Write the file under another name and rename it, so that it is never half written or readable by others."""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".env.")  # mode 0600
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, not a path
            stream.write(text)
        Path(draft).replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None
