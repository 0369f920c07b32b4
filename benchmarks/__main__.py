"""All measurements that have a target, one after the other: `python -m benchmarks [NAME …]`, exit code 1 on a miss."""

from __future__ import annotations

import sys
from typing import Final

from benchmarks import features, latency, memory, staleness, ticks
from benchmarks.report import show

_ALL: Final = {
    "features": features.measure,
    "latency": latency.measure,
    "memory": memory.measure,
    "staleness": staleness.measure,
    "ticks": ticks.measure,
}


def main() -> int:
    """Run the named ones, or all, and return the exit code."""
    chosen = sys.argv[1:] or list(_ALL)
    if unknown := [name for name in chosen if name not in _ALL]:
        print(f"Unknown: {', '.join(unknown)}; known are {', '.join(_ALL)}.", file=sys.stderr)
        return 2
    return max(show(name, _ALL[name]()) for name in chosen)


if __name__ == "__main__":
    sys.exit(main())
