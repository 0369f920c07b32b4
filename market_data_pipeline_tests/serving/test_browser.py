"""The pages in a real browser: what they show, by mouse, keyboard and screen reader, in light and dark."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline_tests.serving.browser import SCREEN, Reader
from market_data_pipeline_tests.serving.conftest import Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.serving.test_reports import STALENESS, seed_universe
from market_data_pipeline_tests.waiting import is_open, until

CELLS = ".matrix td a"
FOCUSED = "document.activeElement.getAttribute('href')"


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """The tab of all readers: a new one would cost each of them more than the pages."""
    context = browser.new_context(viewport=SCREEN)
    yield context.new_page()
    context.close()


@pytest.fixture
def reader(tab: Page, api: Api) -> Iterator[Reader]:
    """A reader; in the end nothing was requested from another host, and the browser reported no problem."""
    someone = Reader(tab, api.base)
    yield someone
    someone.leave()
    assert [url for url in someone.requested if not url.startswith(api.base + "/")] == []
    assert someone.complaints == []


def drawn_chart(reader: Reader, path: str = "/series/AAPL/5m") -> Page:
    page = reader.open(path)
    page.wait_for_selector("#chart[data-drawn] canvas")
    return page


@pytest.mark.usefixtures("dagster_instance")
def test_the_matrix_shows_the_apis_verdicts(reader: Reader, api: Api, seed: Seed) -> None:
    seed_universe(seed)
    page = reader.open()
    shown = page.eval_on_selector_all(
        ".matrix td", "cells => cells.map(c => [c.querySelector('a').getAttribute('href'), c.className.split(' ')[0]])"
    )
    report = api.get(STALENESS, limit=1000).json()["by_status"]
    assert dict(shown) == {
        f"series/{one['symbol']}/{one['timeframe']}": status.upper() for status, each in report.items() for one in each
    }
    nvda = page.get_by_role("link", name="NVDA 5m: 9h late, stale, 3 failures in a row, outside its RPO")
    assert nvda.get_attribute("href") == "series/NVDA/5m"


def test_the_keyboard_moves_through_the_matrix_and_opens_a_series(reader: Reader, seed: Seed) -> None:
    for symbol in ("AAPL", "AMZN", "MSFT", "NVDA"):
        seed.series(symbol)
    page = reader.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.matrix td a')"):
            break
    walked = [page.evaluate(FOCUSED)]
    for key in ("ArrowRight", "ArrowDown", "End", "ArrowRight", "ArrowDown", "ArrowDown", "Home", "ArrowUp"):
        page.keyboard.press(key)
        walked.append(page.evaluate(FOCUSED).removeprefix("series/"))
    assert walked == [
        "series/AAPL/5m", "AAPL/15m", "AMZN/15m", "AMZN/1d", "AMZN/1d", "MSFT/1d", "NVDA/1d", "NVDA/5m", "MSFT/5m"
    ]  # fmt: skip
    assert page.locator(f"{CELLS}[tabindex='0']").count() == 1  # Tab leaves the matrix instead of walking it
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{reader.base}/series/MSFT/5m")
    expect(page.get_by_role("heading", level=1)).to_have_text("MSFT 5m")


@pytest.mark.usefixtures("dagster_instance")
def test_axe_finds_nothing_wrong(reader: Reader, seed: Seed) -> None:
    seed_universe(seed)
    seed.log("run", "NVDA", "5m", "failed", error_class="DataError", error="prices below zero", warning="a warning")
    seed.correct("NVDA", "5m", NOW - timedelta(minutes=60), 70.0, NOW)
    page = reader.open()
    page.get_by_text("resolved or not").click()
    assert violations_in_both_schemes(reader) == []
    page = drawn_chart(reader, "/series/NVDA/5m")
    page.get_by_text("The newest bars as a table").click()
    page.get_by_text("Coverage as a table").click()
    assert violations_in_both_schemes(reader) == []
    reader.open("/series/NOPE/5m")
    assert violations_in_both_schemes(reader) == []
    reader.expect_refusals()


def violations_in_both_schemes(reader: Reader) -> list[str]:
    """Return what axe finds wrong in light, and in dark, in which only colours differ."""
    reader.page.emulate_media(color_scheme="light", reduced_motion="reduce")  # no colour is on its way to another
    found = reader.violations()
    reader.page.emulate_media(color_scheme="dark")
    return found + reader.violations("cat.color")


def test_an_update_keeps_focus_scroll_and_filter_and_announces_what_changed(reader: Reader, seed: Seed) -> None:
    for number in range(60):
        seed.series(f"S{number:02}", count=1)
    page = reader.open()
    page.get_by_role("searchbox").fill("s5")
    expect(page.locator(".matrix tbody tr:visible")).to_have_count(10)
    page.locator("a[href='series/S58/5m']").focus()
    page.evaluate("scrollBy(0, 100)")
    before = page.evaluate("scrollY")
    late = "update market_data.series_state set next_due_at = %s where symbol = %s"
    with seed.connection.transaction():  # the page may update itself at any time
        seed.run(late, NOW - timedelta(hours=9), "S58")
        seed.run(late, NOW - timedelta(hours=2), "S20")

    reader.update()

    expect(page.locator("td.STALE")).to_have_count(1)
    assert page.evaluate(FOCUSED) == "series/S58/5m"
    assert page.evaluate("scrollY") == before
    expect(page.locator(".matrix tbody tr:visible")).to_have_count(10)
    expect(page.locator("#changes")).to_have_text(
        "Changed: 58 fresh, previously 60; 1 aging, previously 0; 1 stale, previously 0; 2 outside RPO, previously 0."
    )
    page.get_by_label("! stale 1").check()
    expect(page.locator(".matrix tbody tr:visible")).to_have_count(1)
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("No series matches.")).to_be_visible()


def test_a_page_that_cannot_be_updated_says_since_when(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL")
    page = reader.open()
    seed.run("alter schema market_data rename to elsewhere")
    reader.update()
    expect(page.locator("#trouble")).to_have_text(
        "The database cannot be reached. This page shows the state of 2026-03-11 15:00:00Z."
    )
    assert page.locator("td.FRESH").count() == 1
    seed.run("alter schema elsewhere rename to market_data")
    reader.update()
    expect(page.locator("#trouble")).to_be_hidden()
    reader.expect_refusals()


def test_a_page_whose_server_hangs_says_so(browser: Browser, seed: Seed, database_url: str, tmp_path: Path) -> None:
    seed.series("AAPL")
    [port] = free_ports(1)
    environment = {
        **os.environ, "DATABASE_URL": database_url, "MARKET_DATA_PROJECT_ROOT": str(tmp_path),
        "MARKET_DATA_AS_OF": NOW.isoformat(), "MARKET_DATA_API_PORT": str(port), "MARKET_DATA_API_HOST": "127.0.0.2",
    }  # fmt: skip
    process = psutil.Popen([sys.executable, "-m", "market_data_pipeline.runtime.api"], env=environment)
    try:
        until(lambda: is_open(port, "127.0.0.2"))
        assert not is_open(port)
        context = browser.new_context()
        page = context.new_page()
        page.clock.install(time=NOW)
        page.clock.pause_at(NOW)  # from here on it moves as told, however long anything takes
        page.goto(f"http://127.0.0.2:{port}/")
        expect(page.locator("td.FRESH")).to_have_count(1)
        process.suspend()
        page.clock.run_for(35_000)  # an update was due after 30
        expect(page.locator("#age")).to_have_text(" (35 s ago)")
        page.clock.run_for(10_000)
        expect(page.locator("#trouble")).to_contain_text(
            "The API has not answered for 10 s. This page shows the state of"
        )
        expect(page.locator("#age.old")).to_be_visible()
        process.resume()
        page.clock.run_for(15_000)  # 60 s: the next update
        expect(page.locator("#trouble")).to_be_hidden()
        page.clock.run_for(5_000)
        expect(page.locator("#age.old")).to_have_count(0)
        context.close()
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.usefixtures("dagster_instance")
def test_five_hundred_symbols_are_paged_filtered_and_folded(reader: Reader, seed: Seed) -> None:
    seed.run("insert into market_data.symbols select 'S' || i, case when i <= 100 then 'critical' else 'standard' end,"
             " 'us_equity', true, %s from generate_series(1, 500) as i", NOW)  # fmt: skip
    seed.run(
        "insert into market_data.series_state (symbol, timeframe, tier, next_due_at, features_computed_at)"
        " select symbol, unnest(array['5m', '15m', '1h', '4h', '1d']), tier, %s, %s from market_data.symbols",
        NOW + timedelta(minutes=5),
        NOW,
    )
    seed.run(
        "update market_data.series_state set consecutive_failures = 2, last_error = 'no answer' where symbol = 'S7'"
    )
    page = reader.open()
    rows, shown = page.locator(".matrix tbody tr:visible"), page.locator("#shown")
    assert page.locator(CELLS).count() == 500
    assert first_links(page) == [f"S7 {timeframe}" for timeframe in ("5m", "15m", "1h", "4h", "1d")]
    links = page.locator("#matrix").get_by_role("link").evaluate_all(NAMED)
    assert len(dict(links)) == len(set(map(tuple, links)))  # one name, one address
    expect(shown).to_have_text("1 to 100 of 500 symbols, worst first")
    page.get_by_role("link", name="Next").click()
    expect(shown).to_have_text("101 to 200 of 500 symbols, worst first")
    page.get_by_role("searchbox").fill("s49")
    expect(shown).to_have_text("11 of 500 symbols, worst first")
    expect(rows).to_have_count(11)
    page.reload()  # what is shown stands in the address
    expect(page.get_by_role("searchbox")).to_have_value("s49")
    expect(rows).to_have_count(11)
    page.get_by_role("searchbox").fill("")
    page.get_by_label("Tier").select_option("critical")
    expect(shown).to_have_text("100 of 500 symbols, worst first")
    page.get_by_label("Order").select_option("by symbol")
    expect(shown).to_have_text("100 of 500 symbols")
    page.locator("a[href='series/S10/5m']").focus()
    page.keyboard.press("Control+End")
    assert page.evaluate(FOCUSED) == "series/S99/1d"
    page.locator("#tier-critical summary").click()
    expect(rows).to_have_count(0)


def test_what_is_typed_before_the_page_is_ready_is_searched_for(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL")
    seed.series("MSFT")
    # The page is read, and its scripts have not begun: no event of the field reaches them.
    page = reader.page.context.new_page()
    page.add_init_script(
        "document.addEventListener('readystatechange', () => {"
        " if (document.readyState === 'interactive') document.querySelector('[type=search]').value = 'msft' })"
    )
    page.goto(f"{reader.base}/")
    expect(page.locator(".matrix tbody tr:visible")).to_have_count(1)
    page.close()


def test_the_scheme_follows_the_system_until_the_reader_chooses(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL")

    def background(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    reader.page.emulate_media(color_scheme="light")
    page = reader.open()
    light = background(page)
    page.emulate_media(color_scheme="dark")
    dark = background(page)
    assert dark != light
    page.get_by_role("button", name="Theme: auto").click()
    assert background(page) == light
    page.reload()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert background(page) == light
    page.get_by_role("button", name="Theme: light").click()
    page.emulate_media(color_scheme="light")
    assert background(page) == dark


NAMED = "all => all.map(a => [a.ariaLabel ?? a.textContent.trim(), a.getAttribute('href')])"


def first_links(page: Page) -> list[str]:
    """Return the links of the first section, which the first screen shows."""
    section = page.locator("section").first
    box = section.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < page.viewport_size["height"]  # type: ignore[index]
    return section.get_by_role("link").all_inner_texts()


# What is not visible although nothing hides it on purpose: beyond the screen, or cut off by its box.
CUT = """() => [...document.querySelectorAll('body *')].filter((one) => {
  const style = getComputedStyle(one);
  if (!one.checkVisibility() || one.closest('.vh, .skip, svg, #chart, thead')) return false;
  const beyond = one.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
  return beyond || (style.overflowX !== 'visible' && one.scrollWidth > one.clientWidth + 1);
}).map((one) => `${one.tagName} ${one.className} ${one.textContent.trim().slice(0, 60)}`)"""


@pytest.mark.usefixtures("dagster_instance")
def test_nothing_is_cut_off(reader: Reader, seed: Seed) -> None:
    error = "The vendor answered 503 to https://vendor.example/v2/aggs/ticker/X:BTCUSD/range/5/minute/2026-03-10/x: no"
    failing = {"consecutive_failures": 3, "last_error": error, "last_error_class": "TransientError"}
    seed.series("X:LONGNAMEUSD", count=40, first=NOW - timedelta(minutes=210), late=timedelta(hours=9), **failing)
    seed.log("run", "X:LONGNAMEUSD", "5m", "failed", error_class="TransientError", error=error, warning=error)
    seed.correct("X:LONGNAMEUSD", "5m", NOW - timedelta(minutes=60), 70.0, NOW)
    for path in ("/", "/series/X:LONGNAMEUSD/5m"):
        reader.page.set_viewport_size({"width": 320, "height": 800})
        page = drawn_chart(reader, path) if path != "/" else reader.open()
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        if path != "/":
            expect(page.locator("#bars-table tbody tr")).to_have_count(30)
        expect(page.get_by_text("answered 503").first).to_be_visible()
        for width in (320, 1280, 640):  # 640 is 1280 at 200 %
            page.set_viewport_size({"width": width, "height": 800})
            until(partial(fits, page, width))  # the chart follows the screen's width
            assert page.evaluate(CUT) == []


def fits(page: Page, width: int) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth") <= width)


COLOURS = """() => {
  const found = new Set();
  for (const canvas of document.querySelectorAll('#chart canvas')) {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) found.add(`${data[i]},${data[i+1]},${data[i+2]}`);
  }
  return [...found];
}"""


def test_the_chart_draws_the_bars_and_the_chosen_features(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", count=40, first=NOW - timedelta(minutes=210))
    page = drawn_chart(reader)
    readout = page.locator("#readout")
    expect(readout).to_contain_text("2026-03-11 14:45Z O 139.00 H 140.00 L 138.00 C 139.00 volume 1000.00")
    until(lambda: "31,122,74" in page.evaluate(COLOURS))  # the colour of a rising candle
    panes = "document.querySelectorAll('#chart tr').length"
    height = page.locator("#chart").bounding_box()["height"]  # type: ignore[index]
    before = page.evaluate(panes)
    page.get_by_label("log_return").check()
    page.get_by_label("trend_direction").check()
    expect(readout).to_contain_text("trend_direction up")
    expect(readout).to_contain_text("log_return 0.390")
    until(lambda: page.evaluate(panes) > before)
    assert page.locator("#chart").bounding_box()["height"] > height  # type: ignore[index]
    page.reload()
    expect(page.get_by_label("log_return")).to_be_checked()
    page.get_by_role("button", name="None").click()
    expect(readout).not_to_contain_text("log_return")
    page.get_by_text("The newest bars as a table").click()
    expect(page.locator("#bars-table tbody tr")).to_have_count(30)
    expect(page.locator("#bars-table tbody tr").first).to_contain_text("2026-03-11T14:45:00Z")


def test_an_index_is_drawn_without_volume_and_a_currency_pair_with_five_decimals(reader: Reader, seed: Seed) -> None:
    seed.series("I:SPX", count=40, first=NOW - timedelta(minutes=210))
    seed.run("update market_data.bars set volume = null where symbol = 'I:SPX'")
    seed.series("C:EURUSD", count=40, first=NOW - timedelta(minutes=210), close=1.5)
    page = drawn_chart(reader, "/series/I:SPX/5m")
    expect(page.locator("#readout")).to_contain_text("C 139.00 volume \u2013")
    until(lambda: "31,122,74" in page.evaluate(COLOURS))
    drawn_chart(reader, "/series/C:EURUSD/5m")
    expect(page.locator("#readout")).to_contain_text("O 40.50000 H 41.50000 L 39.50000 C 40.50000")


def test_the_chart_is_read_by_keyboard(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", count=40, first=NOW - timedelta(minutes=210))
    page = drawn_chart(reader)
    page.locator("#chart").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#readout")).to_contain_text("14:45Z")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#readout")).to_contain_text("14:40Z")
    page.keyboard.press("PageUp")
    expect(page.locator("#readout")).to_contain_text("13:00Z")
    page.keyboard.press("End")
    expect(page.locator("#readout")).to_contain_text("14:45Z")


def test_older_bars_load_as_the_reader_goes_back_and_new_ones_automatically(reader: Reader, seed: Seed) -> None:
    first = NOW - timedelta(minutes=5 * 700)
    seed.series("AAPL", count=700, first=first)
    page = drawn_chart(reader)
    assert page.locator("#chart").get_attribute("data-drawn") == "600"
    page.locator("#chart").focus()
    for _ in range(30):
        page.keyboard.press("PageUp")
    until(lambda: "700 bars" in (page.locator("#chart").get_attribute("aria-label") or ""))
    seed.bar("AAPL", "5m", NOW, 777.0, NOW)
    seed.run(
        "insert into market_data.features (symbol, timeframe, ts, features_computed_at) values ('AAPL', '5m', %s, %s)",
        NOW,
        NOW,
    )
    seed.notify("AAPL", "5m")
    reader.update()
    until(lambda: "701 bars" in (page.locator("#chart").get_attribute("aria-label") or ""))
    assert "last close 777" in (page.locator("#chart").get_attribute("aria-label") or "")


def test_links_and_the_form_lead_from_series_to_series(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", count=3)
    seed.series("X:BTCUSD", count=3)
    page = drawn_chart(reader)
    page.get_by_role("link", name="X:BTCUSD").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("X:BTCUSD 5m")
    page.wait_for_selector("#chart[data-drawn='3']")
    page.get_by_label("Go to").fill("AAPL")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{reader.base}/series/AAPL/5m")
    page.get_by_role("link", name="1d missing").click()
    expect(page.get_by_text("No bars are held yet")).to_be_visible()
    assert seed.run("select count(*) from market_data.backfill_requests") == [(0,)]  # viewing requests no backfill


def test_the_page_of_a_missing_series_becomes_the_real_one_when_its_bars_arrive(reader: Reader, seed: Seed) -> None:
    seed.symbol("AAPL")
    page = reader.open("/series/AAPL/5m")
    expect(page.get_by_text("No bars are held yet")).to_be_visible()
    expect(page.locator(".updated")).to_contain_text("every 5 s")  # an empty page updates sooner
    page.get_by_role("button", name="Pause updates").focus()
    seed.series("AAPL", count=40, first=NOW - timedelta(minutes=210))
    reader.return_to()
    page.wait_for_selector("#chart[data-drawn='40'] canvas")
    assert page.evaluate("document.activeElement.id") == "pause"
    expect(page.locator("#changes")).to_have_text("The page has changed and was reloaded.")
    expect(page.locator(".updated")).to_contain_text("every 30 s")


def test_the_page_of_an_untracked_symbol_appears_once_it_is_tracked(reader: Reader, seed: Seed) -> None:
    page = reader.open("/series/AAPL/5m")
    expect(page.get_by_role("heading", level=1)).to_have_text("No such series")
    reader.update()
    expect(page.get_by_role("heading", level=1)).to_have_text("No such series")
    page.get_by_role("link", name="All series").focus()
    seed.series("AAPL", count=3)
    reader.return_to()
    page.wait_for_selector("#chart[data-drawn='3'] canvas")
    reader.expect_refusals()


def test_pages_recover_with_the_database(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", count=3)
    seed.run("alter schema market_data rename to elsewhere")
    page = reader.open("/series/AAPL/5m")
    expect(page.get_by_role("heading", level=1)).to_have_text("The database cannot be reached")
    seed.run("alter schema elsewhere rename to market_data")
    page.wait_for_selector("#chart[data-drawn='3'] canvas")  # the page checks after two seconds
    seed.run("alter schema market_data rename to elsewhere")
    reader.open("/")
    expect(page.get_by_text("The database cannot be reached")).to_be_visible()
    seed.run("alter schema elsewhere rename to market_data")
    reader.return_to()
    expect(page.locator("td.FRESH")).to_have_count(1)
    reader.expect_refusals()


def test_printed_pages_hold_the_figures_and_no_controls(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", count=3)
    page = drawn_chart(reader)
    page.get_by_role("button", name="Theme: auto").click()
    page.get_by_role("button", name="Theme: light").click()
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    assert page.evaluate(scheme) == "dark"
    page.emulate_media(media="print")
    assert page.evaluate(scheme) == "light"  # paper is white, whatever the screen
    expect(page.locator("#verdict")).to_be_visible()
    for path in ("/", "/series/AAPL/5m"):
        reader.open(path)
        assert page.locator("button:visible, input:visible, nav:visible").all_inner_texts() == []


def test_nothing_moves_when_reduced_motion_is_preferred(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", count=3)
    moving = """() => [...document.querySelectorAll('*')].filter((one) => {
      const style = getComputedStyle(one);
      return parseFloat(style.transitionDuration) > 0 || !['', 'none'].includes(style.animationName);
    }).map((one) => `${one.tagName} ${one.className}`)"""
    reader.page.emulate_media(reduced_motion="no-preference")
    page = reader.open()
    assert page.evaluate(moving) != []
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == []
    drawn_chart(reader)
    assert page.evaluate(moving) == []


def test_a_chart_whose_bars_could_not_be_loaded_is_drawn_when_they_can(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", count=3)
    reader.page.route("**/api/v1/**", lambda route: route.abort())
    page = reader.open("/series/AAPL/5m")
    expect(page.locator("#readout")).to_contain_text("The bars could not be loaded")
    reader.page.unroute("**/api/v1/**")
    reader.update()
    page.wait_for_selector("#chart[data-drawn='3'] canvas")
    reader.expect_refusals()


def test_the_page_of_the_api_is_drawn_without_any_other_server(reader: Reader, seed: Seed) -> None:
    seed.series("AAPL", "1d", count=3)
    page = reader.open("/docs")
    described = requests.get(f"{reader.base}/openapi.json", timeout=30).json()["paths"].values()
    expect(page.locator(".opblock")).to_have_count(sum(len(operations) for operations in described))
    page.locator("#operations-series-bars .opblock-summary-control").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_placeholder("symbol").fill("AAPL")
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response .response-col_status")).to_contain_text("200")
    expect(page.get_by_role("button", name="Authorize")).to_be_visible()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="/problems/not-tracked").click()
    expect(opened.value.get_by_role("heading", level=1)).to_have_text("The symbol is not tracked")
