"""The universe file and the tables that follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from market_data_pipeline import read_universe
from market_data_pipeline.domain.errors import ConfigurationError, UsageError
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe
from market_data_pipeline.reading.connections import close_connections
from market_data_pipeline.settings import PACKAGED_UNIVERSE, Settings, load_settings
from market_data_pipeline.store.connection import engine
from market_data_pipeline.store.universe import (
    TrackedSymbol,
    UniverseChange,
    add_symbols,
    ensure_universe,
    load_universe_file,
    remove_symbols,
    sync_universe,
    tracked,
)

NOW = datetime(2025, 3, 14, 19, 30, tzinfo=UTC)
LATER = datetime(2025, 3, 15, tzinfo=UTC)


@pytest.fixture
def db(database_url: str) -> Iterator[sa.Engine]:
    made = engine(database_url)
    yield made
    made.dispose()


def _file(folder: Path, text: str) -> Path:
    file = folder / "universe.yaml"
    file.write_text(text)
    return file


def test_the_packaged_universe_holds_25_liquid_names() -> None:
    universe = load_universe_file(PACKAGED_UNIVERSE)

    assert set(universe[Tier.CRITICAL]) == {"AAPL", "MSFT", "NVDA", "AMZN", "GOOGL", "META", "TSLA", "SPY"}
    assert all(universe[tier] for tier in Tier)
    assert sum(map(len, universe.values())) == 25


def test_tickers_are_read_as_written_where_yaml_would_convert_them(tmp_path: Path) -> None:
    file = _file(tmp_path, "tiers:\n  critical: [ON, NO, Y, KIMpL, BRK.B, X:BTCUSD, 0700]\n  standard: []\n")

    assert load_universe_file(file) == {
        Tier.CRITICAL: ("ON", "NO", "Y", "KIMpL", "BRK.B", "X:BTCUSD", "0700"),
        Tier.STANDARD: (),
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("tiers:\n  critical: [AAPL\n  standard: [SPY]\n", 3, "this is not YAML"),
        (
            "tiers:\n  critical: [AAPL]\n  gold: [SPY]\n",
            3,
            "'gold' is unknown; known are critical, standard, low_prior",
        ),
        ("tiers:\n  critical: [AAPL]\nsymbols: [SPY]\n", 3, "'symbols' is unknown; known are tiers"),
        (
            "tiers:\n  critical:\n    - AAPL\n    - MSFT\n  standard:\n    - AAPL\n",
            6,
            "AAPL is already listed on line 3",
        ),
        ("tiers:\n  critical: [AAPL]\n  critical: [SPY]\n", 3, "critical occurs a second time"),
        ("tiers:\n  critical:\n    - AAPL\n    - aapl\n", 4, "'aapl' is not a ticker"),
        ("tiers:\n  critical:\n    - AAPL\n    - [SPY]\n", 4, "critical must be a list of tickers"),
        ("tiers:\n  critical: AAPL\n", 2, "critical must be a list"),
        ("tiers: [AAPL]\n", 1, "`tiers` must be a mapping"),
        ("- AAPL\n", 1, "the file must be a mapping"),
        ("tiers:\n  critical: []\n  standard:\n", 1, "no symbol is listed"),
        ("{}\n", 1, "there is no `tiers`"),
        ("tiers:\n  critical: [!!python/object:os.system AAPL]\n  standard: [AAPL]\n", 3, "AAPL is already listed"),
    ],
)
def test_a_mistake_in_the_file_is_named_by_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    file = _file(tmp_path, text)

    with pytest.raises(ConfigurationError) as failure:
        load_universe_file(file)

    assert str(failure.value).startswith(f"{file} line {line}: ")
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("content", [b"", b"# nothing yet\n", b"\xff\xfe", b"tiers: \x00"])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "universe.yaml"
    file.write_bytes(content)

    with pytest.raises(ConfigurationError, match=str(file)):
        load_universe_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no-such\.yaml cannot be read"):
        load_universe_file(tmp_path / "no-such.yaml")


def test_a_new_universe_gives_every_symbol_a_tier_and_all_its_series(db: sa.Engine) -> None:
    change = sync_universe(db, {Tier.CRITICAL: ("AAPL", "SPY"), Tier.LOW_PRIORITY: ("X:BTCUSD",)}, NOW)

    assert change == UniverseChange(added=("AAPL", "SPY", "X:BTCUSD"), moved=(), returned=(), removed=())
    assert tracked(db) == [
        TrackedSymbol("AAPL", Tier.CRITICAL, AssetClass.US_EQUITY, True),
        TrackedSymbol("SPY", Tier.CRITICAL, AssetClass.US_EQUITY, True),
        TrackedSymbol("X:BTCUSD", Tier.LOW_PRIORITY, AssetClass.CRYPTO, True),
    ]
    with db.connect() as connection:
        rows = connection.execute(sa.text("select symbol, timeframe, tier from market_data.series_state")).all()
        added = connection.execute(sa.text("select distinct added_at from market_data.symbols")).scalars().all()
    assert {(row.symbol, row.timeframe) for row in rows} == {
        (symbol, timeframe) for symbol in ("AAPL", "SPY", "X:BTCUSD") for timeframe in Timeframe
    }
    assert {row.tier for row in rows if row.symbol == "X:BTCUSD"} == {"low_priority"}
    assert added == [NOW]


def test_the_same_universe_again_changes_nothing(db: sa.Engine) -> None:
    universe = {Tier.CRITICAL: ("AAPL",), Tier.STANDARD: ("SPY",)}
    sync_universe(db, universe, NOW)

    change = sync_universe(db, universe, LATER)

    assert not change
    with db.connect() as connection:
        assert connection.execute(sa.text("select max(added_at) from market_data.symbols")).scalar_one() == NOW


def test_a_removed_symbol_becomes_inactive_and_one_that_moves_or_returns_keeps_its_state(db: sa.Engine) -> None:
    sync_universe(db, {Tier.CRITICAL: ("AAPL", "MSFT"), Tier.STANDARD: ("SPY",)}, NOW)
    with db.begin() as connection:
        connection.execute(sa.text("update market_data.series_state set bar_count = 7"))

    left = sync_universe(db, {Tier.STANDARD: ("AAPL", "SPY")}, LATER)
    back = sync_universe(db, {Tier.STANDARD: ("AAPL", "SPY"), Tier.CRITICAL: ("MSFT",)}, LATER)

    assert left == UniverseChange(added=(), moved=("AAPL",), returned=(), removed=("MSFT",))
    assert back == UniverseChange(added=(), moved=(), returned=("MSFT",), removed=())
    with db.connect() as connection:
        rows = connection.execute(sa.text("select symbol, tier, bar_count from market_data.series_state")).all()
        oldest = connection.execute(sa.text("select max(added_at) from market_data.symbols")).scalar_one()
    assert {row.bar_count for row in rows} == {7}
    assert {row.tier for row in rows if row.symbol == "AAPL"} == {"standard"}
    assert oldest == NOW


def test_adding_keeps_the_others_and_moves_symbols_of_another_tier(db: sa.Engine) -> None:
    sync_universe(db, {Tier.CRITICAL: ("AAPL", "SPY")}, NOW)

    change = add_symbols(db, Tier.STANDARD, ["SPY", "BRK.B"], LATER)

    assert change == UniverseChange(added=("BRK.B",), moved=("SPY",), returned=(), removed=())
    assert [(entry.symbol, entry.tier) for entry in tracked(db)] == [
        ("AAPL", Tier.CRITICAL),
        ("BRK.B", Tier.STANDARD),
        ("SPY", Tier.STANDARD),
    ]


def test_what_is_not_a_ticker_is_not_added(db: sa.Engine) -> None:
    with pytest.raises(UsageError, match="is not a ticker"):
        add_symbols(db, Tier.STANDARD, ["SPY", "drop table"], NOW)

    assert tracked(db) == []


def test_removing_an_unknown_symbol_is_refused_and_removes_none(db: sa.Engine) -> None:
    sync_universe(db, {Tier.CRITICAL: ("AAPL",)}, NOW)

    with pytest.raises(UsageError, match="Not followed: NOPE"):
        remove_symbols(db, ["AAPL", "NOPE"])

    assert [entry.active for entry in tracked(db)] == [True]
    assert remove_symbols(db, ["AAPL"]).removed == ("AAPL",)
    assert [entry.active for entry in tracked(db)] == [False]


def test_concurrent_changes_run_one_after_the_other(db: sa.Engine) -> None:
    universe = load_universe_file(PACKAGED_UNIVERSE)

    with ThreadPoolExecutor(4) as pool:
        changes = list(pool.map(lambda _: sync_universe(db, universe, NOW), range(4)))

    assert sorted(len(change.added) for change in changes) == [0, 0, 0, 25]


def test_the_configured_file_is_loaded_on_first_use_only(
    db: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(_file(tmp_path, "tiers: {critical: [AAPL]}\n")))

    first = ensure_universe(load_settings(), db)
    remove_symbols(db, ["AAPL"])

    assert first is not None
    assert first.added == ("AAPL",)
    assert ensure_universe(load_settings(), db) is None
    assert [entry.active for entry in tracked(db)] == [False]


def test_the_universe_of_an_instant_is_what_was_followed_then(db: sa.Engine, database_url: str, tmp_path: Path) -> None:
    def at(day: int) -> datetime:
        return datetime(2026, 11, day, 17, tzinfo=UTC)

    def acts(day: int, act: Callable[[sa.Engine], object]) -> None:
        moved = engine(database_url, as_of=at(day))
        act(moved)
        moved.dispose()

    acts(2, lambda moved: add_symbols(moved, Tier.STANDARD, ["FB", "LEH"], at(2)))
    acts(4, lambda moved: remove_symbols(moved, ["LEH"]))
    acts(6, lambda moved: add_symbols(moved, Tier.CRITICAL, ["FB"], at(6)))
    acts(9, lambda moved: add_symbols(moved, Tier.STANDARD, ["LEH"], at(9)))
    with db.begin() as connection:
        for ticker, since, until in (("FB", None, "2026-11-05"), ("META", "2026-11-05", None)):
            connection.exec_driver_sql(
                "insert into market_data.symbol_history (security, symbol, valid_from, valid_until, source,"
                " first_seen_at) values ('BBG', %s, %s, %s, 'events', %s)",
                (ticker, since, until, at(5)),
            )
        connection.exec_driver_sql(
            "insert into market_data.listings (symbol, asked_at, known, active, delisted_at)"
            " values ('LEH', %s, true, false, %s)",
            (at(9), at(3)),
        )

    def universe(day: int) -> dict[object, tuple[object, ...]]:
        settings = Settings(database_url=database_url, project_root=tmp_path, as_of=at(12))
        found = read_universe(as_of=at(day), settings=settings)
        close_connections()
        return {row[0]: row[2:] for row in found.astype(object).where(found.notna(), None).itertuples()}

    assert universe(1) == {}
    assert universe(2) == {"FB": ("standard", True, None, "FB", True), "LEH": ("standard", True, None, "LEH", True)}
    assert universe(4)["LEH"] == ("standard", False, None, "LEH", False)
    assert universe(5)["FB"] == ("standard", True, "BBG", "META", True)
    assert universe(6)["FB"] == ("critical", True, "BBG", "META", True)
    assert universe(9)["LEH"] == ("standard", True, None, "LEH", False)
