"""The file that says which security a symbol is where the vendor is wrong."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.identity import Tenure
from market_data_pipeline.ingest.corporate_actions import NAME, read_overrides
from market_data_pipeline.settings.project import PACKAGE


def test_the_packaged_file_says_when_fb_became_meta() -> None:
    assert read_overrides(PACKAGE / NAME)["META"].tenures == (
        Tenure("FB", date(2012, 5, 18), date(2022, 6, 9)),
        Tenure("META", date(2022, 6, 9), None),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("securities: [", "line 1: this is not YAML"),
        ("securities: {ON: {reason: r, tickers: [{ticker: ON, form: 2020-01-01}]}}", "securities.ON.tickers.0.form"),
        ("securities: {A: {tickers: [{ticker: A}]}}", "securities.A.reason: Field required"),
        (
            "securities: {A: {reason: r, tickers: [{ticker: B, until: 2020-01-02}, {ticker: A, from: 2020-01-01}]}}",
            "A must begin when B has ended",
        ),
        (
            "securities: {A: {reason: r, tickers: [{ticker: A, from: 2020-01-02, until: 2020-01-02}]}}",
            "A ends on 2020-01-02, which is not after 2020-01-02",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ConfigurationError, match=NAME) as failure:
        read_overrides(tmp_path / NAME)
    assert said in str(failure.value)
