"""Move the bars and features of an older database to `records`, series by series, see `sql/0050_records.sql`.

Each series is a transaction of its own: an interrupted move goes on at the next call, and readers see every row all the
while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_STILL: Final = "select to_regclass('market_data.series_to_move') is not null"


def is_moving(connection: psycopg.Connection[Any]) -> bool:
    """Return whether bars are still to be moved."""
    row = connection.execute(_STILL).fetchone()
    return row is not None and bool(row[0])


def move_records(connection: psycopg.Connection[Any]) -> Iterator[tuple[int, int]]:
    """Move what is still to be moved; yield after each series how many are done, and of how many.

    Args:
        connection: the owner's, in autocommit.
    """
    if not is_moving(connection):
        return
    waiting = connection.execute(
        "select symbol, timeframe from market_data.series_to_move order by symbol, timeframe"
    ).fetchall()
    for done, series in enumerate(waiting, 1):
        connection.execute("select market_data.move_series(%s, %s)", series)
        yield done, len(waiting)
    connection.execute("select market_data.end_move()")
