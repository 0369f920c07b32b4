"""Alerts on markets that are silent, and on symbols that no longer trade: one when it begins and one when it ends.

What all symbols lack at once is one fact about the vendor or the market. It is over only when the missing bars are
there, or no symbol has any. Add here: another condition of many series with one cause. Keep out: series that are late
one by one (thresholds).
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.life import Life, sentence
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, alert_once
from market_data_pipeline.orchestration.metadata import WORST_SHOWN
from market_data_pipeline.store.alerts import close_alert, note_alerts, open_alert, open_alerts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.settings import Settings

MARKET: Final = "market"  # the detail of the alert of a series that its market's alert stands for


def alert_lives(engine: Engine, settings: Settings) -> None:
    """Alert on symbols that are delisted, halted or unknown to the vendor, and on those that trade again."""
    alert_once(engine, settings.alert_urls, lambda connection: _lives(connection, settings.ui_url))


def alert_silent_markets(engine: Engine, settings: Settings) -> frozenset[AssetClass]:
    """Alert on markets of which the vendor sends no bars, and on those that are over it; return those not over."""
    from market_data_pipeline.reports.life import silent_markets

    with engine.connect() as connection:
        concerned = {AssetClass(one.subject) for one in open_alerts(connection, "silence")}
        concerned |= silent_markets(connection).keys()
    if not concerned:
        return frozenset()
    for asset_class in concerned:
        alert_once(engine, settings.alert_urls, partial(_market, asset_class=asset_class))
    with engine.connect() as connection:
        return frozenset(AssetClass(one.subject) for one in open_alerts(connection, "silence"))


def _market(connection: Connection, asset_class: AssetClass) -> Alert | None:
    """Return the alert on a market that falls silent, or on its end.

    The detail of the open alert is the start of its last bar, and when bars were first seen again, if they were. It is
    over when the series that it stands for lack nothing, and each day without any bar was asked for again since then.
    """
    from market_data_pipeline.reports.freshness import instant, read_clock
    from market_data_pipeline.reports.life import anyone_trades, days_without_bars, silent_markets

    name, calendar, now = asset_class.market.plural, calendar_for(asset_class), read_clock(connection)
    known = next((one for one in open_alerts(connection, "silence") if one.subject == asset_class), None)
    silent = silent_markets(connection).get(asset_class)
    if silent is not None:
        detail = silent.last_ts.isoformat()
        open_alert(connection, "silence", asset_class, known.detail.split()[0] if known else detail)
        return (
            None
            if known
            else Alert(
                f"The vendor has had no bars of any of {silent.symbols} {name} since {instant(silent.last_ts)}",
                (
                    "Either the market is closed although the calendar has a session, or the vendor does not publish. "
                    "What is missing is requested at every refresh; no series gets an alert of its own for it.",
                ),
            )
        )
    if known is None:
        return None
    if not anyone_trades(connection, asset_class):  # each of its symbols has ended, which has an alert of its own
        close_alert(connection, "silence", asset_class)
        return None
    since, *resumed = (datetime.fromisoformat(text) for text in known.detail.split())
    if not resumed:
        resumed = [now]
        open_alert(connection, "silence", asset_class, f"{since.isoformat()} {now.isoformat()}")
    lost = days_without_bars(connection, asset_class, calendar.session_date(since), calendar.session_date(now))
    awaited = _awaited(connection, asset_class)
    symbols = {subject.partition("|")[0] for subject in awaited}
    if len(symbols) > 1 or any(asked_at < resumed[0] for asked_at in lost.values()):
        return None
    close_alert(connection, "silence", asset_class)
    note_alerts(connection, "series", {}, awaited)  # a single symbol that is still late gets an alert of its own
    return _over(name, list(lost))


def _awaited(connection: Connection, asset_class: AssetClass) -> list[str]:
    """Return the series of the market that still lack what they lacked when it fell silent."""
    from market_data_pipeline.reports.freshness import late_subjects

    late = late_subjects(connection, asset_class)
    return [one.subject for one in open_alerts(connection, "series") if one.detail == MARKET and one.subject in late]


def _over(name: str, lost: Sequence[date]) -> Alert:
    if not lost:
        return Alert(f"The bars of {name} that the vendor lacked are back", tone=Tone.RECOVERY)
    days = ", ".join(f"{day:%Y-%m-%d}" for day in lost)
    return Alert(
        f"The vendor sends bars of {name} again, but has none of {days}",
        (
            "No symbol has a bar of it: the market was closed, or the vendor has lost the day. It is read again every "
            "day for four weeks; `market-data gaps` shows it.",
        ),
        Tone.RECOVERY,
    )


def _lives(connection: Connection, ui_url: str) -> Alert | None:
    from market_data_pipeline.reports.life import life_changes

    changes = life_changes(connection)
    if not changes:
        return None
    ended, back = [], []
    for change in changes:
        if change.life.expects_bars:
            close_alert(connection, "life", change.symbol)
            back.append((change.symbol, "trades again" if change.life is Life.TRADING else "is listed again"))
        else:
            open_alert(connection, "life", change.symbol, change.life)
            ended.append(f"{change.symbol} {sentence(change.life, change.since)}")
    titles = []
    if ended:
        titles.append(ended[0] if len(ended) == 1 else f"No more bars are expected of {len(ended)} symbols")
    if back:
        titles.append(" ".join(back[0]) if len(back) == 1 else f"{len(back)} symbols trade or are listed again")
    kept = (
        "What is held is kept and readable. It counts in no objective and is requested once a day; "
        "`market-data universe remove` stops following it.",
    )
    each = [*(ended if len(ended) > 1 else ()), *(" ".join(one) for one in back if len(back) > 1)]
    lines = (*each[:WORST_SHOWN], *(kept if ended else ()))
    return Alert("; ".join(titles), lines, Tone.WARNING if ended else Tone.RECOVERY, ui_url)
