"""All measurements that have a target, one after the other: `python -m benchmarks [NAME …]`, exit code 1 on a miss.

Their figures go into docs/performance.md, those of benchmarks that were not run now as they were.
"""

from __future__ import annotations

import sys
from typing import Final

from benchmarks import api_memory, backfill, document, features, growth, latency, memory, peers, staleness, start, ticks
from benchmarks.report import show

_ALL: Final = {
    "backfill": backfill.measure,
    "peers": peers.measure,
    "growth": growth.measure,
    "start": start.measure,
    "features": features.measure,
    "latency": latency.measure,
    "memory": memory.measure,
    "api_memory": api_memory.measure,
    "staleness": staleness.measure,
    "ticks": ticks.measure,
}


def main() -> int:
    """Run the named ones, or all, and return the exit code."""
    chosen = sys.argv[1:] or list(_ALL)
    if unknown := [name for name in chosen if name not in _ALL]:
        print(f"Unknown: {', '.join(unknown)}; known are {', '.join(_ALL)}.", file=sys.stderr)
        return 2
    code = max(show(name, _ALL[name]()) for name in chosen)
    return max(code, document.main())


if __name__ == "__main__":
    sys.exit(main())
