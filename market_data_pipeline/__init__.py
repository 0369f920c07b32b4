"""Market data as Dagster assets: bars, freshness and features, partitioned by symbol and timeframe."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_pipeline.domain.features.own import OwnFeature
    from market_data_pipeline.reading import (
        iter_bars,
        iter_features,
        iter_records,
        read_bars,
        read_features,
        read_records,
    )
    from market_data_pipeline.reading.universe import read_universe

    __version__: str

__all__ = [
    "OwnFeature",
    "iter_bars",
    "iter_features",
    "iter_records",
    "read_bars",
    "read_features",
    "read_records",
    "read_universe",
]

# Where the names above are defined: every process of the pipeline imports this package, and few of them need pandas.
_MODULES = {
    "OwnFeature": "market_data_pipeline.domain.features.own",
    "iter_bars": "market_data_pipeline.reading",
    "iter_features": "market_data_pipeline.reading",
    "iter_records": "market_data_pipeline.reading",
    "read_bars": "market_data_pipeline.reading",
    "read_features": "market_data_pipeline.reading",
    "read_records": "market_data_pipeline.reading",
    "read_universe": "market_data_pipeline.reading.universe",
}


def __getattr__(name: str) -> object:
    """Return an exported name, imported at its first use, or the installed version as `__version__`."""
    if name == "__version__":
        from importlib.metadata import version

        return version("market-data-pipeline")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the exported names and those that are loaded."""
    return sorted({*globals(), *__all__})
