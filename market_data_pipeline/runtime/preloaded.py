"""What every run needs, imported and computed once: the process that forks runs imports this module.

Add here: a heavy import of a run, or a table that is the same for all runs. Keep out: anything that opens a connection
or a file, starts a thread or reads the environment; it would not survive the fork, or would be outdated in the run.
"""
# ruff: noqa: E402, F401 - imported only to be loaded, and only then

from __future__ import annotations

import gc
from contextlib import suppress

gc.disable()  # what is imported here stays, so a collection would find nothing

import dagster_postgres
import sqlalchemy.dialects.postgresql.psycopg2

import market_data_pipeline.domain.features.compute
import market_data_pipeline.domain.features.own_values
import market_data_pipeline.ingest.pipeline
import market_data_pipeline.ingest.shard
import market_data_pipeline.polygon.client
import market_data_pipeline.polygon.rate_limit
import market_data_pipeline.polygon.wire
import market_data_pipeline.reports.freshness
import market_data_pipeline.runtime.sandbox
import market_data_pipeline.store.connection
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.orchestration.dagster_internals import load_location
from market_data_pipeline.priority import runs_give_way

with suppress(ModuleNotFoundError):  # it has no wheel for Linux on ARM
    import pgpq

load_location()
for _asset_class in AssetClass:
    calendar_for(_asset_class).prepare()
gc.freeze()  # otherwise the first collection in each run would copy all of this memory
gc.enable()
runs_give_way()  # the runs that this process forks have lower priority; the code server keeps its own
