"""What Dagster shows of assets and runs: columns, metadata per series, one table per run, and the failure of a run.

Metadata (https://docs.dagster.io/guides/build/assets/metadata-and-tags). Add here: a fact to show on a partition's or a
run's page. Keep out: how it is computed (ingest).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.counters import NOTHING
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.life import Life
from market_data_pipeline.orchestration.partitions import bars_key, features_key, partition_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.errors import PipelineError
    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.series import Tier
    from market_data_pipeline.ingest.outcome import SeriesOutcome

WORST_SHOWN: Final = 20  # failures in a message or table, as many as people read; the counts beside them are exact
ROWS_SHOWN: Final = 500  # symbols in a run's table: about 100 kB of event


def _column(name: str, kind: str, description: str, *, nullable: bool = False) -> dg.TableColumn:
    return dg.TableColumn(name, kind, description=description, constraints=dg.TableColumnConstraints(nullable=nullable))


_KEY: Final = (
    _column("symbol", "text", "The vendor's ticker, case-sensitive."),
    _column("timeframe", "text", "5m, 15m, 1h, 4h or 1d."),
    _column("ts", "timestamptz", "The bar's start."),
)

BAR_COLUMNS: Final = dg.TableSchema(
    [
        *_KEY,
        *(_column(name, "double precision", f"The bar's {name}, US dollars, as traded.") for name in PRICES),
        _column("volume", "double precision", "Shares or units traded, quotes of a currency pair; null for an index."),
        _column("vwap", "double precision", "Volume-weighted average price, US dollars.", nullable=True),
        _column("trades", "bigint", "Number of trades.", nullable=True),
        _column("ingested_at", "timestamptz", "When these values were stored."),
    ]
)


def feature_columns(own: Sequence[Feature] = ()) -> dg.TableSchema:
    """Return the columns of features: the 17, then those of the project's `own` ones."""
    return dg.TableSchema(
        [
            *_KEY,
            *(_feature(feature) for feature in FEATURES),
            *(_feature(feature, where=" In `extra`.") for feature in own),
            _column("features_computed_at", "timestamptz", "When the computation that produced the row ran."),
        ]
    )


def _feature(feature: Feature, where: str = "") -> dg.TableColumn:
    text = f"{feature.description} ({feature.unit})" if feature.unit else feature.description
    return _column(feature.name, feature.sql_type, f"{text}{'.' if where else ''}{where}", nullable=True)


FEATURE_COLUMNS: Final = feature_columns()

_BAR_COUNTERS: Final = (
    *("rows_fetched", "rows_inserted", "rows_updated"),
    *("requests", "rate_limited", "fetch_seconds", "store_seconds"),
)
_FEATURE_COUNTERS: Final = ("features_written", "compute_seconds")


def materializations(outcome: SeriesOutcome) -> tuple[dg.AssetMaterialization, dg.AssetMaterialization]:
    """Return what a committed series shows on its partition of `<tier>/bars` and of `<tier>/features`."""
    partition = partition_key(outcome.series)
    both = _given(
        status=outcome.status,
        first_bar=_timestamp(outcome.first_ts),
        last_bar=_timestamp(outcome.last_ts),
        verified_at=_timestamp(outcome.verified_at),
        next_bar_due_at=_timestamp(outcome.next_due_at) if outcome.life.expects_bars else None,
        life=None if outcome.life is Life.TRADING else str(outcome.life),
        warning=outcome.warning,
    )
    # Each entry takes 130 bytes: one that says 0 says nothing.
    counters = {name: round(value, 3) or None for name, value in asdict(outcome.counters).items()}
    bars = _given(
        **{name: counters[name] for name in _BAR_COUNTERS},
        expected_last_bar=_timestamp(outcome.expected_last_ts) if outcome.life.expects_bars else None,
    )
    features = _given(**{name: counters[name] for name in _FEATURE_COUNTERS})
    if outcome.own_features:
        # The catalog prefers the newest materialization's columns to the asset's, which are only the 17.
        features["dagster/column_schema"] = feature_columns(outcome.own_features)
    return (
        dg.AssetMaterialization(
            bars_key(outcome.tier),
            partition=partition,
            metadata={"dagster/partition_row_count": outcome.bar_count, **bars, **both},
        ),
        dg.AssetMaterialization(
            features_key(outcome.tier),
            partition=partition,
            metadata={"dagster/partition_row_count": outcome.feature_count, **features, **both},
        ),
    )


def summary(tier: Tier, outcomes: Sequence[SeriesOutcome]) -> dg.AssetObservation:
    """Return the run's result: totals, and a table with one row per symbol, failed ones first."""
    counters = sum((outcome.counters for outcome in outcomes), NOTHING)
    rows = sorted(_rows_by_symbol(outcomes), key=lambda row: (-row["failed"], row["symbol"]))
    return dg.AssetObservation(
        bars_key(tier),
        description=f"Result of a refresh of the {tier} tier",
        metadata={
            # First, because a run's page shows only the beginning of a long event.
            "symbols": dg.TableMetadataValue([dg.TableRecord(row) for row in rows[:ROWS_SHOWN]], _SUMMARY),
            "series": len(outcomes),
            "failed": sum(outcome.failed for outcome in outcomes),
            "unchanged": sum(outcome.status == "unchanged" for outcome in outcomes),
            "warnings": sum(outcome.warning is not None for outcome in outcomes),
            "requests": counters.requests,
            "rate_limited": counters.rate_limited,
            **changed_bars(outcomes),
        },
    )


def changed_bars(outcomes: Sequence[SeriesOutcome]) -> dict[str, Any]:
    """Return how many held bars the vendor corrected or withdrew, how many it added later, and a sample.

    Derived bars count too: one corrected 5m bar corrects those of 15m, 1h and 4h. Empty when nothing changed.
    """
    corrected = sum(outcome.counters.rows_updated for outcome in outcomes)
    filled = sum(outcome.rows_filled for outcome in outcomes)
    records = [
        dg.TableRecord({"series": outcome.series.partition_key, **change._asdict(), "ts": change.ts.isoformat()})
        for outcome in sorted(outcomes, key=lambda one: (not one.series.timeframe.is_base, one.series))
        for change in outcome.changes
    ]
    sample = dg.TableMetadataValue(records[:WORST_SHOWN], _CHANGES)
    return {"bars_corrected": corrected, "bars_filled": filled, "bars_changed": sample} if records else {}


def warned(outcomes: Sequence[SeriesOutcome]) -> list[str]:
    """Return a line for each warning with its series; a warning fails no series."""
    return with_reasons((one.warning, one.series.partition_key) for one in outcomes if one.warning)


def with_reasons(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each reason with its series, at most `WORST_SHOWN` of either, and then how many more.

    Args:
        pairs: a reason and a series (`AAPL|5m`).
    """
    by_reason: dict[str, list[str]] = {}
    for reason, key in pairs:
        by_reason.setdefault(reason, []).append(key)
    lines = [f"{_first(keys)}: {reason}" for reason, keys in list(by_reason.items())[:WORST_SHOWN]]
    more = len(by_reason) - len(lines)
    return [*lines, *([f"… and {more} more reasons"] if more > 0 else [])]


def _first(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - WORST_SHOWN} more" if len(keys) > WORST_SHOWN else ""
    return ", ".join(keys[:WORST_SHOWN]) + more


def failure(outcomes: Sequence[SeriesOutcome]) -> dg.Failure | None:
    """Return the failure that names the series that failed and why; None when none did."""
    failed = [outcome for outcome in outcomes if outcome.failed]
    if not failed:
        return None
    lines = with_reasons((f"{one.error_class}: {one.error}", one.series.partition_key) for one in failed)
    records = [
        dg.TableRecord(
            {
                "series": outcome.series.partition_key,
                "kind": str(outcome.kind or ""),
                "error_class": outcome.error_class or "",
                "error": outcome.error or "",
            }
        )
        for outcome in failed[:WORST_SHOWN]
    ]
    return dg.Failure(
        "\n".join([f"{len(failed)} of {len(outcomes)} series failed; the others are stored.", *lines]),
        metadata={
            "failed": len(failed),
            "committed": len(outcomes) - len(failed),
            "failures": dg.TableMetadataValue(records, _FAILURES),
        },
        allow_retries=False,
    )


def stopped(error: PipelineError) -> dg.Failure:
    """Return the failure of a run that had to stop, because every other symbol would have failed in the same way."""
    return dg.Failure(
        f"{type(error).__name__}: {error}",
        metadata={"error_class": type(error).__name__, "kind": str(error.kind)},
        allow_retries=False,
    )


def _rows_by_symbol(outcomes: Sequence[SeriesOutcome]) -> list[dict[str, Any]]:
    grouped: dict[str, list[SeriesOutcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.series.symbol, []).append(outcome)
    rows = []
    for symbol, group in grouped.items():
        counters = sum((outcome.counters for outcome in group), NOTHING)
        rows.append(
            {
                "symbol": symbol,
                "series": len(group),
                "failed": sum(outcome.failed for outcome in group),
                "error": next((outcome.error for outcome in group if outcome.error), ""),
                **{column: getattr(counters, counter) for column, counter in _COUNTED.items()},
                "seconds": round(counters.seconds, 2),
                "warning": next((outcome.warning for outcome in group if outcome.warning), ""),
            }
        )
    return rows


def table_schema(columns: Mapping[str, str]) -> dg.TableSchema:
    """Return the schema of a table in metadata from its columns' names and types."""
    return dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])


def _timestamp(instant: datetime | None) -> dg.TimestampMetadataValue | None:
    return dg.MetadataValue.timestamp(instant) if instant else None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# Column -> counter. The error comes before them, beside `failed`: a run's page is narrow.
_COUNTED: Final = {
    "fetched": "rows_fetched",
    "inserted": "rows_inserted",
    "updated": "rows_updated",
    "features": "features_written",
    "requests": "requests",
    "refused": "rate_limited",
}
_SUMMARY: Final = table_schema(
    {
        "symbol": "string",
        "series": "int",
        "failed": "int",
        "error": "string",
        **dict.fromkeys(_COUNTED, "int"),
        "seconds": "float",
        "warning": "string",
    }
)
_CHANGES: Final = table_schema(
    {"series": "string", "ts": "string", "kind": "string", "column": "string", "old": "float", "new": "float"}
)
_FAILURES: Final = table_schema(dict.fromkeys(("series", "kind", "error_class", "error"), "string"))
