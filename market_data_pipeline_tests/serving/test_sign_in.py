"""A browser signs in with the token, and out again, also behind the documented proxies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, expect
from pydantic import SecretStr

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.serving import sessions
from market_data_pipeline_tests.serving.browser import Reader
from market_data_pipeline_tests.serving.conftest import Api, MovableClock, serve
from market_data_pipeline_tests.serving.proxies import caddy, documented, nginx
from market_data_pipeline_tests.serving.seeding import Seed
from market_data_pipeline_tests.serving.test_access import STALENESS, TOKEN


@pytest.fixture
def guarded(settings: MovableClock) -> Iterator[Api]:
    """An API that has a token."""
    with serve(settings.model_copy(update={"api_token": SecretStr(TOKEN)})) as api:
        yield api


def sign_in(api: Api, token: str, **headers: str) -> requests.Response:
    return api.session.post(
        f"{api.base}/sign-in", data={"token": token}, headers=headers, allow_redirects=False, timeout=60
    )


def test_an_operator_signs_in_sees_failures_and_signs_out(browser: Browser, guarded: Api, seed: Seed) -> None:
    seed.series("AAPL", last_error="secret trouble", last_error_class="DataError", consecutive_failures=2)
    context = browser.new_context()
    reader = Reader(context.new_page(), guarded.base)
    page = reader.open()
    expect(page.get_by_text("secret trouble")).to_have_count(0)
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The token is wrong.")
    assert reader.violations() == []
    reader.expect_refusals()  # the 401
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_text("secret trouble").first).to_be_visible()
    assert page.evaluate("document.cookie") == ""  # no script can read it
    reader.open("/series/AAPL/5m")
    expect(page.get_by_text("secret trouble").first).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    expect(page.get_by_text("secret trouble")).to_have_count(0)
    assert reader.complaints == []
    context.close()


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_the_documented_proxies_serve_the_api_below_a_path_by_https(
    browser: Browser, settings: MovableClock, seed: Seed, tmp_path: Path, proxy: str
) -> None:
    seed.series("AAPL", "1d", count=3, last_error="secret trouble", consecutive_failures=1)
    [port] = free_ports(1)
    base = f"https://localhost:{port}/market-data"
    with serve(settings.model_copy(update={"api_token": SecretStr(TOKEN), "api_url": base})) as api:
        recipe = documented(tmp_path, listens_on=port, ui=free_ports(1)[0], api=urlsplit(api.base).port or 0)
        run, text = {"nginx": (nginx, recipe.nginx), "caddy": (caddy, recipe.caddy)}[proxy]
        context = browser.new_context(ignore_https_errors=True)
        with run(tmp_path, text, port):
            reader = Reader(context.new_page(), base)
            page = reader.open("")  # without the slash at its end
            page.get_by_role("link", name="Sign in").click()
            page.get_by_label("Token").fill(TOKEN)
            page.keyboard.press("Enter")
            expect(page.get_by_text("secret trouble").first).to_be_visible()
            (cookie,) = context.cookies()
            assert (cookie["path"], cookie["secure"], cookie["httpOnly"]) == ("/market-data/", True, True)
            assert cookie["sameSite"] == "Strict"
            reader.open("/series/AAPL/1d")
            page.wait_for_selector("#chart[data-drawn='3'] canvas")
            if proxy == "nginx":
                reader.open("/docs")
                page.locator("#operations-admin-staleness .opblock-summary-control").click()
                page.get_by_role("button", name="Try it out").click()
                page.get_by_role("button", name="Execute").click()
                expect(page.locator(".live-responses-table .response .response-col_status")).to_contain_text("200")
        context.close()
        assert reader.complaints == []
        assert [url for url in reader.requested if not url.startswith(base)] == []


def test_the_cookie_is_strict_and_holds_no_token(guarded: Api) -> None:
    assert sign_in(guarded, "wrong").status_code == 401
    plain, encrypted = sign_in(guarded, TOKEN), sign_in(guarded, TOKEN, **{"X-Forwarded-Proto": "https"})
    for response in (plain, encrypted):
        assert (response.status_code, response.headers["location"]) == (303, "./")
        cookie = response.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
    assert ("Secure" in plain.headers["set-cookie"], "Secure" in encrypted.headers["set-cookie"]) == (False, True)


def test_a_session_opens_the_admin_endpoints_until_it_ends(guarded: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guarded.get(STALENESS).status_code == 401
    sign_in(guarded, TOKEN)
    assert guarded.get(STALENESS).status_code == 200
    later = time.time() + sessions.LIFETIME_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(sessions.time, "time", lambda: later)
        assert guarded.get(STALENESS).status_code == 401
    value = guarded.session.cookies[sessions.COOKIE]
    ends, _, signature = value.partition(".")
    for forged in (f"{int(ends) + 1}.{signature}", f".{signature}", ends, "", "é.é", f"{'9' * 5000}.{signature}"):
        cookie = f"{sessions.COOKIE}={forged}".encode()
        answer = requests.get(guarded.base + STALENESS, headers={"Cookie": cookie}, timeout=60)
        assert answer.status_code == 401


def test_only_the_apis_own_page_signs_in_and_out(guarded: Api) -> None:
    assert sign_in(guarded, TOKEN, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    sign_in(guarded, TOKEN)
    for site in ("cross-site", "same-site"):
        out = guarded.session.post(f"{guarded.base}/sign-out", headers={"Sec-Fetch-Site": site}, timeout=60)
        assert out.status_code == 403
    refused = guarded.get("/sign-out")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_without_a_token_there_is_nothing_to_sign_in_with(api: Api, seed: Seed) -> None:
    assert api.get("/sign-in").status_code == 404
    assert "Sign in" not in api.get("/", headers={"X-Forwarded-For": "192.0.2.1"}).text
