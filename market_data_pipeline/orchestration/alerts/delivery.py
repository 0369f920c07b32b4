"""What an alert is, and the one way to send it: once for each change.

Open-source Dagster sends none (https://docs.dagster.io/guides/observe/alerts), so the sensors do, through Apprise:
Slack, e-mail, webhooks, whatever MARKET_DATA_ALERT_URLS names. Every alert is logged too. The addresses are secrets:
messages refer to them by number. What is worth an alert is in the modules beside this one.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

log = logging.getLogger(__name__)

# These log the address that they send to: apprise always, urllib3 (its path, where Slack's and Discord's secrets are)
# at the level DEBUG.
_TALKATIVE: Final = ("apprise", "urllib3.connectionpool", "requests_oauthlib", "httpx", "httpcore", "paho")


class Tone(StrEnum):
    """The kind of an alert; the services show it by a colour or a sign."""

    TROUBLE = "failure"
    WARNING = "warning"
    RECOVERY = "success"


@dataclass(frozen=True, slots=True)
class Alert:
    """A message: one line on what happened, further lines on where and why, and a link."""

    title: str
    lines: tuple[str, ...] = ()
    tone: Tone = Tone.TROUBLE
    link: str = ""

    @property
    def body(self) -> str:
        """The message below the title, with the link at its end."""
        return "\n".join([*self.lines, *([self.link] if self.link else [])]) or self.title


def alert_once(engine: Engine, urls: Sequence[str], change: Callable[[Connection], Alert | None]) -> bool:
    """Send the alert that `change` returns, and commit what it wrote only if that was delivered.

    `change` opens or closes rows of `open_alerts` and returns the alert on what it changed, or None. An alert that is
    not delivered leaves no trace, so the next call sends it; one that is delivered is not sent again after a restart.

    Returns:
        False when there was an alert and no address accepted it.
    """
    with engine.connect() as connection:
        alert = change(connection)
        if alert is not None and not deliver(urls, alert):
            connection.rollback()
            return False
        connection.commit()
        return True


def deliver(urls: Sequence[str], alert: Alert) -> bool:
    """Log the alert and send it to every address; return whether one accepted it, or there are none.

    An address that does not work is logged by its number and does not affect the others.
    """
    level = logging.INFO if alert.tone is Tone.RECOVERY else logging.ERROR
    log.log(level, "%s\n%s", alert.title, alert.body)
    if not urls:
        return True
    delivered = 0
    for number, url in enumerate(urls, 1):
        if problem := _send(url, alert):
            log.error("The alert did not reach address %d of MARKET_DATA_ALERT_URLS: %s.", number, problem)
        else:
            delivered += 1
    return delivered > 0


def _send(url: str, alert: Alert) -> str | None:
    """Return what is wrong, without the address; None when it was sent."""
    from apprise import Apprise, NotifyFormat, NotifyType

    with _silent():
        service = Apprise()
        if not service.add(url):
            return "Apprise does not know this kind of address"
        try:
            sent = service.notify(
                title=alert.title,
                body=alert.body,
                # Otherwise a service that sends HTML takes the text, which may quote the vendor, as HTML.
                body_format=NotifyFormat.TEXT,
                notify_type=NotifyType(alert.tone.value),
            )
        except Exception as error:  # noqa: BLE001 - a plug-in's failure must not fail the sensor
            return f"the service's plug-in failed ({type(error).__name__})"
    return None if sent else "the service refused it or could not be reached"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the libraries from logging addresses while the block runs."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
