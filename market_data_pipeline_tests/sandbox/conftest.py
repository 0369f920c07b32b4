"""One synthetic server for all tests that only read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from market_data_pipeline_tests.sandbox.vendor import Vendor, vendor


@pytest.fixture(scope="package")
def market() -> Iterator[Vendor]:
    with vendor() as client:
        yield client
