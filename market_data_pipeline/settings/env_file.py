"""The project's `.env`: the user's lines, and the few that the project writes for Dagster's own commands.

Dagster's commands read `.env` of the working directory and nothing else of ours, so what `dagster.yaml` needs must
stand there. Those lines are between two markers and derived from the rest of the file. Each is only a default
(`${NAME:-value}`): the environment wins. Our own commands ignore them and derive the values again.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from dotenv import dotenv_values

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import project

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

BEGIN: Final = "# --- defaults for Dagster's own commands, written by market-data: put your own settings elsewhere ---"
END: Final = "# --- end of what market-data wrote ---"
# Earlier versions wrote values instead of defaults, among them URLs that only the environment had set.
_EARLIER: Final = (
    "# --- written by `market-data init`: put your own settings outside these two lines ---",
    "# --- end of what `market-data init` wrote ---",
)
_BLOCK: Final = re.compile(
    rf"^(?P<begin>{re.escape(BEGIN)}|{re.escape(_EARLIER[0])})\n(?P<lines>.*?)"
    rf"^(?:{re.escape(END)}|{re.escape(_EARLIER[1])})\n?",
    re.MULTILINE | re.DOTALL,
)
_TAKEN_OVER: Final = "# An earlier version took this over from the environment; remove it if you no longer mean it."


class Text(NamedTuple):
    """The user's lines before and after the place of the generated ones."""

    before: str
    after: str

    @property
    def values(self) -> dict[str, str | None]:
        """What the user's lines set; `${NAME}` is replaced by the environment's value, as Dagster does."""
        return dotenv_values(stream=io.StringIO(self.before + self.after))

    def with_defaults(self, defaults: Mapping[str, str], *, blank: Collection[str]) -> str:
        """Return the whole file with `defaults` in their place; those in `blank` replace an empty line of the user's.

        A value that cannot be a default of python-dotenv, one with a `}`, is left out.
        """
        lines = [
            f'{name}="{_escaped(value)}"' if name in blank else f'{name}="${{{name}:-{_escaped(value)}}}"'
            for name, value in defaults.items()
            if "}" not in value
        ]
        before = self.before
        if not self.after:
            before += "" if before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
        return before + "\n".join([BEGIN, *lines, END, ""]) + self.after


def read(path: Path) -> Text | None:
    """Return the user's part of the file, None when there is no file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return split(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def split(text: str) -> Text:
    """Return the user's part of a file's text; what an earlier version took over from the environment belongs to it."""
    found = _BLOCK.search(text)
    if found is None:
        return Text(text, "")
    before, after = text[: found.start()], text[found.end() :]
    if found["begin"] == _EARLIER[0]:
        kept = _taken_over(found["lines"])
        before += "".join(f"{_TAKEN_OVER}\n{line}\n" for line in kept) + ("\n" if kept else "")
    return Text(before, after)


def _taken_over(lines: str) -> list[str]:
    values = dotenv_values(stream=io.StringIO(lines), interpolate=False)
    database, dagster = values.get("DATABASE_URL") or "", values.get("DAGSTER_POSTGRES_URL") or ""
    derived = names_own_dagster_database(dagster) or dagster.partition("://")[2] == database.partition("://")[2]
    kept = {"DATABASE_URL": database, "DAGSTER_POSTGRES_URL": "" if derived else dagster}
    return [line for line in lines.splitlines() if kept.get(line.partition("=")[0])]


def names_own_dagster_database(url: str) -> bool:
    """Return whether `url` is derived: Dagster's database on a project's own server, wherever the project is."""
    parts = urlsplit(url)
    return (
        not parts.hostname
        and parts.username == project.ROLE
        and parts.path.strip("/") in project.DAGSTER_DATABASES.values()
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
