"""A project's own Dagster definitions, loaded into the code location beside the pipeline's.

The settings name a module with `defs = dg.Definitions(…)`. In the same location its assets can depend on bars and
features, its runs start as fast as the pipeline's, and those that are lost are found. A module that cannot be loaded
must not stop ingestion: the pipeline's definitions are then loaded alone, with a sensor that fails with the reason.

Add here: how own definitions get into the location. Keep out: what helps to write them (own_assets).
"""

from __future__ import annotations

import logging
from typing import Final

import dagster as dg

from market_data_pipeline.domain.errors import ConfigurationError

VARIABLE: Final = "MARKET_DATA_DEFINITIONS_MODULE"
ATTRIBUTE: Final = "defs"
PROBLEM_SENSOR: Final = "own_definitions_sensor"

_logger: Final = logging.getLogger("dagster.market_data")


def with_own_definitions(pipeline: dg.Definitions) -> dg.Definitions:
    """Return the pipeline's definitions together with those of the module that the settings name, if they name one."""
    from market_data_pipeline.settings import load_settings
    from market_data_pipeline.settings.own_module import cannot_be_loaded, load_own_module

    try:
        settings = load_settings()
    except ConfigurationError:
        return pipeline  # every run and tick says what is wrong; the location shows them
    named = settings.definitions_module
    if named is None:
        return pipeline
    try:
        own = getattr(load_own_module(named, settings.project_root), ATTRIBUTE, None)
        if not isinstance(own, dg.Definitions):
            raise TypeError(f"it has no {ATTRIBUTE}, a dagster.Definitions")
        merged = dg.Definitions.merge(pipeline, own)
        merged.get_repository_def()  # two assets of one name, or a resource that is missing, show only now
    except (Exception, SystemExit) as error:  # noqa: BLE001  the project's own code is isolated here
        problem = f"{cannot_be_loaded(VARIABLE, named, error)} The pipeline runs without it."
        _logger.error(problem)
        return dg.Definitions.merge(pipeline, dg.Definitions(sensors=[_failing_sensor(problem)]))
    return merged


def _failing_sensor(problem: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=PROBLEM_SENSOR,
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=300,
        description=problem,
    )
    def sensor() -> dg.SkipReason:
        """Fail, so that the UI shows why the project's own assets are missing."""
        raise dg.Failure(problem)

    return sensor
