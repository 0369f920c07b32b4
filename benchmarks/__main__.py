"""Runs all measurements that have a target: `python -m benchmarks [NAME …]`, exit code 1 on a miss.

Each runs in its own process, so that none is affected by what another left in memory, and one that fails or hangs does
not lose the others' figures. At the end docs/performance.md is updated with the new figures; those of benchmarks that
did not run, or failed, are kept.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Final

from benchmarks import document
from benchmarks.place import REPOSITORY
from benchmarks.report import RESULTS

_MOST_SECONDS: Final = 1200.0  # more than twice what the longest takes; after that, something hangs
_END_SECONDS: Final = 90.0  # to stop its servers after a signal


def main() -> int:
    """Run the named benchmarks, or all, and return the exit code."""
    chosen = sys.argv[1:] or list(document.ORDER)
    if unknown := [name for name in chosen if name not in document.ORDER]:
        print(f"Unknown: {', '.join(unknown)}; known are {', '.join(document.ORDER)}.", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    said = []
    for position, name in enumerate(chosen, start=1):
        print(f"\n[{position}/{len(chosen)}] {name} ...", file=sys.stderr, flush=True)
        began = time.time()
        try:
            code = _run(name)
        except KeyboardInterrupt:
            print(f"Stopped in {name}; what was measured before is in {RESULTS}.", file=sys.stderr)
            return 130
        result = RESULTS / f"{name}.json"
        measured = result.exists() and result.stat().st_mtime >= began
        verdict = "FAILED" if not measured else "a target MISSED" if code else "done"
        said.append((name, verdict))
        print(f"[{position}/{len(chosen)}] {name}: {verdict} after {time.time() - began:.0f} s", file=sys.stderr)
    written = document.main()
    for name, verdict in said:
        if verdict != "done":
            print(f"{name}: {verdict}", file=sys.stderr)
    return max(written, *(verdict != "done" for _, verdict in said))


def _run(name: str) -> int:
    """Run one benchmark and return its exit code."""
    process = subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}"], cwd=REPOSITORY)  # noqa: S603 - ours
    try:
        return process.wait(_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{name} has not ended after {_MOST_SECONDS:.0f} s and is stopped.", file=sys.stderr)
        return 1
    finally:
        if process.poll() is None:
            process.terminate()  # a child of a background job ignores SIGINT
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
