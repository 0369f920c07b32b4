"""What a security's changes of ticker mean."""

from __future__ import annotations

import csv
from datetime import date

import pytest

from market_data_pipeline.domain.identity import NOBODY, Identity, Tenure, tenures_of
from market_data_pipeline_tests.recorded import FULL, needs_full

MAP_FILES = FULL / "actions" / "map_files"


def test_each_ticker_lasts_until_the_next_one() -> None:
    changes = [(date(2022, 6, 9), "META"), (date(2012, 5, 18), "FB"), (date(2022, 6, 9), "META")]
    assert tenures_of(changes) == (
        Tenure("FB", date(2012, 5, 18), date(2022, 6, 9)),
        Tenure("META", date(2022, 6, 9), None),
    )
    identity = Identity("BBG000MM2P62", tenures_of(changes))
    days = (date(2012, 5, 17), date(2012, 5, 18), date(2022, 6, 8), date(2022, 6, 9), date(2026, 1, 2))
    assert [identity.ticker_on(day) for day in days] == [NOBODY, "FB", "FB", "META", "META"]


# Lean's map files name the last day of each ticker. The tickers of these five before and after each change are facts.
KNOWN = {
    "aapl": (("AAPL",), ()),
    "spy": (("SPY",), ()),
    "goog": (("GOOCV", "GOOG"), (date(2014, 4, 3),)),
    "googl": (("GOOG", "GOOGL"), (date(2014, 4, 3),)),
    "wm": (("UW", "WMI", "WM"), (date(1998, 7, 17), date(2009, 8, 5))),
}


@needs_full
@pytest.mark.parametrize("name", KNOWN)
def test_the_tickers_of_known_securities_are_those_of_the_map_files(name: str) -> None:
    with (MAP_FILES / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
        rows = [(date.fromisoformat(day), ticker.upper()) for day, ticker, _ in csv.reader(lines)]
    tickers, changed = KNOWN[name]
    identity = Identity(name, tenures_of(zip([rows[0][0], *changed], tickers, strict=True)))
    for day, ticker in rows:  # the last day of each
        assert identity.ticker_on(min(day, date(2026, 1, 2))) == ticker
    for change, after in zip(changed, tickers[1:], strict=True):
        assert identity.ticker_on(change) == after
