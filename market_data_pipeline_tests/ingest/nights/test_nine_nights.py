"""Nine nights of a small universe in which much goes wrong: what is stored, stated and alerted is the truth.

docs/examples/nine_nights.toml is what happens; `truth` is what a person who has read it would say. They last from the
eve of Monday, 9 November 2026, to Friday noon of the week after, when the ninth session has settled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import zip_longest
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure.alert_receiver import alert_receiver as webhook
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.scenario import Scenario, read_scenario
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.staged import StagedMarket
from market_data_pipeline_tests.conftest import _new_database
from market_data_pipeline_tests.domain.strategies import EQUITIES
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.ingest.nights.replay import Replay, moving_engine, quarters, refreshed_tiers
from market_data_pipeline_tests.ingest.nights.truth import Truth, at

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "nine_nights.toml"
TIERS = {Tier.CRITICAL: ("MSFT", "KIMpL"), Tier.STANDARD: ("PFE", "KO", "PLTR")}
THIN = "KIMpL"
START, END = at("9 03:45"), at("20 12:00")
RECONCILED_AT = timedelta(hours=11, minutes=30)
SECONDS = timedelta(seconds=5)  # a refresh asks this long after its quarter of an hour

# When something begins or ends, every quarter of an hour is refreshed: the tiers of those to whom it happens.
BUSY = {
    "10 12:00 10 12:30": (Tier.CRITICAL,),
    "10 14:00 10 14:45": (Tier.CRITICAL,),
    "11 11:00 11 12:00": (Tier.CRITICAL,),
    "12 05:00 12 05:30": tuple(TIERS),
    "13 04:00 13 05:00": tuple(TIERS),
    "13 07:00 13 08:30": (Tier.CRITICAL,),
    "13 11:15 13 11:15": tuple(TIERS),
    "16 04:00 16 05:30": tuple(TIERS),
    "16 07:45 16 08:30": (Tier.STANDARD,),
    "17 05:00 17 05:30": tuple(TIERS),
    "19 04:00 19 04:30": tuple(TIERS),
    "19 05:45 19 07:00": tuple(TIERS),
    "19 11:00 19 11:45": tuple(TIERS),
}
# In these hours of every other day nothing happens: no one looks, and the refresh of all tiers after them takes it in.
QUIET = ((timedelta(hours=7, minutes=15), timedelta(hours=11)), (timedelta(hours=12, minutes=15), timedelta(hours=18)))


class Change(NamedTuple):
    """Something that is worth an alert: between which instants it is sent, and what it says."""

    earliest: str
    latest: str
    says: str


# One for each change and one for its end. Nothing else is worth waking anybody for: not the withdrawn, lost, repeated
# and stray bars, not the new listing, not the late split.
CHANGES = (
    Change("10 12:15", "10 12:15", r"MSFT"),
    Change("10 14:15", "10 14:30", r"MSFT|back"),
    Change("12 05:15", "12 05:15", r"(?i)vendor|market|every|all"),
    Change("13 00:15", "13 11:45", r"(?i)back|again|closed"),
    Change("16 04:15", "16 05:30", r"PFE.*delisted|delisted.*PFE"),
    Change("17 05:15", "17 05:15", r"(?i)vendor|market|every|all"),
    Change("19 06:00", "19 07:00", r"(?i)back|again"),
)


class Nights(NamedTuple):
    """What is left of the nights.

    Attributes:
        replay: the database that was followed, and all alerts and failures.
        wrong: each state of a series that the truth does not allow.
        scenario: what happened.
    """

    replay: Replay
    wrong: list[str]
    scenario: Scenario


@contextmanager
def new_replay(postgres_url: str, template: str, scenario: Scenario) -> Iterator[Replay]:
    """Give a new database, a vendor to whom the scenario happens, and a receiver of alerts."""
    with contextmanager(_new_database)(postgres_url, template) as url, webhook() as hook:
        world = World("", url, START, threads=1)  # each further one would open a connection in each refresh
        source = StagedMarket(SyntheticMarket(), scenario, world.clock)
        with running_server(source, world.clock) as world.base_url, moving_engine(world) as engine:
            replay = Replay(world, engine, hook, TIERS)
            replay.track()
            yield replay


@pytest.fixture(scope="module")
def nights(postgres_url: str, migrated_template: str) -> Iterator[Nights]:
    scenario = read_scenario(EXAMPLE)
    with new_replay(postgres_url, migrated_template, scenario) as replay:
        yield Nights(replay, follow(replay, scenario), scenario)


def follow(replay: Replay, scenario: Scenario) -> list[str]:
    """Replay the nights; return each state that the truth does not allow."""
    sessions = EQUITIES.sessions(EQUITIES.session_date(at("5 12:00")), EQUITIES.session_date(at("21 12:00")))
    truths = {
        symbol: Truth(symbol, scenario, sessions, thin=symbol == THIN)
        for symbols in TIERS.values()
        for symbol in symbols
    }
    wrong, before, rested = [], None, False
    for quarter in quarters(START, END):
        clock = quarter - EQUITIES.midnight(EQUITIES.session_date(quarter))
        busy = busy_tiers(quarter)
        if not busy and any(start <= clock < end for start, end in QUIET):
            rested = True
            continue
        replay.world.now = now = quarter + SECONDS
        tiers = tuple(tier for tier in TIERS if rested or tier in (*busy, *refreshed_tiers(quarter)))
        rested = False
        replay.refresh(*tiers)
        if clock == RECONCILED_AT:
            tiers = tuple(TIERS)
            replay.reconcile()
        states = replay.states()
        verdicts = [(row.symbol, row.timeframe, row.status, row.within_rpo) for row in states]
        if tiers or verdicts != before:  # else the sensor has nothing new to say
            replay.alert()
        before = verdicts
        for symbol in (symbol for tier in tiers for symbol in TIERS[tier]):
            truths[symbol].looks.append(now)
        for row in states:
            allowed = truths[row.symbol].allowed(row.timeframe, now)
            if row.status not in allowed:
                wrong.append(f"{now:%d %H:%M}Z {row.symbol}|{row.timeframe} {row.status} not {sorted(allowed)}")
    return wrong


def busy_tiers(quarter: datetime) -> tuple[Tier, ...]:
    """Return the tiers that are refreshed because something happens to them; ends are included."""
    found = [tiers for span, tiers in BUSY.items() if at(span[:8]) <= quarter <= at(span[9:])]
    return tuple(TIERS) if quarter == START else found[0] if found else ()


def test_whenever_someone_looks_the_state_of_each_series_is_the_truth(nights: Nights) -> None:
    assert not nights.wrong, "\n".join(nights.wrong)


def test_each_change_is_alerted_once_and_so_is_its_end(nights: Nights) -> None:
    sent = [f"{each.at:%d %H:%M}Z {each.title}: {each.body}" for each in nights.replay.sent]
    unexpected = []
    left = list(CHANGES)
    for each, shown in zip(nights.replay.sent, sent, strict=True):
        for change in left:
            in_time = at(change.earliest) <= each.at <= at(change.latest) + SECONDS
            if in_time and re.search(change.says, f"{each.title} {each.body}", re.DOTALL):
                left.remove(change)
                break
        else:
            unexpected.append(shown)
    assert not unexpected + left, "\n".join(["Sent:", *sent, "Unexpected:", *unexpected, "Not sent:", *map(str, left)])


def test_in_the_end_only_the_delisted_symbol_is_no_longer_expected_to_trade(nights: Nights) -> None:
    lives = {(row.symbol, row.life, row.within_rpo) for row in nights.replay.states()}
    assert lives == {
        (symbol, "delisted" if symbol == "PFE" else "trading", True) for symbols in TIERS.values() for symbol in symbols
    }


def test_no_series_fails(nights: Nights) -> None:
    failed = {f"{outcome.series.partition_key}: {outcome.error}" for outcome in nights.replay.failed}
    assert not failed, "\n".join(sorted(failed))


def test_what_lies_in_no_session_and_what_was_withdrawn_is_not_stored(nights: Nights) -> None:
    stored = nights.replay.world.query(
        "select symbol, timeframe, ts from market_data.bars where timeframe in ('5m', '1d')"
    )
    strays = {(stray.ticker, stray.bar) for stray in nights.scenario.strays}
    assert [row for row in stored if (row["symbol"], row["ts"]) in strays] == []
    withdrawn = [
        row
        for row in stored
        if row["symbol"] == THIN and row["timeframe"] == "5m" and at("13 07:00") <= row["ts"] < at("13 07:45")  # type: ignore[operator]
    ]
    assert withdrawn == []


def test_history_loaded_at_once_followed_live_and_loaded_again_is_the_same(
    nights: Nights, postgres_url: str, migrated_template: str
) -> None:
    replay = nights.replay
    replay.refresh(*TIERS)
    followed = replay.stored()
    with new_replay(postgres_url, migrated_template, nights.scenario) as other:
        other.world.now = replay.world.now
        other.refresh(*TIERS)
        assert other.failed == []
        at_once = other.stored()
    assert not (found := differences(followed, at_once)), "\n".join(found)
    replay.refresh(*TIERS, full=True)
    assert not (found := differences(replay.stored(), at_once)), "\n".join(found)


def differences(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> list[str]:
    """Return the rows that differ; features may differ by 1e-9 of their value, as the law of features allows."""
    found = []
    for relation, rows in one.items():
        assert rows
        if rows == other[relation]:
            continue
        for a, b in zip_longest(rows, other[relation]):
            if a == b or (relation == "features" and a and b and all(map(near, a, b))):
                continue
            found.append(f"{relation}: {a} and {b}")
            if a is None or b is None or a[:3] != b[:3]:
                break  # all later ones are shifted
    return found


def near(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and isclose(a, b, rel_tol=1e-9))
