"""Answers kept in memory stay true: commits, lost connections, splits and time are all noticed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import psycopg
import pytest

from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.reports.series_records import Watermarks
from market_data_pipeline.serving.answers import Answer
from market_data_pipeline.serving.cache import RequestKey, ResponseCache
from market_data_pipeline.serving.formats import Media
from market_data_pipeline_tests.serving.conftest import BARS, FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.waiting import until

AAPL, MSFT = Series("AAPL", Timeframe.M5), Series("MSFT", Timeframe.M5)


def test_a_repeated_request_is_answered_from_memory(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    api.wait_for_cache()
    first = api.get(f"{FEATURES}/AAPL", timeframe="5m")
    second = api.get(f"{FEATURES}/AAPL", timeframe="5m")
    assert api.hits() == 1
    assert second.json() == first.json()
    unlike = {"date"}
    assert {k: v for k, v in second.headers.items() if k.lower() not in unlike} == {
        k: v for k, v in first.headers.items() if k.lower() not in unlike
    }


def test_a_commit_is_seen_by_the_next_reader(api: Api, seed: Seed) -> None:
    first = datetime.fromisoformat("2026-03-11T13:30:00Z")
    seed.series("AAPL", first=first, count=1)
    api.wait_for_cache()
    before = api.get(f"{BARS}/AAPL", timeframe="5m")

    seed.correct("AAPL", "5m", first, 55.5, NOW)

    until(lambda: api.get(f"{BARS}/AAPL", timeframe="5m").json()["bars"][0]["close"] == 55.5)
    after = api.get(f"{BARS}/AAPL", timeframe="5m", headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200


def test_bars_of_regular_hours_are_kept_until_a_commit_of_their_series(api: Api, seed: Seed) -> None:
    first = datetime.fromisoformat("2026-03-11T13:25:00Z")  # five minutes before the market opens
    seed.series("AAPL", first=first, count=14, close=100.0)
    seed.series("AAPL", "1h", first=first.replace(minute=0), count=1)
    api.wait_for_cache()

    def shown(timeframe: str) -> list[float]:
        bars = api.get(f"{BARS}/AAPL", timeframe=timeframe, session="regular").json()["bars"]
        return [bar["close"] for bar in bars]

    assert shown("5m") == shown("5m") == [101.0 + at for at in range(13)]
    assert api.hits() == 1
    assert len(api.get(f"{BARS}/AAPL", timeframe="5m").json()["bars"]) == 14
    assert shown("1h") == shown("1h") == [112.0]  # made of the other series' bars, whose commits must show
    assert api.hits() == 1

    seed.correct("AAPL", "5m", first + timedelta(minutes=60), 55.5, NOW)

    assert shown("1h") == [55.5]
    until(lambda: shown("5m")[11] == 55.5)


def test_dividends_and_the_closes_before_them_are_seen_by_the_next_reader(api: Api, seed: Seed) -> None:
    first, day = datetime.fromisoformat("2026-03-10T14:30:00Z"), datetime.fromisoformat("2026-03-10T04:00:00Z")
    seed.series("AAPL", first=first, count=1, close=100.0)
    seed.series("AAPL", "1d", first=day, count=1, close=100.0)
    api.wait_for_cache()

    def shown() -> tuple[float, str]:
        answer = api.get(f"{BARS}/AAPL", timeframe="5m", adjustment="all")
        return answer.json()["bars"][0]["close"], answer.headers["ETag"]

    tags = [shown()]
    seed.dividend("AAPL", "2026-03-11", 1.0)
    until(lambda: shown()[0] == pytest.approx(99.0))
    tags.append(shown())
    seed.correct("AAPL", "1d", day, 50.0, NOW)
    until(lambda: shown()[0] == pytest.approx(98.0))
    tags.append(shown())
    seed.run("update market_data.dividends set ex_date = '2026-03-12'")  # tomorrow
    until(lambda: shown()[0] == 100.0)
    assert tags[0][0] == 100.0
    assert len({tag for _, tag in tags}) == 3


def test_a_commit_leaves_other_series_in_memory(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    seed.series("MSFT")
    api.wait_for_cache()
    for symbol in ("AAPL", "MSFT"):
        api.get(f"{FEATURES}/{symbol}", timeframe="5m")

    seed.correct("AAPL", "5m", datetime.fromisoformat("2026-03-11T13:30:00Z"), 1.0, NOW)
    until(lambda: api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["features"][0]["close"] == 1.0)

    hits = api.hits()
    api.get(f"{FEATURES}/MSFT", timeframe="5m")
    assert api.hits() == hits + 1


@pytest.mark.parametrize(
    "statement",
    [
        "insert into market_data.splits values ('AAPL', '2026-03-12', 1, 4, now())",
        "update market_data.splits set counts = false where symbol = 'AAPL'",
        "delete from market_data.splits where symbol = 'AAPL'",
        "update market_data.symbols set active = false where symbol = 'AAPL'",
        "update market_data.series_state set verified_at = now() where symbol = 'AAPL'",
        "delete from market_data.series_state where symbol = 'AAPL'",
        "truncate market_data.splits",
    ],
)
def test_whatever_changes_an_answer_is_notified_whoever_writes_it(seed: Seed, statement: str) -> None:
    seed.series("AAPL")
    seed.series("MSFT")
    seed.split("AAPL", "2026-03-11", 1, 2)
    seed.run("listen market_data_series")
    list(seed.connection.notifies(timeout=0))
    seed.run(statement)
    told = {notification.payload for notification in seed.connection.notifies(timeout=60, stop_after=1)}
    assert told == ({"*"} if statement.startswith("truncate") else {"AAPL|5m"})


def test_after_the_commit_of_a_split_all_answers_about_a_bar_agree(api: Api, seed: Seed) -> None:
    first = datetime.fromisoformat("2026-03-10T13:30:00Z")
    seed.series("AAPL", first=first, count=2)
    api.wait_for_cache()

    def close(limit: int, endpoint: str = BARS, records: str = "bars") -> float:
        found = api.get(f"{endpoint}/AAPL", timeframe="5m", limit=limit).json()[records][-1]["close"]
        assert isinstance(found, float)
        return found

    raw = close(1)
    assert (close(2), close(1, FEATURES, "features")) == (raw, raw)

    seed.split("AAPL", "2026-03-11", 1, 4)

    until(lambda: close(1) == raw / 4)
    assert (close(2), close(3), close(1, FEATURES, "features")) == (raw / 4, raw / 4, raw / 4)


def test_freshness_and_timestamp_of_a_kept_answer_follow_the_clock(
    api: Api, seed: Seed, move_clock: Callable[[datetime], None]
) -> None:
    seed.series("AAPL")
    api.wait_for_cache()
    api.get(f"{FEATURES}/AAPL", timeframe="5m")
    move_clock(NOW + timedelta(hours=8))
    later = api.get(f"{FEATURES}/AAPL", timeframe="5m").json()
    assert api.hits() == 1
    assert (later["freshness"]["status"], later["timestamp"]) == ("STALE", "2026-03-11T23:00:00Z")
    assert later["freshness"]["staleness_seconds"] == timedelta(hours=8, minutes=-3).total_seconds()


def test_a_lost_listening_connection_empties_the_cache(api: Api, seed: Seed) -> None:
    first = datetime.fromisoformat("2026-03-11T13:30:00Z")
    seed.series("AAPL", first=first, count=1)
    api.wait_for_cache()
    api.get(f"{BARS}/AAPL", timeframe="5m")

    with api.loses_its_cache():
        seed.run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'market-data-api changes'"
        )
    seed.run("update market_data.bars set close = 77")  # without a notification

    assert api.get(f"{BARS}/AAPL", timeframe="5m").json()["bars"][0]["close"] == 77
    api.wait_for_cache()


def test_a_notification_without_a_series_empties_the_cache(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=1)
    api.wait_for_cache()
    api.get(f"{BARS}/AAPL", timeframe="5m")
    seed.run("update market_data.bars set close = 77")
    seed.run("notify market_data_series, 'everything'")
    until(lambda: api.get(f"{BARS}/AAPL", timeframe="5m").json()["bars"][0]["close"] == 77)


def answer(series: Series = AAPL, size: int = 100, valid_until: datetime | None = None) -> Answer:
    return Answer(series, Media.CSV, b"", "bars", b"x" * size, Watermarks(NOW, NOW, NOW), valid_until, "/bars")


def key(name: str) -> RequestKey:
    return RequestKey(name, b"", "")


def opened(now: Callable[[], datetime] = lambda: NOW, **bounds: int) -> ResponseCache:
    cache = ResponseCache(now, **bounds)
    cache.open()
    return cache


def test_an_answer_read_before_a_commit_is_not_kept() -> None:
    cache = opened()
    before, other = cache.version(AAPL), cache.version(MSFT)
    cache.invalidate(AAPL)
    cache.answers.put(key("a"), answer(AAPL), before)
    cache.answers.put(key("m"), answer(MSFT), other)
    assert cache.answers.get(key("a")) is None
    assert cache.answers.get(key("m")) is not None


def test_an_answer_kept_before_a_commit_is_not_sent_after_it() -> None:
    cache = opened()
    cache.answers.put(key("a"), answer(AAPL), cache.version(AAPL))
    assert cache.answers.get(key("a")) is not None
    cache.invalidate(AAPL)
    assert cache.answers.get(key("a")) is None
    assert cache.size == 0


def test_an_answer_read_before_the_connection_was_lost_is_not_kept() -> None:
    cache = opened()
    before = cache.version(AAPL)
    cache.close()
    cache.answers.put(key("a"), answer(), before)
    cache.open()
    cache.answers.put(key("a"), answer(), before)
    assert cache.answers.get(key("a")) is None
    assert cache.size == 0


def test_the_least_recently_used_answers_make_room() -> None:
    cache = opened(answer_bytes=1_000)
    for name in "abcd":
        cache.answers.put(key(name), answer(size=200), cache.version(AAPL))
        cache.answers.get(key("a"))
    cache.answers.put(key("huge"), answer(size=2_000), cache.version(AAPL))
    assert [name for name in "abcd" if cache.answers.get(key(name))] == ["a", "d"]
    assert cache.size <= 1_000
    cache.close()
    assert cache.size == 0


def test_adjusted_prices_are_kept_until_the_next_split_takes_effect() -> None:
    now = [NOW]
    cache = opened(lambda: now[0])
    cache.answers.put(key("a"), answer(valid_until=NOW + timedelta(hours=1)), cache.version(AAPL))
    assert cache.answers.get(key("a")) is not None
    now[0] += timedelta(hours=1)
    assert cache.answers.get(key("a")) is None


def test_a_restarted_server_is_listened_to_again(api: Api, seed: Seed, database_url: str) -> None:
    api.wait_for_cache()
    with api.loses_its_cache(), psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name like 'market-data-api%%'", ()
        )  # fmt: skip
    api.wait_for_cache()
    seed.series("AAPL")
    assert api.get(f"{FEATURES}/AAPL", timeframe="5m").status_code == 200


def test_a_symbol_that_is_not_tracked_takes_no_memory(api: Api) -> None:
    api.wait_for_cache()
    for number in range(3):
        assert api.get(f"{BARS}/NONE{number}", timeframe="5m").status_code == 404
    assert "market_data_cache_bytes 0.0" in api.get("/metrics").text
