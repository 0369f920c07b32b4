"""On which platforms the locked requirements install without a compiler, as `make lock` last found it."""

from __future__ import annotations

from market_data_pipeline_tests.lock_platforms import FOUND, PLATFORMS, digest


def test_all_of_the_lock_has_wheels_for_linux_on_both_processors_and_for_apple_silicon() -> None:
    found = dict(
        line.split(": ") for line in FOUND.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    )

    assert found.pop("sha256 of the lock") == digest(), "requirements.lock was changed by other means than `make lock`"
    assert found == dict.fromkeys(PLATFORMS, "nothing") | {
        # These two have given up Intel Macs.
        "x86_64-apple-darwin": "bottleneck, cryptography"
    }
