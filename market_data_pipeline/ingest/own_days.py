"""Which session days of a symbol's series are the security's own, and which stored ones are not.

Pure: a security's tickers and a coverage in, days out. Add here: what a change of identity does to days. Keep out: how
an identity is known (identity), and requests (fetch_plan).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.identity import NOBODY, Identity
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.ingest.fetch_plan import Reach


@dataclass(frozen=True, slots=True)
class OwnDays:
    """The days of a series that are its security's own.

    Attributes:
        within: the days that the series should hold.
        coverage: what is known of them; a day that was requested under another ticker than its own counts as never
            requested.
        others: coverage to store of days on which the security did not have a ticker, so that nothing is requested.
        replaced: days of which bars are stored that are another security's.
        identity: the security; None when it is not known, and then all days count as its own.
    """

    within: Reach
    coverage: Mapping[date, Coverage]
    others: tuple[Coverage, ...] = ()
    replaced: tuple[Session, ...] = ()
    identity: Identity | None = None


def own_days(
    symbol: str, identity: Identity | None, within: Reach, coverage: Mapping[date, Coverage], now: datetime
) -> OwnDays:
    """Return the days of a fetched series that are its security's own.

    Args:
        symbol: as it is followed.
        identity: which security it is; None when that is not known.
        within: the days that the series would hold if the ticker had always been this security.
        coverage: of the series, by session date.
        now: aware UTC.
    """
    if identity is None or _is_plain(symbol, identity, within, coverage):
        return OwnDays(within, coverage, identity=identity)
    known = dict(coverage)
    others: list[Coverage] = []
    replaced: list[Session] = []
    own: set[date] = set()
    for session in (*within.beyond, *within.sessions):
        day, ticker, held = session.date, identity.ticker_on(session.date), coverage.get(session.date)
        if held is not None and held.rows and _ticker_of(held, symbol) != ticker:
            replaced.append(session)
        if ticker != NOBODY:
            own.add(day)
            if held is not None and _ticker_of(held, symbol) != ticker:
                del known[day]
        elif held is None or held.rows or held.ticker != NOBODY:
            known[day] = Coverage(day, CoverageStatus.EMPTY_CONFIRMED, 0, now, ticker=NOBODY)
            others.append(known[day])
    mine = within._replace(
        sessions=tuple(session for session in within.sessions if session.date in own),
        beyond=tuple(session for session in within.beyond if session.date in own),
    )
    return OwnDays(mine, known, tuple(others), tuple(replaced), identity)


def _ticker_of(held: Coverage, symbol: str) -> str:
    return symbol if held.ticker is None else held.ticker


def _is_plain(symbol: str, identity: Identity, within: Reach, coverage: Mapping[date, Coverage]) -> bool:
    """Return whether the symbol was this security on all days, and each was requested under it."""
    sessions = (*within.beyond[:1], *within.sessions[:1])
    return (
        identity.ticker == symbol
        and identity.tenures[-1].end is None
        and all(identity.tenures[-1].covers(session.date) for session in sessions)
        and all(held.ticker is None for held in coverage.values())
    )
