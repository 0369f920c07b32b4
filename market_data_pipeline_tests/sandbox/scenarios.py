"""Scenarios drawn at random: whatever may happen to one ticker, and to all, within some sessions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from market_data_pipeline.sandbox.scenario import Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.calendar import Session

FIVE_MINUTES = timedelta(minutes=5)
QUARTER = timedelta(minutes=15)
HOUR = timedelta(hours=1)

MARKET = ("listing", "delisting", "closing", "halt", "split")
VENDOR = ("lost", "lossy", "withdrawn", "repeated", "stray")


@st.composite
def scenarios(draw: st.DrawFn, ticker: str, sessions: Sequence[Session], healed: datetime) -> Scenario:
    """A scenario for `ticker` within the sessions; from `healed` on, the vendor withholds nothing any more.

    At most two kinds of event from the market and two from the vendor, so that an example that fails is readable.
    """
    market = draw(
        st.lists(st.sampled_from(["listing", "delisting", "closing", "halt", "split"]), max_size=2, unique=True)
    )
    vendor = draw(
        st.lists(st.sampled_from(["lost", "lossy", "withdrawn", "repeated", "stray"]), max_size=2, unique=True)
    )
    day = st.sampled_from(list(sessions))
    events: dict[str, list[dict[str, Any]]] = {}

    def happens(section: str, **fields: Any) -> None:
        events.setdefault(section, []).append(fields)

    def slot() -> tuple[Session, datetime]:
        session = draw(day)
        slots = (session.end - session.start) // FIVE_MINUTES
        return session, session.start + draw(st.integers(0, slots - 1)) * FIVE_MINUTES

    for kind in market:
        if kind == "listing":
            happens("listings", ticker=ticker, first=draw(day).date)
        elif kind == "delisting":
            happens("delistings", ticker=ticker, last=draw(day).date)
        elif kind == "closing":
            happens("closings", day=draw(day).date)
        elif kind == "halt":
            session, start = slot()
            end = min(start + draw(st.integers(1, 72)) * FIVE_MINUTES, session.end)
            happens("halts", ticker=ticker, start=start, end=end)
        else:
            session = draw(day)
            listed = session.day_start + draw(st.integers(-24, 24)) * HOUR
            happens("splits", ticker=ticker, day=session.date, split_to=draw(st.sampled_from([2, 10])), listed=listed)
    for kind in vendor:
        if kind == "repeated":
            happens("repeated", ticker=ticker, bar=slot()[1])
        elif kind == "stray":
            session = draw(day)
            bar = session.end + draw(st.integers(0, 47)) * FIVE_MINUTES
            happens("strays", ticker=ticker, bar=bar, open=9.0, high=9.5, low=8.5, close=9.0)
        elif kind == "withdrawn":
            _, start = slot()
            since = start + draw(st.integers(2, 40)) * QUARTER
            happens("withheld", tickers=[ticker], start=start, end=start + FIVE_MINUTES, since=since)
        else:
            first, last = sorted((draw(day), draw(day)), key=lambda session: session.date)
            since = first.start + draw(st.integers(0, 40)) * HOUR
            until = min(since + draw(st.integers(1, 60)) * HOUR, healed)
            every = 1 if kind == "lost" else draw(st.integers(2, 5))
            if since < until:
                happens(
                    "withheld", start=first.day_start, end=last.day_end, since=since, until=until, every=every,
                    tickers=[] if draw(st.booleans()) else [ticker],
                )  # fmt: skip
    return Scenario.model_validate(events)
