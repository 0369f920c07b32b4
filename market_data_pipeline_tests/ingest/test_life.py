"""When a series counts as silent and since when it is due, on random lives, compared with a count made by hand."""

from __future__ import annotations

from datetime import date, datetime

from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.life import Life, Listing, life_of, usual_silence
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.coverage import ExpectedBars, silence_of
from market_data_pipeline.ingest.fetch_plan import Timing
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline_tests.domain.strategies import EQUITIES, laws, new_york

SESSIONS = EQUITIES.sessions(date(2026, 9, 1), date(2026, 11, 20))
NOW = new_york("2026-11-20 03:00")  # between two sessions, all of which have settled but the last
SEEN = new_york("2026-11-20 02:00")

# Each session: whether the symbol traded, and whether anyone did.
DAYS = st.lists(
    st.sampled_from([(True, True), (True, True), (True, True), (False, True), (False, False)]),
    min_size=len(SESSIONS),
    max_size=len(SESSIONS),
).filter(lambda days: any(traded for traded, _ in days))


def known_of(days: list[tuple[bool, bool]]) -> dict[date, Coverage]:
    return {
        session.date: Coverage(
            session.date,
            CoverageStatus.COMPLETE if traded else CoverageStatus.EMPTY_CONFIRMED,
            192 if traded else 0,
            SEEN,
        )
        for session, (traded, _) in zip(SESSIONS, days, strict=True)
    }


def runs_between_trades(days: list[tuple[bool, bool]]) -> list[int]:
    """Return the lengths of the runs of days without a trade that lie between two days with one."""
    text = "".join("x" if traded else "." for traded, _ in days).strip(".")
    return sorted(len(run) for run in text.split("x") if run)


@laws
@given(DAYS)
def test_a_series_is_silent_once_it_is_alone_without_a_bar_for_longer_than_twice_before(
    days: list[tuple[bool, bool]],
) -> None:
    known = known_of(days)
    nobody = {session.date: True for session, (_, anyone) in zip(SESSIONS, days, strict=True) if not anyone}
    silence = silence_of(SESSIONS, known, nobody)
    last = max(at for at, (traded, _) in enumerate(days) if traded)
    quiet = [at for at in range(last + 1, len(days)) if days[at][1]]
    usual = (runs_between_trades(days)[-2:-1] or [0])[0]
    assert silence.usual == usual
    assert silence.is_unusual == (len(quiet) > usual)

    last_ts = SESSIONS[last].start
    expected = ExpectedBars(Timeframe.M5, Timing(EQUITIES, lambda end: end, NOW), SESSIONS, known, silence)
    due = expected.next_due(last_ts, 191)
    assert due is not None
    assert (expected.life_of(last_ts).life is Life.SILENT) == (due < NOW)
    if len(quiet) > usual:
        # Due since the first session beyond the usual silence, whatever was confirmed of it and however long ago.
        assert EQUITIES.session_date(due) == SESSIONS[quiet[usual]].date


@laws
@given(st.integers(1, len(SESSIONS) - 1))
def test_a_silent_series_stays_due_since_the_same_instant_while_more_empty_days_are_confirmed(trades: int) -> None:
    """Nights, weekends and holidays included: the state does not alternate."""
    begun = [(True, True)] * trades + [(False, True)] * (len(SESSIONS) - trades)
    instants = set()
    for confirmed in range(trades, len(SESSIONS) + 1):
        known = {day: held for day, held in known_of(begun).items() if day in {s.date for s in SESSIONS[:confirmed]}}
        silence = silence_of(SESSIONS, known)
        expected = ExpectedBars(Timeframe.M5, Timing(EQUITIES, lambda end: end, NOW), SESSIONS, known, silence)
        instants.add(expected.next_due(SESSIONS[trades - 1].start, 0))
    assert len(instants) == 1


def test_what_happened_once_is_no_habit() -> None:
    assert usual_silence([True, False, True, True]) == 0
    assert usual_silence([True, False, True, False, False, True]) == 1
    assert usual_silence([False, False, True, True, False, False]) == 0


def test_the_vendors_word_decides_whether_a_silent_series_has_ended() -> None:
    last, now = new_york("2026-11-13 19:55"), new_york("2026-11-16 04:40")
    delisted = Listing(now, known=True, active=False, delisted_at=new_york("2026-11-14 00:00"))
    halted = Listing(now, known=True, active=False)
    active, unknown, unasked = (
        Listing(now, known=True, active=True),
        Listing(now, known=False),
        Listing(now, known=None),
    )

    def lives(last_ts: datetime | None, *, overdue: bool, silent: bool) -> list[Life]:
        listings = (delisted, halted, active, unknown, unasked, None)
        return [life_of(last_ts, each, overdue=overdue, silent=silent).life for each in listings]

    trading, silent = Life.TRADING, Life.SILENT
    assert lives(last, overdue=False, silent=False) == [trading] * 6
    gone = [Life.DELISTED, Life.HALTED]
    assert lives(last, overdue=True, silent=False) == [*gone, trading, Life.UNKNOWN, trading, trading]
    assert lives(last, overdue=True, silent=True) == [*gone, silent, Life.UNKNOWN, silent, silent]
    assert lives(None, overdue=False, silent=True) == [
        Life.DELISTED,
        Life.HALTED,
        trading,
        Life.UNKNOWN,
        *[trading] * 2,
    ]
    assert life_of(last, delisted, overdue=True, silent=False).since == new_york("2026-11-14 00:00")
    assert life_of(last, active, overdue=True, silent=True).since == last
