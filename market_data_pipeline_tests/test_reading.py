"""The Python interface: frames of bars and features from the database, and messages for wrong arguments."""

from __future__ import annotations

import doctest
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import psycopg
import pytest

import market_data_pipeline
from market_data_pipeline import iter_bars, iter_features, iter_records, read_bars, read_features, read_records
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError, UsageError
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES, FEATURES
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.recorded import SAMPLE

NOON = datetime(2014, 6, 10, 12, 0, tzinfo=NEW_YORK)  # the day after Apple's 7-for-1 split
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def recorded(postgres_url: str, migrated_template: str) -> Iterator[World]:
    """A database with recorded bars of AAPL and their features, which tests copy."""
    name = copy_database(postgres_url, migrated_template)
    world = World("", with_database(postgres_url, name), NOON.astimezone(UTC))
    with running_server(open_source(SAMPLE), world.clock, plan="advanced") as world.base_url:
        world.refresh("AAPL", history_days=200)
    yield world
    drop_database(postgres_url, name)


@pytest.fixture
def apple(recorded: World, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A copy of that database, which the environment names."""
    name = copy_database(postgres_url, urlsplit(recorded.database_url).path[1:])
    monkeypatch.setenv("DATABASE_URL", with_database(postgres_url, name))
    monkeypatch.setenv("MARKET_DATA_AS_OF", recorded.now.isoformat())
    yield World(recorded.base_url, with_database(postgres_url, name), recorded.now)
    drop_database(postgres_url, name)


def test_features_come_as_they_are_stored_with_types_to_calculate_with(apple: World) -> None:
    features = read_features("AAPL", "1d")
    assert features.columns.tolist() == list(FEATURE_NAMES)
    assert features.index.name == "ts"
    assert str(features.index.dtype) == "datetime64[us, UTC]"
    dtypes = {"float": "float64", "bool": "boolean", "text": "category"}
    assert {f.name: str(features[f.name].dtype) for f in FEATURES} == {f.name: dtypes[f.dtype] for f in FEATURES}
    for feature in FEATURES:
        if feature.labels:
            assert features[feature.name].cat.categories.tolist() == list(feature.labels)
    rows = apple.query("select * from market_data.features where timeframe = '1d' order by ts")
    assert features.index.tolist() == [row["ts"] for row in rows]
    for name in FEATURE_NAMES:
        got = [None if pd.isna(value) else value for value in features[name].tolist()]
        assert got == [row[name] for row in rows]


def test_a_range_excludes_its_end_and_takes_dates_where_the_symbol_trades(apple: World) -> None:
    everything = read_bars("AAPL", "1d")
    by_date = read_bars("AAPL", "1d", start=date(2014, 6, 2), end="2014-06-05")
    assert [ts.astimezone(NEW_YORK).day for ts in by_date.index] == [2, 3, 4]
    start, end = datetime(2014, 6, 2, tzinfo=NEW_YORK), datetime(2014, 6, 5, tzinfo=NEW_YORK)
    pd.testing.assert_frame_equal(read_bars("AAPL", "1d", start=start, end=pd.Timestamp(end)), by_date)
    pd.testing.assert_frame_equal(everything[(everything.index >= start) & (everything.index < end)], by_date)
    pd.testing.assert_index_equal(read_features("AAPL", "1d", start, end).index, by_date.index)


def test_adjusted_bars_are_those_of_the_view_and_raw_ones_as_traded(apple: World) -> None:
    columns = ["open", "high", "low", "close", "volume", "vwap", "trades"]
    for adjusted, relation in ((True, "bars_adjusted"), (False, "bars")):
        bars = read_bars("AAPL", "1d", adjusted=adjusted)
        assert bars.columns.tolist() == columns
        assert [str(bars[name].dtype) for name in columns] == ["float64"] * 6 + ["Int64"]
        with apple.connect() as connection:
            connection.execute("select set_config('market_data.as_of', %s, false)", (apple.now.isoformat(),))
            rows = connection.execute(
                f"select * from market_data.{relation} where timeframe = '1d' order by ts"
            ).fetchall()
        for name in columns[:5]:
            np.testing.assert_allclose(bars[name], [row[name] for row in rows], rtol=1e-14)
    raw, continuous = (read_bars("AAPL", "1d", adjusted=adjusted)["close"] for adjusted in (False, True))
    assert raw.pct_change().min() < -0.8
    assert continuous.pct_change().abs().max() < 0.1


def test_as_of_returns_what_was_known_then_splits_included(apple: World) -> None:
    known = apple.now
    before = read_bars("AAPL", "1d", as_of=known)
    pd.testing.assert_frame_equal(before, read_bars("AAPL", "1d"))
    with apple.connect() as connection:
        # Two days later the vendor has corrected a close, and the split was listed to us on the fourth only.
        later = known + timedelta(days=2)
        connection.execute(
            "select market_data.supersede_bars('AAPL', '1d', array[%(ts)s::timestamptz], %(at)s, 'run')",
            {"ts": before.index[-1], "at": later},
        )
        connection.execute(
            "insert into market_data.bars select symbol, timeframe, ts, open, high, low, close + 1, volume, vwap,"
            " trades, superseded_at from market_data.bar_revisions"
        )
        connection.execute("update market_data.splits set first_seen_at = %s", (known + timedelta(days=4),))
    pd.testing.assert_frame_equal(
        read_bars("AAPL", "1d", as_of=known, adjusted=False).iloc[:-1],
        read_bars("AAPL", "1d", adjusted=False).iloc[:-1],
    )
    closes = {days: read_bars("AAPL", "1d", as_of=known + timedelta(days=days))["close"] for days in (0, 1, 3, 5)}
    assert closes[0].iloc[-1] + 1 == closes[3].iloc[-1] == closes[5].iloc[-1]
    assert closes[1].iloc[0] == pytest.approx(7 * closes[5].iloc[0])  # the split was not known yet
    assert len(read_bars("AAPL", "1d", as_of=known - timedelta(seconds=1))) == 0


def test_null_is_nan_in_a_float_column_and_na_in_trades(apple: World) -> None:
    with apple.connect() as connection:
        connection.execute("update market_data.bars set vwap = null, trades = null where timeframe = '1d'")
    bars = read_bars("AAPL", "1d")
    assert bars["vwap"].isna().all()
    assert bars["trades"].isna().all()
    assert (str(bars["vwap"].dtype), str(bars["trades"].dtype)) == ("float64", "Int64")


@pytest.mark.parametrize("rows", [1_000_000, 700, 64])
def test_pieces_are_the_whole_answer_in_its_order_and_none_is_longer_than_asked(apple: World, rows: int) -> None:
    apple.track("MSFT")
    asked = (["MSFT", "AAPL"], ["1h", "5m", "1d"])
    for iterate, read in ((iter_bars, read_bars), (iter_features, read_features), (iter_records, read_records)):
        pieces = list(iterate(*asked, rows=rows))
        assert 0 < max(map(len, pieces)) <= rows
        assert all(len(piece) for piece in pieces)
        pd.testing.assert_frame_equal(pd.concat(pieces), read(*asked))
    assert list(iter_bars("MSFT", "1d")) == []


def test_an_iterator_sees_the_database_of_its_first_piece(apple: World) -> None:
    pieces = iter_bars("AAPL", "5m", rows=64)
    first = next(pieces)
    apple.query("delete from market_data.bars returning 1")
    assert len(first) + sum(map(len, pieces)) > 500
    assert len(read_bars("AAPL", "5m")) == 0


def test_several_timeframes_follow_one_another_within_each_symbol(apple: World) -> None:
    both = read_bars(["AAPL"], ["1d", "4h"])
    assert both.columns.tolist()[:2] == ["symbol", "timeframe"]
    assert both["timeframe"].cat.categories.tolist() == ["1d", "4h"]
    assert both["timeframe"].cat.codes.is_monotonic_increasing
    for timeframe in ("1d", "4h"):
        part = both[both["timeframe"] == timeframe].drop(columns=["symbol", "timeframe"])
        pd.testing.assert_frame_equal(part, read_bars("AAPL", timeframe))


def test_records_are_each_bar_with_its_features(apple: World) -> None:
    records = read_records("AAPL", "1d")
    pd.testing.assert_frame_equal(records, read_bars("AAPL", "1d").join(read_features("AAPL", "1d")))
    gone = apple.query(
        "delete from market_data.features where timeframe = '1d' and extract(day from ts) = any(%s) returning ts",
        [2, 3, 20],
    )
    without = read_records(["AAPL"], "1d").drop(columns="symbol")
    names = list(FEATURE_NAMES)
    missing = without.index.isin([row["ts"] for row in gone])
    assert 0 < missing.sum() < len(missing)
    assert without.loc[missing, names].isna().all(axis=None)
    pd.testing.assert_frame_equal(without[~missing], records[~missing])
    pd.testing.assert_frame_equal(without.drop(columns=names), records.drop(columns=names))
    apple.query("delete from market_data.features returning 1")
    assert read_records("AAPL", "1d")[names].isna().all(axis=None)


def test_only_the_named_columns_are_read_in_their_order_with_the_same_values(apple: World) -> None:
    whole = read_records("AAPL", "1d")
    for columns in (["volume", "close"], ["trend_regime", "hh", "vwap"], ["atr"], ["ll"]):
        pd.testing.assert_frame_equal(read_records("AAPL", "1d", columns=columns), whole[columns])
    assert read_bars(["AAPL"], "1d", columns=("close",)).columns.tolist() == ["symbol", "close"]
    pd.testing.assert_frame_equal(read_features("AAPL", "1d", columns="atr"), whole[["atr"]])


def test_arrow_and_polars_hold_the_same_values(apple: World) -> None:
    arguments = (["AAPL"], ["1d", "1h"])
    frame = read_records(*arguments).reset_index()
    table = read_records(*arguments, as_arrow=True)
    assert table.column_names == ["symbol", "timeframe", "ts", *read_records("AAPL", "1d").columns]
    assert str(table.schema.field("ts").type) == "timestamp[us, tz=UTC]"
    polars = read_records(*arguments, as_polars=True)
    assert polars.columns == table.column_names
    for name in table.column_names:
        expected = [None if pd.isna(value) else value for value in frame[name].tolist()]
        assert table[name].to_pylist() == polars[name].to_list() == expected


def test_several_symbols_follow_one_another(apple: World) -> None:
    apple.track("MSFT")
    both = read_features(["MSFT", "AAPL"], "1d")
    assert both.columns[0] == "symbol"
    assert both["symbol"].cat.categories.tolist() == ["MSFT", "AAPL"]
    pd.testing.assert_frame_equal(both[both["symbol"] == "AAPL"].drop(columns="symbol"), read_features("AAPL", "1d"))


def test_each_of_several_symbols_is_adjusted_by_its_own_splits_and_read_as_of_the_instant(apple: World) -> None:
    symbols = ["AAPL", "MSFT", "NVDA"]
    apple.track(*symbols)
    for copy in symbols[1:]:
        for relation in ("bars", "series_state"):
            names = apple.query(
                "select string_agg(attname, ', ') as others from pg_attribute where attrelid = %s::regclass"
                " and attnum > 0 and attname <> 'symbol' and not attisdropped",
                f"market_data.{relation}",
            )[0]["others"]
            apple.query(
                f"insert into market_data.{relation} (symbol, {names}) select %s, {names} from market_data.{relation}"
                " where symbol = 'AAPL' returning 1",
                copy,
            )
    apple.query(
        "insert into market_data.splits values ('NVDA', '2014-03-03', 1, 2, %s), ('NVDA', '2014-05-05', 1, 3, %s)"
        " returning 1",
        apple.now, apple.now + timedelta(days=1),
    )  # fmt: skip
    for options in ({}, {"adjusted": False}, {"as_of": apple.now}, {"as_of": apple.now + timedelta(days=2)}):
        together = read_bars(symbols, ["1d", "4h"], **options)
        apart = [read_bars([symbol], [frame], **options) for symbol in symbols for frame in ("1d", "4h")]
        for column in ("open", "volume", "vwap", "trades"):
            pd.testing.assert_series_equal(together[column], pd.concat(apart)[column])
    first = {symbol: read_bars(symbol, "1d")["close"].iloc[0] for symbol in symbols}
    assert first["MSFT"] == pytest.approx(7 * first["AAPL"])
    assert first["NVDA"] == pytest.approx(first["MSFT"] / 6)


def test_own_features_come_with_any_label_and_any_number_of_labels(
    apple: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [f"label {number}" for number in range(300)]  # three of these do not fit into one number beside the 17
    odd = ["it's 5 %", "{x}", "%(symbol)s", "\\", "ü"]
    names = ["odd", "first", "second", "third", "free", "sure", "size"]
    Path(os.environ["MARKET_DATA_PROJECT_ROOT"], "mine.py").write_text(
        "from market_data_pipeline import OwnFeature\n"
        "def own(name, dtype, labels=()):\n"
        "    return OwnFeature(name=name, compute=len, dtype=dtype, description=name, warm_up=0, labels=labels)\n"
        f"many, odd = {many!r}, {odd!r}\n"
        "FEATURES = (own('odd', 'text', odd), own('first', 'text', many), own('second', 'text', many),\n"
        "    own('third', 'text', many), own('free', 'text'), own('sure', 'bool'), own('size', 'float'))\n"
    )
    monkeypatch.setenv("MARKET_DATA_FEATURES_MODULE", "mine.py")
    stored = [
        dict(
            zip(
                names,
                (odd[row % 5], many[row], many[299 - row], many[7], f"n{row}", row % 2 == 0, row / 3),
                strict=True,
            )
        )
        for row in range(9)
    ]
    stored[3] = {"odd": "no label", "sure": None, "size": "text"}
    days = [row["ts"] for row in apple.query("select ts from market_data.features where timeframe = '1d' order by ts")]
    for day, extra in zip(days, stored, strict=False):
        apple.query(
            "update market_data.features set extra = %s where timeframe = '1d' and ts = %s returning 1",
            json.dumps(extra), day,
        )  # fmt: skip
    stored[3] = {}
    for read in (read_features, read_records):
        found = read("AAPL", "1d", end=days[9], columns=names, as_arrow=True).drop_columns(["ts"]).to_pylist()
        assert found == [{name: row.get(name) for name in names} for row in stored]


def test_no_rows_are_an_empty_frame_of_the_same_types(apple: World) -> None:
    for read in (read_bars, read_features):
        empty, full = read("AAPL", "1d", start="2013-01-01", end="2013-02-01"), read("AAPL", "1d")
        assert len(empty) == 0
        pd.testing.assert_series_equal(empty.dtypes, full.dtypes)
        assert empty.index.dtype == full.index.dtype


def test_bars_and_features_join_by_their_index(apple: World) -> None:
    joined = read_bars("AAPL", "5m").join(read_features("AAPL", "5m"))
    assert joined["close"].notna().all()
    np.testing.assert_allclose(joined["log_return"].iloc[1:], np.log(joined["close"]).diff().iloc[1:], rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: read_bars("aapl", "1d"), "'aapl' is not tracked here; did you mean AAPL?"),
        (lambda: read_features("NFLX", "1d"), "'NFLX' is not tracked here; `market-data universe add NFLX` adds it."),
        (lambda: read_bars("AAPL", "2h"), "Unknown timeframe '2h'; known are 5m, 15m, 1h, 4h, 1d."),
        (lambda: read_bars([], "1d"), "Name at least one symbol"),
        (lambda: read_features(None, "1d"), "Name at least one symbol"),  # type: ignore[arg-type]
        (lambda: read_bars("AAPL", "1d", start=datetime(2014, 6, 2)), "has no time zone"),  # noqa: DTZ001
        (lambda: read_bars("AAPL", "1d", end="2014-06-02T10:00"), "has no time zone"),
        (lambda: read_bars("AAPL", "1d", start="June"), "start 'June' is not an ISO 8601 date"),
        (lambda: read_bars("AAPL", "1d", start="2014-06-02", end="2014-06-02"), "start must be before end"),
        (lambda: read_bars("AAPL", "1d", as_of=date(2014, 6, 2)), "as_of .* is not an instant"),  # type: ignore[arg-type]
        (lambda: read_bars("AAPL", []), "Name at least one timeframe"),
        (lambda: read_bars("AAPL", "1d", columns=["price"]), "no column 'price' here; known are open, high"),
        (lambda: read_features("AAPL", "1d", columns=[]), "Name at least one column"),
        (lambda: read_bars("AAPL", "1d", as_arrow=True, as_polars=True), "pass one of them"),
        (lambda: read_bars("AAPL", "1d", source="file"), "source must be one of auto, database, lake"),
        (lambda: iter_bars("AAPL", "1d", rows=0), "rows must be a whole number"),
    ],
)
def test_a_wrong_argument_is_explained(apple: World, call: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        call()  # type: ignore[operator]


def test_the_example_draws_a_chart(apple: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "read_features.py"))
    target = tmp_path / "chart.html"
    example["main"]("AAPL", str(target))
    bars, features = read_bars("AAPL", "1d"), read_features("AAPL", "1d")
    assert f"{len(bars)} bars drawn in {target}" in capsys.readouterr().out
    assert "vegaEmbed" in target.read_text()
    assert "cdn" not in target.read_text().split("vegaEmbed")[-1]
    (drawn,) = example["chart"](bars, features, "AAPL").to_dict()["datasets"].values()
    assert [row["close"] for row in drawn] == bars["close"].tolist()
    assert [row["volatility_regime"] for row in drawn][-1] == features["volatility_regime"].iloc[-1]


def test_a_database_that_was_never_migrated_or_is_unreachable_is_named(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    with pytest.raises(ConfigurationError, match="market-data migrate"):
        read_bars("AAPL", "1d")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailableError):
        read_bars("AAPL", "1d")


@pytest.mark.xdist_group("embedded")
def test_the_first_read_starts_and_migrates_the_embedded_server(tmp_path: Path) -> None:
    from market_data_pipeline.runtime.postgres import EmbeddedPostgres
    from market_data_pipeline.settings import load_settings

    settings = load_settings()
    assert settings.embedded_database
    server = EmbeddedPostgres.of(settings)
    assert not server.is_running()
    try:
        with pytest.raises(UsageError, match="not tracked"):
            read_features("AAPL", "1d")
        with psycopg.connect(settings.database_url) as connection:
            connection.execute(
                "insert into market_data.symbols values ('AAPL', 'critical', 'us_equity', true, %s)",
                (datetime.now(UTC),),
            )
        assert len(read_features("AAPL", "1d")) == 0
    finally:
        server.stop()


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = (
        "import sys, market_data_pipeline; before = set(sys.modules); market_data_pipeline.read_bars;"
        "print(sorted({'pandas', 'numpy', 'pyarrow', 'sqlalchemy', 'pydantic'} & before), len(before) < 150)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[] True"
    assert set(market_data_pipeline.__all__) <= set(dir(market_data_pipeline))
    with pytest.raises(AttributeError):
        market_data_pipeline.read_everything  # noqa: B018


@pytest.mark.parametrize("name", market_data_pipeline.__all__)
def test_the_example_of_each_public_name_gives_what_it_shows(name: str, apple: World) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(market_data_pipeline, name), name)
    assert example.examples
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not said, "".join(said)
