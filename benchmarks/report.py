"""How measurements are shown: a table for people, and JSON for comparing runs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

# Outside version control, because figures belong to the machine they were taken on.
RESULTS: Final = Path(__file__).resolve().parent.parent / ".market-data" / "benchmarks"


@dataclass(frozen=True)
class Measurement:
    """One figure, and its target if it has one."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The target in words, empty when there is none."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""

    @property
    def reached(self) -> bool:
        """Whether the target is met; True when there is none."""
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)


def show(name: str, measurements: Sequence[Measurement]) -> int:
    """Print a table, store `RESULTS/name.json`, and return the exit code: 1 when a target is missed."""
    width = max(len(each.name) for each in measurements)
    for each in measurements:
        verdict = "" if not each.target else "reached" if each.reached else "MISSED"
        print(f"{each.name:<{width}}  {each.value:10.2f} {each.unit:<6} {each.target:<8} {verdict}")
        if each.details:
            shown = (
                f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in each.details.items()
            )
            print(f"{'':<{width}}  {', '.join(shown)}")
    document = {
        "benchmark": name,
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],  # of the last minute; well above our own threads, other work was running too
        "measurements": [
            {
                "name": each.name,
                "value": each.value,
                "unit": each.unit,
                "at_least": each.at_least,
                "at_most": each.at_most,
                "reached": each.reached,
                **each.details,
            }
            for each in measurements
        ],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"Stored in {path}", file=sys.stderr)
    return 0 if all(each.reached for each in measurements) else 1
