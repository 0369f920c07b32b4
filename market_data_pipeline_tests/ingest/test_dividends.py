"""Dividends from the vendor's list into the database: when it is read, what is corrected, and what is reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.identity import Identity, Tenure
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.dividends import with_symbols
from market_data_pipeline.sandbox.bars import DividendRow
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.ingest.faults.vendor import Exchange, FaultyVendor
from market_data_pipeline_tests.polygon.faulty_server import send_json
from market_data_pipeline_tests.recorded import SAMPLE

# Recorded bars of Apple around its 7-for-1 split of 9 June 2014.
NOON = datetime(2014, 6, 10, 12, 0, tzinfo=NEW_YORK)
REGULAR = DividendRow("AAPL", date(2014, 5, 8), 3.29, "USD", date(2014, 4, 23), date(2014, 5, 12), date(2014, 5, 15))
SPECIAL = DividendRow("AAPL", date(2014, 6, 20), 0.5, declared=date(2014, 6, 1), frequency=0, type="special")
OLD = DividendRow("AAPL", date(2005, 1, 3), 0.1)
DAYS = (Timeframe.D1,)


@dataclass
class Listed:
    """Apple at a vendor whose list of dividends changes."""

    world: World
    vendor: FaultyVendor
    source: ChangingSource

    def list(self, *dividends: DividendRow) -> None:
        self.source.dividends_listed = [*dividends]

    def refresh(self, *symbols: str, full: bool = False) -> list[str | None]:
        """Refresh day bars; return the warnings."""
        outcomes = self.world.refresh(*(symbols or ("AAPL",)), timeframes=DAYS, history_days=20, full=full)
        assert not [outcome.error for outcome in outcomes.values() if outcome.failed]
        return [outcome.warning for outcome in outcomes.values()]

    def asked(self) -> list[dict[str, str]]:
        """The requests for dividends since the last call: path and parameters."""
        targets = [urlsplit(seen.target) for seen in self.vendor.seen if "dividends" in seen.target]
        self.vendor.seen.clear()
        return [{"path": one.path, **{name: text for name, [text] in parse_qs(one.query).items()}} for one in targets]

    def held(self, relation: str = "dividends") -> list[tuple[object, ...]]:
        rows = self.world.query(f"select * from market_data.{relation} order by ex_date, amount, first_seen_at")
        return [(row["ex_date"], row["amount"], row["first_seen_at"], row.get("superseded_at")) for row in rows]

    def later(self, **by: float) -> None:
        self.world.now += timedelta(**by)


@pytest.fixture
def listed(database_url: str) -> Iterator[Listed]:
    source = ChangingSource(open_source(SAMPLE), dividends_listed=[OLD, REGULAR, SPECIAL])
    world = World("", database_url, NOON)
    vendor = FaultyVendor(source, world.clock)
    with vendor:
        world.base_url = vendor.url
        yield Listed(world, vendor, source)


def test_a_history_is_read_once_and_then_the_markets_list_once_a_day(listed: Listed) -> None:
    assert listed.refresh("AAPL", "MSFT") == [None, None]
    [first] = listed.asked()
    assert first == {
        "path": "/stocks/v1/dividends", "ticker.any_of": "AAPL,MSFT", "limit": "5000", "sort": "ex_dividend_date.asc",
    }  # fmt: skip
    [row] = listed.world.query("select * from market_data.dividends where ex_date = '2014-05-08'")
    assert row.pop("vendor_id")
    assert row == {
        "symbol": "AAPL", "ex_date": REGULAR.ex_date, "amount": 3.29, "currency": "USD",
        "declaration_date": REGULAR.declared, "record_date": REGULAR.record, "pay_date": REGULAR.pay, "frequency": 4,
        "type": "recurring", "first_seen_at": NOON,
    }  # fmt: skip
    assert [row[:2] for row in listed.held()] == [(each.ex_date, each.amount) for each in (OLD, REGULAR, SPECIAL)]
    listed.later(minutes=15)
    listed.refresh("AAPL", "MSFT")
    assert listed.asked() == []
    listed.later(days=1)
    listed.refresh("AAPL")
    assert [each["ex_dividend_date.gte"] for each in listed.asked()] == ["2014-04-26"]  # 45 days before the last
    listed.later(days=30)
    listed.refresh("AAPL", "XOM")
    market, new = listed.asked()
    assert (market["ex_dividend_date.gte"], new["ticker"]) == ("2014-04-27", "XOM")
    listed.refresh("AAPL", full=True)
    assert [each["ticker"] for each in listed.asked()] == ["AAPL"]


def test_corrections_and_withdrawals_of_a_month_ago_keep_what_was_known(listed: Listed) -> None:
    listed.refresh()
    listed.later(days=20)
    postponed = REGULAR._replace(pay=date(2014, 6, 30))
    listed.list(OLD, postponed, SPECIAL._replace(amount=0.75))
    listed.refresh()
    second = listed.world.now
    listed.later(days=1)
    listed.list(postponed)
    listed.refresh()
    third = listed.world.now
    assert listed.held() == [
        (OLD.ex_date, 0.1, NOON, None),  # before the days that are listed
        (REGULAR.ex_date, 3.29, second, None),
    ]
    assert listed.held("dividend_revisions") == [
        (REGULAR.ex_date, 3.29, NOON, second),
        (SPECIAL.ex_date, 0.5, NOON, second),
        (SPECIAL.ex_date, 0.75, second, third),
    ]
    known = "select ex_date, amount, pay_date from market_data.dividends_as_of(%s) order by ex_date"
    assert [row["amount"] for row in listed.world.query(known, NOON - timedelta(microseconds=1))] == []
    assert [row["amount"] for row in listed.world.query(known, NOON)] == [0.1, 3.29, 0.5]
    assert [row["amount"] for row in listed.world.query(known, second)] == [0.1, 3.29, 0.75]
    assert [row["pay_date"] for row in listed.world.query(known, third)] == [None, postponed.pay]
    changes = "select change, amount from market_data.dividend_changes where ex_date >= '2014-05-01' order by id"
    assert sorted(tuple(row.values()) for row in listed.world.query(changes)) == [
        ("delete", 0.5), ("delete", 0.75), ("insert", 0.5), ("insert", 0.75), ("insert", 3.29), ("update", 3.29),
    ]  # fmt: skip


def test_a_list_that_lacks_most_of_what_is_known_withdraws_nothing(listed: Listed) -> None:
    weekly = [DividendRow("AAPL", date(2014, 5, 1) + timedelta(days=at), 0.1 + at / 100) for at in range(12)]
    listed.list(*weekly)
    listed.refresh()
    listed.later(days=1)
    listed.list()
    listed.refresh()
    assert len(listed.held()) == 12


def test_a_row_that_cannot_be_read_is_reported_until_it_can_and_leaves_the_symbol_as_it_is(listed: Listed) -> None:
    listed.refresh()
    wrong = {"ticker": "AAPL", "ex_dividend_date": "2014-05-08", "cash_amount": None}
    nameless = {"ex_dividend_date": "2014-05-08", "cash_amount": 1}
    strange = {"ticker": "NONE", "ex_dividend_date": "31.5.2014", "cash_amount": 1}
    page = send_json({"status": "OK", "request_id": "x", "results": [wrong, nameless, strange]})
    listed.vendor.inject(lambda _: page, of_dividends)
    listed.later(days=1)
    for _ in range(2):
        [warning] = listed.refresh()
        assert warning is not None
        assert "A dividend of AAPL is left out until it can be read: dividends, row 0, field cash_amount" in warning
        assert "A dividend of an unnamed ticker is left out until it can be read: dividends, row 1" in warning
        assert "NONE" not in warning
        assert len(listed.held()) == 3
    listed.later(days=1)
    assert listed.refresh() == [None]
    assert listed.held("dividend_revisions") == []


def of_dividends(exchange: Exchange) -> bool:
    return "dividends" in exchange.target


def test_bars_do_not_wait_for_dividends_that_cannot_be_read(listed: Listed) -> None:
    gone = send_json({"status": "NOT_FOUND", "request_id": "x", "message": "Not found"}, 404)
    listed.vendor.inject(lambda _: gone, of_dividends, times=2)
    [warning] = listed.refresh()
    assert warning is not None
    assert "Dividends could not be read, so total returns are adjusted for those known before: " in warning
    assert [each["path"] for each in listed.asked()] == ["/stocks/v1/dividends", "/v3/reference/dividends"]
    assert listed.world.query("select count(*) > 10 as some from market_data.bars") == [{"some": True}]
    assert listed.world.query("select name from market_data.reference_failures") == [{"name": "dividends"}]
    assert listed.refresh() == [None]
    assert len(listed.held()) == 3
    assert listed.world.query("select name from market_data.reference_failures") == []


def test_the_older_list_gives_the_same_dividends(listed: Listed) -> None:
    listed.refresh()
    before = listed.held()
    gone = send_json({"status": "NOT_FOUND", "request_id": "x", "message": "Not found"}, 404)
    listed.vendor.inject(lambda _: gone, lambda exchange: exchange.target.startswith("/stocks/v1/dividends"))
    listed.refresh("AAPL", "MSFT", full=True)
    present, apple, microsoft = listed.asked()[-3:]
    assert (present["ticker.any_of"], apple["ticker"], microsoft["ticker"]) == ("AAPL,MSFT", "AAPL", "MSFT")
    assert listed.held() == before
    assert listed.world.query("select distinct type from market_data.dividends order by 1") == [
        {"type": "recurring"}, {"type": "special"},
    ]  # fmt: skip


def test_a_row_of_an_old_ticker_that_cannot_be_read_leaves_its_securitys_symbol_as_it_is() -> None:
    meta = Identity("BBG000MM2P62", (Tenure("FB", None, date(2022, 6, 9)), Tenure("META", date(2022, 6, 9))))
    assert with_symbols({"FB": "row 3", "": "row 4"}, {"META": meta}) == {"FB": "row 3", "META": "row 3", "": "row 4"}
