"""What people have been told: the rows of `open_alerts`.

Add here: statements on it. Keep out: what is worth an alert (orchestration.crossings, alerts). SQLAlchemy is
imported when it is used: the code location, which loads fast, imports this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import sqlalchemy as sa

_OPEN: Final = """
    insert into market_data.open_alerts (kind, subject, opened_at, detail)
    values (:kind, :subject, clock_timestamp(), :detail)
    on conflict (kind, subject) do update set detail = excluded.detail
    where open_alerts.detail <> excluded.detail
    returning subject
"""
_NOTE: Final = """
    with closed as (
        delete from market_data.open_alerts where kind = :kind and subject = any(cast(:closed as text[]))
    )
    insert into market_data.open_alerts (kind, subject, opened_at, detail)
    select :kind, o.subject, market_data.clock(), o.detail
    from unnest(cast(:opened as text[]), cast(:details as text[])) as o (subject, detail)
    on conflict do nothing
"""
_CLOSE: Final = """
    delete from market_data.open_alerts where kind = :kind and subject = :subject returning subject
"""
_OF_KIND: Final = """
    select subject, opened_at, detail from market_data.open_alerts where kind = :kind order by subject
"""


class OpenAlert(NamedTuple):
    """Something that people were told is wrong; `opened_at` is real time, aware."""

    subject: str
    opened_at: datetime
    detail: str


def open_alert(connection: sa.Connection, kind: str, subject: str, detail: str) -> bool:
    """Note that people are told of `subject`; return False when they have been told the same already."""
    import sqlalchemy as sa

    noted = connection.execute(sa.text(_OPEN), {"kind": kind, "subject": subject, "detail": detail})
    return noted.one_or_none() is not None


def note_alerts(connection: sa.Connection, kind: str, opened: Mapping[str, str], closed: Sequence[str]) -> None:
    """Note that the alerts of a kind are open, each subject with its detail, and others closed, in one statement."""
    import sqlalchemy as sa

    values = {"kind": kind, "opened": list(opened), "details": list(opened.values()), "closed": list(closed)}
    connection.execute(sa.text(_NOTE), values)


def close_alert(connection: sa.Connection, kind: str, subject: str) -> bool:
    """Note that people are told that it is over; return False when there was nothing open."""
    import sqlalchemy as sa

    return connection.execute(sa.text(_CLOSE), {"kind": kind, "subject": subject}).one_or_none() is not None


def open_alerts(connection: sa.Connection, kind: str) -> list[OpenAlert]:
    """Return what is open of a kind."""
    import sqlalchemy as sa

    return [OpenAlert(*row) for row in connection.execute(sa.text(_OF_KIND), {"kind": kind})]
