"""Alerts that were sent and are still open: the rows of `open_alerts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import sqlalchemy as sa

_OPEN: Final = """
    insert into market_data.open_alerts (kind, subject, opened_at, detail)
    values (%(kind)s, %(subject)s, clock_timestamp(), %(detail)s)
    on conflict (kind, subject) do update set detail = excluded.detail
    where open_alerts.detail <> excluded.detail
    returning subject
"""
_REPLACE: Final = """
    with closed as (
        delete from market_data.open_alerts where kind = %(kind)s and subject = any(%(closed)s::text[])
    )
    insert into market_data.open_alerts (kind, subject, opened_at, detail)
    select %(kind)s, o.subject, market_data.clock(), o.detail
    from unnest(%(opened)s::text[], %(details)s::text[]) as o (subject, detail)
    on conflict do nothing
"""
_CLOSE: Final = "delete from market_data.open_alerts where kind = %(kind)s and subject = %(subject)s returning subject"
_OF_KIND: Final = """
    select subject, opened_at, detail from market_data.open_alerts where kind = %(kind)s order by subject
"""
_CLOSE_UNTRACKED: Final = """
    delete from market_data.open_alerts as a
    where a.kind in ('series', 'life') and not exists (
        select from market_data.symbols as s where s.active and s.symbol = split_part(a.subject, '|', 1)
    )
"""


_KINDS: Final = "select distinct kind from market_data.open_alerts"


class OpenAlert(NamedTuple):
    """An alert that is open; `opened_at` is real time, aware."""

    subject: str
    opened_at: datetime
    detail: str


def open_alert(connection: sa.Connection, kind: str, subject: str, detail: str) -> bool:
    """Record an alert about `subject` as open; return False if it was already open with the same detail."""
    recorded = connection.exec_driver_sql(_OPEN, {"kind": kind, "subject": subject, "detail": detail})
    return recorded.one_or_none() is not None


def note_alerts(connection: sa.Connection, kind: str, opened: Mapping[str, str], closed: Sequence[str]) -> None:
    """Open alerts of a kind, each subject with its detail, and close others, in one statement."""
    values = {"kind": kind, "opened": list(opened), "details": list(opened.values()), "closed": list(closed)}
    connection.exec_driver_sql(_REPLACE, values)


def close_alert(connection: sa.Connection, kind: str, subject: str) -> bool:
    """Record that an alert is over; return False if none was open."""
    return connection.exec_driver_sql(_CLOSE, {"kind": kind, "subject": subject}).one_or_none() is not None


def open_alerts(connection: sa.Connection, kind: str) -> list[OpenAlert]:
    """Return the open alerts of a kind, by subject."""
    return [OpenAlert(*row) for row in connection.exec_driver_sql(_OF_KIND, {"kind": kind})]


def note_alerted(connection: sa.Connection, changes: Sequence[int]) -> None:
    """Record that changes of identity, by id, were alerted."""
    connection.exec_driver_sql(
        "update market_data.identity_news set alerted_at = market_data.clock() where id = any(%(ids)s::bigint[])",
        {"ids": list(changes)},
    )


def open_kinds(connection: sa.Connection) -> frozenset[str]:
    """Return the kinds of which an alert is open."""
    return frozenset(connection.exec_driver_sql(_KINDS).scalars())


def close_untracked(connection: sa.Connection) -> None:
    """Close the alerts of symbols, and of their series, that are no longer tracked: their end is of no interest."""
    connection.exec_driver_sql(_CLOSE_UNTRACKED)
