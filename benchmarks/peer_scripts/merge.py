"""Frames to PostgreSQL by a dlt pipeline with merge disposition, as Arrow, into tables that dlt creates."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import dlt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

_KEY = ["symbol", "timeframe", "ts"]


def store(task: dict[str, Any], found: Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]) -> None:
    """Merge bars and features, one load for each symbol."""
    load(task, found, lambda rows: rows)


def load(
    task: dict[str, Any],
    found: Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]],
    given: Callable[[pd.DataFrame], Any],
) -> None:
    """Merge bars and features, one load for each symbol, in the form that `given` makes of a frame."""
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as folder:
        pipeline = dlt.pipeline(
            "peer",
            pipelines_dir=folder,
            destination=dlt.destinations.postgres(_credentials(task["database_url"])),
            dataset_name="peer",
        )
        for _, of_symbol in groupby(found, key=itemgetter(0)):
            tables = [
                (name, given(frame.assign(symbol=symbol, timeframe=str(timeframe), **{stamp: datetime.now(UTC)})))
                for symbol, timeframe, bars, features in of_symbol
                for name, stamp, frame in (
                    ("bars", "ingested_at", bars),
                    ("features", "features_computed_at", features),
                )
            ]
            pipeline.run(
                [
                    dlt.resource(
                        [rows for table, rows in tables if table == name],
                        name=name,
                        primary_key=_KEY,
                        write_disposition="merge",
                    )
                    for name in ("bars", "features")
                ]
            )


def _credentials(url: str) -> dict[str, Any]:
    """Return the parts of a URL; dlt requires a host, so a socket's folder is given as one, as libpq allows."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    host = parts.hostname or quote(query["host"][0], safe="")
    return {
        "database": parts.path.strip("/"),
        "username": parts.username,
        "password": unquote(parts.password or ""),
        "host": host,
        "port": int(parts.port or query["port"][0]),
    }
