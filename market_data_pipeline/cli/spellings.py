"""Options as they were spelled before 0.2: understood for one release more, with a notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.objectives import Outage

if TYPE_CHECKING:
    from collections.abc import Sequence

# Commands whose `--json` once took the file's name.
_WITH_FILE: Final = frozenset({"objectives", "baseline", "drill", "loadtest"})
# Commands whose `--symbols` once was a number.
_WITH_COUNT: Final = frozenset({"baseline", "loadtest"})


def present(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments as they are spelled now, and a notice for each that was not."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    found: list[str] = []
    notices: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        follows = value if equals else rest[0] if rest else None
        new = _now(command, name, follows)
        if new is None:
            found.append(argument)
            continue
        if not equals:
            rest.pop(0)
        found += new
        notices.append(f"{name} {follows} is now written {' '.join(new)}; the next release refuses the old spelling.")
    return found, notices


def _now(command: str | None, name: str, value: str | None) -> list[str] | None:
    """Return how an option with this value is written now; None if it is written as it was."""
    if value is None:
        return None
    if name == "--json" and command in _WITH_FILE:
        if value == "-":
            return ["--json"]
        return None if value.startswith("-") or value in Outage.__members__ else ["--output", value]
    if name == "--symbols" and command in _WITH_COUNT and value.isdecimal():
        return ["--symbol-count", value]
    return ["--timeframes", value] if name == "--timeframe" else None
