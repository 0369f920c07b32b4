"""`python -m market_data_pipeline_tests.lock_platforms`: where requirements.lock installs without a compiler.

`make lock` runs it, because it asks the package index. It writes `requirements.platforms`, which a test reads offline.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements.lock"
FOUND: Final = ROOT / "requirements.platforms"
PLATFORMS: Final = (
    "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-apple-darwin",
)  # fmt: skip
_HEADING: Final = "# Written by `make lock`: what of requirements.lock has no wheel for a platform (Python 3.11).\n"


def digest() -> str:
    """Return what identifies the lock that was looked at."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def without_wheel(platform: str) -> list[str]:
    """Return the locked packages that have no wheel for a platform."""
    pins = re.findall(r"^[a-z0-9.\-]+==.*?(?= \\$)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    missing: list[str] = []
    while True:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as left:
            left.write("\n".join(pin for pin in pins if pin.partition("==")[0] not in missing))
            left.flush()
            done = subprocess.run(
                [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-deps",
                 "--only-binary", ":all:", "--python-version", "3.11", "--python-platform", platform, left.name],
                env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}, capture_output=True, text=True,
            )  # fmt: skip
        if done.returncode == 0:
            return sorted(missing)
        lacking = re.search(r"Because ([a-z0-9.\-]+)==\S+ has no usable wheels", done.stderr)
        if lacking is None or lacking[1] in missing:
            raise SystemExit(done.stderr)
        missing.append(lacking[1])


def main() -> None:
    """Write what each platform lacks."""
    lines = [f"{platform}: {', '.join(without_wheel(platform)) or 'nothing'}" for platform in PLATFORMS]
    FOUND.write_text(_HEADING + "\n".join([f"sha256 of the lock: {digest()}", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
