"""Market data as Dagster assets: bars, freshness and features, partitioned by symbol and timeframe."""

__version__ = "0.1.0"
