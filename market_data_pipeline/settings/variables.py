"""What variables say besides their own values: `NAME_FILE` names a file that holds the value of `NAME`.

Containers give secrets as files (`/run/secrets/…`), so that they are not in the environment of every process. It works
for every variable. `NAME` itself wins, as a command's own processes get it there.

Keep out: which variables there are, and what they mean (`settings`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_LARGEST: Final = 65_536  # bytes of a value; a file that is larger is not meant

# What people call the key elsewhere. POLYGONSCAN_API_KEY and POLYGON_PRIVATE_KEY belong to a blockchain.
_MISNAMED_KEY: Final = re.compile(
    r"(MARKET_DATA_)?(POLYGON|MASSIVE)_?(IO|COM)?_?(API|ACCESS|AUTH)?_?(KEY|TOKEN)(_?(FILE|PATH))?", re.IGNORECASE
)


def file_variable(name: str) -> str:
    """Return the variable that names the file with the value of the variable `name`."""
    return f"{name}_FILE"


def with_files(variables: Mapping[str, str | None], known: Collection[str], root: Path) -> dict[str, str | None]:
    """Return the variables with the values of those of `known` that only name a file; the file's last line end is none.

    A relative path begins at `root`.

    Raises:
        ConfigurationError: a file cannot be read, or holds nothing; the message names it and shows nothing of it.
    """
    found = dict(variables)
    for name in known:
        path = (variables.get(file_variable(name)) or "").strip()
        if path and not (variables.get(name) or "").strip():
            found[name] = _content(file_variable(name), path, root)
    return found


def _content(variable: str, path: str, root: Path) -> str:
    try:
        file = root / type(root)(path).expanduser()
        with file.open("rb") as stream:
            text = stream.read(_LARGEST + 1).decode()
        problem = "which holds nothing" if not text.strip() else "which is too large" if len(text) > _LARGEST else ""
    except UnicodeDecodeError:
        problem = "which is not text in UTF-8"
    except (OSError, RuntimeError, ValueError) as error:  # a home that is not known, a name that no file can have
        problem = f"which cannot be read: {getattr(error, 'strerror', None) or error}"
    if problem:
        raise ConfigurationError(f"{variable} is {path!r}, {problem}; for example {variable}=/run/secrets/name")
    return text.strip()


def refuse_misnamed_key(variables: Mapping[str, str | None], known: Collection[str]) -> None:
    """Raise when a variable that is not read looks like the vendor's key: synthetic bars are not what its owner wants.

    Raises:
        ConfigurationError: names the variable and the right one.
    """
    for name in sorted(variables):
        if name not in known and _MISNAMED_KEY.fullmatch(name) and (variables[name] or "").strip():
            raise ConfigurationError(
                f"{name} is set, but the vendor's key is read from POLYGON_API_KEY or MASSIVE_API_KEY, or from a file "
                "that POLYGON_API_KEY_FILE or MASSIVE_API_KEY_FILE names: rename it, for example "
                "POLYGON_API_KEY=your-key, or unset it to use the sandbox's synthetic bars."
            )
