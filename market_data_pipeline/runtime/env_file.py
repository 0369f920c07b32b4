"""`market-data init`: the `.env` file that lets plain `dagster` commands find the project's instance and databases.

Keep out: how the user's lines and the generated ones are distinguished (settings.env_file), and what variables mean
(settings).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import env_file, known_variables, load_settings, process_environment, project
from market_data_pipeline.settings import project_root as root_of_project
from market_data_pipeline.settings.variables import file_variable, with_files

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADING: Final = "# Settings of this project; .env.example explains them. It holds passwords: keep it private.\n\n"
# Dagster reads these itself, and from `.env` even if the environment says otherwise.
_DAGSTERS_OWN: Final = ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL", *project.STORAGE_ENVIRONMENT)


class EnvFile(NamedTuple):
    """What `write_env` did; `written` and `kept` are names of variables."""

    path: Path
    changed: bool
    written: tuple[str, ...]  # between our markers now
    kept: tuple[str, ...]  # set by the user elsewhere in the file, and therefore not by us


def write_env() -> EnvFile:
    """Write the defaults of Dagster's own commands into the project's `.env`, mode 0600; a second call changes nothing.

    They follow from the user's lines in the file. Nothing of the environment is written: it holds for one command.
    Call this before `load_settings` where a project may have moved: it corrects the paths.

    Raises:
        ConfigurationError: a value is invalid, the file cannot be written, or it contradicts the environment in what
            Dagster reads itself.
    """
    root = root_of_project()
    path = (root / ".env").resolve()
    text = env_file.read(path) or env_file.Text(_HEADING, "")
    users = {name: value for name, value in text.values.items() if value}
    process_environment(load_settings())  # stops the command before anything is written
    defaults = {name: value for name, value in _defaults(root, users).items() if name not in users}
    new = text.with_defaults(defaults, blank=text.values.keys())
    changed = not path.exists() or new != path.read_text(encoding="utf-8") or bool(path.stat().st_mode & 0o077)
    if changed:
        _replace(path, new)
    _write_dagster_files(root)
    return EnvFile(path, changed, tuple(defaults), tuple(name for name in _DAGSTERS_OWN if name in users))


def _defaults(root: Path, users: Mapping[str, str]) -> dict[str, str]:
    """Return what Dagster's own commands need, by the user's lines alone."""
    known = known_variables()
    users_own = with_files(users, known, root)
    alone = {name: users_own.get(name) or "" for name in known if name != "MARKET_DATA_PROJECT_ROOT"}
    settings = load_settings(project_root=root, **alone)
    # A password that the user keeps in a file of its own is not copied into this one.
    kept_apart = any(users.get(file_variable(name)) for name in ("DATABASE_URL", "DAGSTER_POSTGRES_URL"))
    return {
        "DAGSTER_HOME": str(settings.dagster_home),
        **({} if kept_apart else {"DAGSTER_POSTGRES_URL": settings.dagster_postgres_url}),
        **project.STORAGE_ENVIRONMENT,
    }


def _write_dagster_files(root: Path) -> None:
    """Copy dagster.yaml and workspace.yaml into a project that has none: one installed by pip, not a checkout."""
    for name in ("dagster.yaml", "workspace.yaml"):
        try:
            if not (root / name).exists():
                shutil.copyfile(project.PACKAGE / "project_files" / name, root / name)
        except OSError as error:
            raise ConfigurationError(f"{root / name} cannot be written: {error.strerror}.") from None


def _replace(path: Path, text: str) -> None:
    """Write the file under another name and rename it, so that it is never half written or readable by others."""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".env.")  # mode 0600
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, not a path
            stream.write(text)
        Path(draft).replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None
