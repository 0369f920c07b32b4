"""A real browser for tests of the pages: the machine's Chromium, driven by Playwright.

`make test` installs Chromium where it can. Where there is none the tests are skipped with that reason, except where CI
is set: there a missing browser is a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Page,
    Playwright,
    Request,
    ViewportSize,
    expect,
    sync_playwright,
)

from market_data_pipeline_tests.waiting import until

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: tests may run as root, where Chromium has none. The others keep it off the network.
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
SCREEN: ViewportSize = {"width": 1280, "height": 900}
_REFUSED = "Failed to load resource"
PATIENCE_MS = 60_000  # a busy machine answers late; a test that passes never waits for it


def executable(playwright: Playwright) -> str | None:
    """Return the machine's Chromium, or else the one that `playwright install` fetched."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    fetched = playwright.chromium.executable_path
    return found or (fetched if Path(fetched).exists() else None)


@contextmanager
def launched() -> Iterator[Browser]:
    """Run the browser; a process can have only one at a time, which is the fixture `browser`."""
    with sync_playwright() as playwright:
        path = executable(playwright)
        if path is None:
            reason = f"no browser: none of {', '.join(NAMES)} is installed (Debian, Ubuntu: apt install chromium)"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        expect.set_options(timeout=PATIENCE_MS)
        running = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield running
        running.close()


class Reader:
    """A reader of the pages; records what the browser requested and what it complained about."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.requested: list[str] = []
        self._complaints: list[str] = []
        self._excused: tuple[str, ...] = ()
        self._heard = {"request": self._requests, "console": self._complains, "pageerror": self._fails}
        for event, hear in self._heard.items():
            page.on(event, hear)  # type: ignore[call-overload]  # one overload for each event
        page.set_default_timeout(PATIENCE_MS)

    def _requests(self, request: Request) -> None:
        self.requested.append(request.url)

    def _complains(self, line: ConsoleMessage) -> None:
        if line.type in {"error", "warning"}:
            self._complaints.append(line.text)

    def _fails(self, error: Error) -> None:
        self._complaints.append(str(error))

    @property
    def complaints(self) -> list[str]:
        """What the browser complained about, except for what a test has expected."""
        return [line for line in self._complaints if not line.startswith(self._excused)]

    def expect_refusals(self) -> None:
        """Take what the browser says of requests that were refused as expected: it may say so late, or again."""
        until(lambda: self.page.title() and any(line.startswith(_REFUSED) for line in self._complaints))
        self._excused = (_REFUSED,)

    def leave(self) -> None:
        """Leave the tab to the next reader as a new one: no page, no popup, no cookie and nothing stored."""
        for event, hear in self._heard.items():
            self.page.remove_listener(event, hear)
        for popup in self.page.context.pages:
            if popup != self.page:
                popup.close()
        self.page.unroute_all()
        self.page.mouse.move(0, 0)  # where it rests would be read off the next reader's chart
        self.page.evaluate("localStorage.clear()")
        self.open("/static/style.css")  # a page without a script, for which the browser needs no other process
        self.page.context.clear_cookies()
        self.page.emulate_media(media="null", color_scheme="null", reduced_motion="null")
        self.page.set_viewport_size(SCREEN)

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.base + path)
        return self.page

    def update(self) -> None:
        """Make the page update itself, as it does when its tab becomes visible again."""
        with self.page.expect_response(lambda response: response.url == self.page.url):
            self.return_to()

    def return_to(self) -> None:
        """Make the page look for what has changed; it may do so at this moment on its own, and reload."""
        try:
            self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        except Error as error:
            if "context was destroyed" not in error.message:
                raise

    def violations(self, *tags: str) -> list[str]:
        """Return what axe finds wrong for people with disabilities, one sentence each; by the rules with `tags` or all.

        One of the rules has to apply to something on the page.
        """
        options: dict[str, object] = {"resultTypes": ["violations"]}  # of the others it names one place
        if tags:
            options["runOnly"] = {"type": "tag", "values": list(tags)}
        response = Axe().run(self.page, options=options).response
        found = response["violations"]
        assert found or response["passes"]
        return [f"{one['impact']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]
