"""Rows as the pipeline would have committed them, written with SQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from market_data_pipeline.domain.series import asset_class_of

NOW = datetime(2026, 3, 11, 15, 0, tzinfo=UTC)
DAY = datetime(2026, 3, 11, 4, 0, tzinfo=UTC)  # New York's midnight, summer time since the 8th
STEP = {
    "5m": timedelta(minutes=5), "15m": timedelta(minutes=15), "1h": timedelta(hours=1), "4h": timedelta(hours=4),
    "1d": timedelta(days=1),
}  # fmt: skip


class Seed:
    """Writes rows to one database; every method is one transaction of its own."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def symbol(self, symbol: str, tier: str = "critical", *, active: bool = True) -> None:
        values = (symbol, tier, asset_class_of(symbol), active, NOW)
        self.run("insert into market_data.symbols values (%s, %s, %s, %s, %s)", *values)

    def series(
        self,
        symbol: str,
        timeframe: str = "5m",
        *,
        count: int = 12,
        late: timedelta = timedelta(minutes=-3),
        first: datetime | None = None,
        close: float = 100.0,
        tier: str = "critical",
        **state: Any,
    ) -> None:
        """Hold `count` bars with features; the next bar is due `late` before NOW (negative: after it)."""
        if not self.run("select 1 from market_data.symbols where symbol = %s", symbol):
            self.symbol(symbol, tier)
        first = first or datetime(2026, 3, 11, 13, 30, tzinfo=UTC)
        stored = NOW - timedelta(minutes=2)
        with self.connection.transaction():
            for i in range(count):
                ts = first + i * STEP[timeframe]
                self.bar(symbol, timeframe, ts, close + i, stored)
                self.run(
                    "insert into market_data.features (symbol, timeframe, ts, log_return, hh, trend_direction,"
                    " features_computed_at) values (%s, %s, %s, %s, %s, %s, %s)",
                    symbol, timeframe, ts, 0.01 * i if i else None, i % 2 == 0 if i > 4 else None,
                    "up" if i > 4 else None, stored,
                )  # fmt: skip
            columns = {
                "first_ts": first, "last_ts": first + (count - 1) * STEP[timeframe], "bar_count": count,
                "verified_at": stored, "next_due_at": NOW - late, "features_computed_at": stored,
                "feature_count": count, **state,
            }  # fmt: skip
            names = ", ".join(columns)
            marks = ", ".join(["%s"] * len(columns))
            self.run(
                f"insert into market_data.series_state (symbol, timeframe, tier, {names}) values (%s, %s, %s, {marks})",
                symbol, timeframe, tier, *columns.values(),
            )  # fmt: skip
            self.notify(symbol, timeframe)

    def long_series(self, symbol: str, count: int) -> None:
        """Hold `count` five-minute bars without features, the last of them due now."""
        self.symbol(symbol)
        named = {"s": symbol, "n": count, "now": NOW}
        with self.connection.transaction():
            self.connection.execute(
                "insert into market_data.bars select %(s)s, '5m', %(now)s - i * interval '5 minutes', 100 + mod(i, 7),"
                " 110, 90, 101.25, 1000 + i, 100.123456, 10, %(now)s from generate_series(1, %(n)s) as i",
                named,
            )
            self.connection.execute(
                "insert into market_data.series_state (symbol, timeframe, tier, bar_count, verified_at, next_due_at)"
                " values (%(s)s, '5m', 'critical', %(n)s, %(now)s, %(now)s + interval '5 minutes')",
                named,
            )

    def bar(self, symbol: str, timeframe: str, ts: datetime, close: float, ingested_at: datetime) -> None:
        self.run(
            "insert into market_data.bars values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            symbol, timeframe, ts, close, close + 1, close - 1, close, 1000.0, None, 10, ingested_at,
        )  # fmt: skip

    def correct(self, symbol: str, timeframe: str, ts: datetime, close: float, at: datetime) -> None:
        """Replace a bar's values as a refresh does: the old ones are kept, the change is announced."""
        named = {"s": symbol, "t": timeframe, "ts": ts, "close": close, "at": at}
        with self.connection.transaction():
            self.connection.execute(
                "create temporary table corrected on commit drop as select * from market_data.bars"
                " where symbol = %(s)s and timeframe = %(t)s and ts = %(ts)s",
                named,
            )
            self.connection.execute(
                "create temporary table recomputed on commit drop as select * from market_data.features"
                " where symbol = %(s)s and timeframe = %(t)s and ts = %(ts)s",
                named,
            )
            self.connection.execute(
                "select market_data.supersede_bars(%(s)s, %(t)s, array[%(ts)s::timestamptz], %(at)s, 'run')", named
            )
            self.connection.execute("update corrected set close = %(close)s, ingested_at = %(at)s", named)
            self.connection.execute("insert into market_data.bars select * from corrected")
            self.connection.execute("insert into market_data.features select * from recomputed")
            self.notify(symbol, timeframe)

    def notify(self, symbol: str, timeframe: str) -> None:
        self.run("select pg_notify('market_data_series', %s)", f"{symbol}|{timeframe}")

    def dividend(self, symbol: str, ex_date: str, amount: float, *, seen: datetime = NOW - timedelta(days=9)) -> None:
        self.run(
            "insert into market_data.dividends (symbol, ex_date, amount, currency, first_seen_at)"
            " values (%s, %s, %s, 'USD', %s)",
            symbol, ex_date, amount, seen,
        )  # fmt: skip

    def split(self, symbol: str, day: str, old: float, new: float, seen: datetime = NOW - timedelta(days=30)) -> None:
        self.run("insert into market_data.splits values (%s, %s, %s, %s, %s)", symbol, day, old, new, seen)

    def log(self, run_id: str, symbol: str, timeframe: str, status: str, **more: Any) -> None:
        at = more.pop("at", NOW - timedelta(hours=1))
        columns = {
            "run_id": run_id, "symbol": symbol, "timeframe": timeframe, "started_at": at,
            "finished_at": at + timedelta(seconds=2), "status": status, **more,
        }  # fmt: skip
        marks = ", ".join(["%s"] * len(columns))
        self.run(f"insert into market_data.ingest_log ({', '.join(columns)}) values ({marks})", *columns.values())
