"""What is packed of settled partitions: readers get the rows' own values, whatever was written how."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.bars import VALUES, bar_frame
from market_data_pipeline.domain.errors import TransientError
from market_data_pipeline.domain.features.compute import compute_features
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe
from market_data_pipeline.store import many_series
from market_data_pipeline.store.bars import supersede_bars
from market_data_pipeline.store.connection import Role
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.feature_values import feature_table
from market_data_pipeline.store.many_series import Columns, Stretch
from market_data_pipeline.store.packing import (
    differing,
    forget_removed_partitions,
    pack_partition,
    pack_series,
    packed_size,
    remove_differing,
    to_pack,
    unpack_everything,
)
from market_data_pipeline.store.partitions import settle, to_settle
from market_data_pipeline.store.records import append_records, update_features
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.waiting import until

NOW = datetime(2026, 3, 20, tzinfo=UTC)
JANUARY, FEBRUARY = "records_5m_2026_01", "records_5m_2026_02"
ONE, OTHER = Series("ONE", Timeframe.M5), Series("OTHER", Timeframe.M5)
STEP = timedelta(minutes=5)
ALWAYS = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def bars(first: datetime, count: int, price: float = 100.0) -> object:
    """Bars of a series that goes up and down, some without trades or vwap."""
    ts = np.array([int((first + STEP * place).timestamp()) * 1_000_000 for place in range(count)])
    close = np.round(price + np.sin(ts / 1e9) * 3, 2)
    traded = np.where(np.arange(count) % 7 == 3, np.nan, 25.0)
    values = {"open": close - 0.1, "high": close + 0.5, "low": close - 0.5, "close": close, "volume": close * 10}
    return bar_frame(ts, {**values, "vwap": np.where(np.arange(count) % 5 == 2, np.nan, close), "trades": traded})


def append(connection: StoreConnection, series: Series, first: datetime, count: int, *, computed: bool = True) -> None:
    frame = bars(first, count)
    features = compute_features(frame, series.timeframe, AssetClass.US_EQUITY) if computed else None
    append_records(connection, series, frame, None if features is None else feature_table(features), NOW)


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def connection(database_url: str, owner: psycopg.Connection) -> Iterator[StoreConnection]:
    """Two series in January, February and March, of which the first two months are settled and packed."""
    with StoreConnection(database_url, NOW) as made:
        for series in (ONE, OTHER):
            for month in (1, 2, 3):
                append(made, series, datetime(2026, month, 5, 14, 30, tzinfo=UTC), 450)
        append(made, OTHER, datetime(2026, 2, 20, 14, 30, tzinfo=UTC), 20, computed=False)
        made.commit()
        owner.execute("analyze")
        for partition in to_settle(made, NOW):
            settle(made, partition, timedelta(minutes=5))
        repack(made)
        yield made


def repack(connection: StoreConnection) -> None:
    for name in to_pack(connection):
        pack_partition(connection, name, 10**9, timedelta(minutes=5))


def packed(owner: psycopg.Connection) -> set[tuple[str, str]]:
    """The symbols and partitions that are packed."""
    return set(
        owner.execute(
            "select s.symbol, p.partition::regclass::text from market_data.packed_records as p"
            " inner join market_data.series as s on s.id = p.series"
        ).fetchall()
    )


EVERYTHING = {(series.symbol, f"market_data.{name}") for series in (ONE, OTHER) for name in (JANUARY, FEBRUARY)}


def assert_same(first: Columns, second: Columns) -> None:
    np.testing.assert_array_equal(first.at, second.at)
    np.testing.assert_array_equal(first.ts, second.ts)
    assert first.values.keys() == second.values.keys()
    for name, values in first.values.items():
        assert values.dtype == second.values[name].dtype
        np.testing.assert_array_equal(values, second.values[name])


def assert_reads_alike(url: str, stretches: list[Stretch]) -> int:
    """Compare what is read with and without what is packed, of bars, features and both; return the number of bars."""
    with StoreConnection(url, NOW, Role.READER) as reader:
        reader.read_only_snapshots()
        for names, features in ((VALUES, FEATURES), (("trades", "close"), (FEATURES[0], FEATURES[-1]))):
            whole = [
                (
                    many_series.bar_columns(reader, stretches, names, packed=use),
                    many_series.feature_columns(reader, stretches, features, packed=use),
                    many_series.record_columns(reader, stretches, names, features, packed=use),
                )
                for use in (True, False)
            ]
            for with_packed, without in zip(*whole, strict=True):
                assert_same(with_packed, without)
    return len(whole[0][0].ts)


def test_what_is_packed_is_read_and_is_what_the_rows_say(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    assert packed(owner) == EVERYTHING
    assert packed_size(connection).rows == 1820
    assert assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS), Stretch(OTHER, *ALWAYS)]) == 2720
    # Rows that nothing but the table holds are not where they are packed: they come from there.
    owner.execute("alter table market_data.records_5m_2026_01 disable trigger all")
    owner.execute("update market_data.records_5m_2026_01 set close = 1")
    found = many_series.bar_columns(connection, [Stretch(ONE, *ALWAYS)], ["close"])
    assert len(found.ts) == 1350
    assert found.values["close"].min() > 90


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(2026, 1, 6, tzinfo=UTC), datetime(2026, 2, 6, tzinfo=UTC)),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 1, 5, 20, tzinfo=UTC), datetime(2026, 1, 5, 21, tzinfo=UTC)),
        (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 6, tzinfo=UTC)),
        (datetime(2027, 2, 1, tzinfo=UTC), datetime(2027, 3, 6, tzinfo=UTC)),
    ],
)
def test_a_part_is_cut_from_what_is_packed(
    database_url: str, connection: StoreConnection, start: datetime, end: datetime
) -> None:
    assert_reads_alike(database_url, [Stretch(OTHER, start, end), Stretch(ONE, *ALWAYS), Stretch(ONE, start, end)])


MORNING = datetime(2026, 1, 6, 14, 30, tzinfo=UTC)  # a bar of both series


def owner_statement(statement: str) -> Callable[[StoreConnection, psycopg.Connection], None]:
    def write(_: StoreConnection, owner: psycopg.Connection) -> None:
        owner.execute(statement)

    return write


def appended(count: int) -> Callable[[StoreConnection, psycopg.Connection], None]:
    def write(connection: StoreConnection, _: psycopg.Connection) -> None:
        append(connection, ONE, datetime(2026, 1, 20, 14, 30, tzinfo=UTC), count)

    return write


def recomputed(connection: StoreConnection, _: psycopg.Connection) -> None:
    frame = bars(datetime(2026, 1, 5, 14, 30, tzinfo=UTC), 30, price=500)
    update_features(connection, ONE, feature_table(compute_features(frame, Timeframe.M5, AssetClass.US_EQUITY)), NOW)


def superseded(connection: StoreConnection, _: psycopg.Connection) -> None:
    starts = [datetime(2026, 1, 5, 14, 30, tzinfo=UTC) + STEP * place for place in range(1200)]
    supersede_bars(connection, ONE, starts, NOW, "run")


WHERE = f"where ts = '{MORNING.isoformat()}' and series = (select id from market_data.series where symbol = 'ONE')"
WRITES = {
    "a bar is added": appended(1),
    "many bars are added": appended(1200),
    "features are computed again": recomputed,
    "a bar is superseded": owner_statement(
        f"select market_data.supersede_bars('ONE', '5m', array['{MORNING.isoformat()}'::timestamptz], now(), 'run')"
    ),
    "many bars are superseded": superseded,
    "the owner updates": owner_statement(f"update market_data.records set close = 7 {WHERE}"),
    "the owner deletes": owner_statement(f"delete from market_data.{JANUARY} {WHERE}"),
    "a bar becomes another series'": owner_statement(
        "insert into market_data.series values (market_data.timeframe_code('5m') << 24 | 77, 'THIRD', '5m');"
        f"update market_data.records set series = market_data.timeframe_code('5m') << 24 | 77 {WHERE}"
    ),
    "a bar moves to another month": owner_statement(f"update market_data.records set ts = '2026-03-25 14:30Z' {WHERE}"),
}


@pytest.mark.parametrize("how", WRITES)
def test_whoever_changes_a_row_unpacks_it(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection, how: str
) -> None:
    WRITES[how](connection, owner)
    connection.commit()
    assert EVERYTHING - packed(owner) >= {("ONE", f"market_data.{JANUARY}")}
    assert {symbol for symbol, _ in EVERYTHING - packed(owner)} == {"ONE"}
    assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS), Stretch(OTHER, *ALWAYS)])
    repack(connection)
    held = owner.execute(
        f"select from market_data.{JANUARY} as r join market_data.series as s on s.id = r.series and s.symbol = 'ONE'"
    )
    assert packed(owner) >= (EVERYTHING if held.rowcount else EVERYTHING - {("ONE", f"market_data.{JANUARY}")})
    assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS), Stretch(OTHER, *ALWAYS)])


def test_a_change_that_is_undone_unpacks_nothing(owner: psycopg.Connection, connection: StoreConnection) -> None:
    for write in (appended(1200), appended(1), recomputed):
        write(connection, owner)
        connection.rollback()
    assert packed(owner) == EVERYTHING


def test_the_announcement_of_many_rows_ends_with_what_is_undone(
    owner: psycopg.Connection, connection: StoreConnection
) -> None:
    connection.execute("savepoint before")
    appended(1200)(connection, owner)
    connection.execute("rollback to savepoint before")
    appended(1)(connection, owner)
    connection.commit()
    assert EVERYTHING - packed(owner) == {("ONE", f"market_data.{JANUARY}")}


@pytest.mark.parametrize(
    "statement",
    [
        f"truncate market_data.{JANUARY}",
        "truncate market_data.records",
        f"drop table market_data.{JANUARY}",
        f"alter table market_data.records_5m detach partition market_data.{JANUARY}",
        "truncate market_data.settled_partitions",
    ],
)
def test_a_partition_that_is_emptied_or_goes_takes_with_it_what_is_packed(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection, statement: str
) -> None:
    owner.execute(statement)
    assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS), Stretch(OTHER, *ALWAYS)])
    forget_removed_partitions(connection)
    if "settled" in statement:  # it is put in order again, as another table
        for partition in to_settle(connection, NOW):
            connection.rows("select market_data.settle_partition(%(name)s) as rows", {"name": partition.name})
            connection.commit()
        assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS), Stretch(OTHER, *ALWAYS)])
        forget_removed_partitions(connection)
        assert packed(owner) == set()
    else:
        assert packed(owner) <= {each for each in EVERYTHING if JANUARY not in each[1]}


def test_nothing_is_packed_while_someone_stores_in_the_partition(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    unpack_everything(connection)
    with StoreConnection(database_url, NOW) as writer:
        append(writer, ONE, datetime(2026, 1, 20, 14, 30, tzinfo=UTC), 1)
        with pytest.raises(TransientError, match="lock timeout"):
            pack_partition(connection, JANUARY, 10**9, timedelta(seconds=1))
        connection.rollback()
        writer.commit()
    repack(connection)
    assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS)])


def test_what_is_stored_right_after_packing_waits_for_it_and_unpacks(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    unpack_everything(connection)
    numbers = [row["id"] for row in connection.rows("select id from market_data.series order by id")]
    assert pack_series(connection, JANUARY, numbers) == 900
    with StoreConnection(database_url, NOW) as writer:

        def store() -> None:
            append(writer, ONE, datetime(2026, 1, 20, 14, 30, tzinfo=UTC), 1)
            writer.commit()

        stored = threading.Thread(target=store)
        stored.start()
        until(
            lambda: (
                owner.execute(
                    "select from pg_locks where not granted and relation = %s::regclass", (f"market_data.{JANUARY}",)
                ).rowcount
            )
        )
        connection.commit()
        stored.join()
    assert packed(owner) == {("OTHER", f"market_data.{JANUARY}")}
    assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS)])


def test_a_damaged_one_is_found_and_removed(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    with StoreConnection(database_url, NOW, Role.READER) as snapshot:
        snapshot.read_only_snapshots()
        assert differing(snapshot, 100) == []
        snapshot.rollback()
        owner.execute(f"alter table market_data.{JANUARY} disable trigger all")
        owner.execute(f"update market_data.{JANUARY} set close = 7 {WHERE}")
        (wrong,) = remove_differing(connection, snapshot, 100)
    assert wrong.startswith(JANUARY)
    assert EVERYTHING - packed(owner) == {("ONE", f"market_data.{JANUARY}")}


def test_a_reader_may_read_what_is_packed_and_not_change_it(database_url: str, connection: StoreConnection) -> None:
    with psycopg.connect(database_url) as reader:
        reader.execute("set role market_data_reader")
        assert reader.execute("select count(*) from market_data.packed_records").fetchone() == (4,)
        for statement in (
            "delete from market_data.packed_records",
            f"select market_data.hold_for_packing('{JANUARY}')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), reader.transaction():
                reader.execute(statement)


def test_a_database_without_the_table_is_read_as_before(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    owner.execute("alter table market_data.packed_records rename to other")
    assert assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS)]) == 1350


@settings(laws, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["append", "supersede", "recompute", "pack", "settle", "undo", "together"]),
            st.integers(0, 55),
            st.sampled_from([ONE, OTHER]),
        ),
        max_size=8,
    )
)
def test_after_any_changes_readers_get_the_rows(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection, steps: list[tuple[str, int, Series]]
) -> None:
    used: set[tuple[Series, int]] = set()
    for step, day, series in steps:
        first = datetime(2026, 1, 10, 14, 30, tzinfo=UTC) + timedelta(days=day, minutes=5 * len(used))
        if step in {"append", "undo", "together"}:
            owner.execute(
                "delete from market_data.records where ts = %s and series = market_data.series_id(%s, '5m')",
                (first, series.symbol),
            )
            append(connection, series, first, 1)
            used.add((series, day))
            if step == "together":
                repack(connection)
        elif step == "supersede":
            connection.execute(
                "select market_data.supersede_bars(%(symbol)s, '5m', array[%(ts)s::timestamptz], now(), 'run')",
                {"symbol": series.symbol, "ts": MORNING + STEP * day},
            )
        elif step == "recompute":
            frame = bars(datetime(2026, 1, 5, 14, 30, tzinfo=UTC), 25 + day, price=100 + day)
            features = feature_table(compute_features(frame, Timeframe.M5, AssetClass.US_EQUITY))
            update_features(connection, series, features, NOW)
        elif step == "pack":
            repack(connection)
        else:
            connection.rows("select market_data.settle_partition(%(name)s) as rows", {"name": JANUARY})
        if step == "undo":
            connection.rollback()
        connection.commit()
        assert_reads_alike(database_url, [Stretch(ONE, *ALWAYS), Stretch(OTHER, *ALWAYS)])
