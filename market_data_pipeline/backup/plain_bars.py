"""The bars of a backup without features: the columns of `records` that are not computed, as a file beside the dump.

A dump has all columns of a table or none, so it leaves out the rows of `records`. The file is gzip of the text of
PostgreSQL's COPY, of the columns that the manifest lists for `records`, from the snapshot of the dump.
"""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from market_data_pipeline.domain.errors import BackupError
from market_data_pipeline.store.checksums import RECORDS, tables_of
from market_data_pipeline.store.connection import describe, open_connection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from market_data_pipeline.backup.manifest import Dump

FILE: Final = "records.copy.gz"
_LEVEL: Final = 1  # of gzip, as the dump
_CHUNK: Final = 1 << 20


def write_bars(connection: psycopg.Connection[Any], schema: str, folder: Path, columns: Sequence[str]) -> None:
    """Write columns of all records, as the connection's transaction sees them, into the folder of a dump."""
    statement = sql.SQL("copy (select {} from {}) to stdout").format(_listed(columns), sql.Identifier(schema, RECORDS))
    descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with (
        os.fdopen(descriptor, "wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as stream,
        connection.cursor() as cursor,
        cursor.copy(statement) as rows,
    ):
        for row in rows:
            stream.write(row)


def lacks_bars(connection: psycopg.Connection[Any], schema: str, folder: Path) -> bool:
    """Return whether a restored database waits for the bars of the file: its records are empty, and there is one."""
    if not (folder / FILE).is_file() or RECORDS not in tables_of(connection, schema):
        return False
    statement = sql.SQL("select not exists (select from {})").format(sql.Identifier(schema, RECORDS))
    row = connection.execute(statement).fetchone()
    return row is not None and bool(row[0])


def load_bars(url: str, dump: Dump, folder: Path) -> None:
    """Store the bars of the file into a database whose records are empty, in one transaction.

    Args:
        url: of the database, whose owner alone may say when rows were recorded.
        dump: names the columns.
        folder: of the dump.

    Raises:
        BackupError: PostgreSQL refused them, or the file cannot be read.
    """
    (columns,) = (table.columns for table in dump.tables if table.name == RECORDS)
    table = sql.Identifier(dump.schema_name, RECORDS)
    try:
        with (
            open_connection(url) as connection,
            connection.cursor() as cursor,
            gzip.open(folder / FILE) as stream,
            cursor.copy(sql.SQL("copy {} ({}) from stdin").format(table, _listed(columns))) as rows,
        ):
            while chunk := stream.read(_CHUNK):
                rows.write(chunk)
    except (psycopg.Error, OSError, EOFError) as error:
        what = str(error).partition("\n")[0]
        raise BackupError(f"The bars of {folder / FILE} were not stored into {describe(url)}: {what}") from error


def _listed(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
