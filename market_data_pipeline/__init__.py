"""Market data as Dagster assets: bars, freshness and features, partitioned by symbol and timeframe."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_pipeline.domain.features.own import OwnFeature
    from market_data_pipeline.reading import read_bars, read_features

__all__ = ["OwnFeature", "read_bars", "read_features"]

# Where the names above live: every process of the pipeline imports this package, few of them need pandas.
_HOMES = {
    "OwnFeature": "market_data_pipeline.domain.features.own",
    "read_bars": "market_data_pipeline.reading",
    "read_features": "market_data_pipeline.reading",
}


def __getattr__(name: str) -> object:
    """Import what is exported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Name what is exported beside what is loaded."""
    return sorted({*globals(), *__all__})
