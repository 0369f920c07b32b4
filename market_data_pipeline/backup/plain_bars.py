"""The bars of a backup without features: the columns of `records` that are not computed, as a file beside the dump.

A dump has all columns of a table or none, so it leaves out the rows of `records`. The file is gzip of the text of
PostgreSQL's COPY, of the columns that the manifest lists for `records`, from the snapshot of the dump.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from market_data_pipeline.domain.errors import BackupError
from market_data_pipeline.store.checksums import RECORDS, tables_of
from market_data_pipeline.store.connection import describe, open_connection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from market_data_pipeline.backup.manifest import Dump

FILE: Final = "records.copy.gz"
_LEVEL: Final = 1  # of gzip, as the dump
_GZIP: Final = 31  # zlib's number for gzip's header around the largest window


def packed_bars(connection: psycopg.Connection[Any], schema: str, columns: Sequence[str]) -> Iterator[bytes]:
    """Yield the file in pieces: columns of all records, as the connection's transaction sees them."""
    statement = sql.SQL("copy (select {} from {}) to stdout").format(_listed(columns), sql.Identifier(schema, RECORDS))
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    with connection.cursor() as cursor, cursor.copy(statement) as rows:
        for row in rows:
            if packed := packer.compress(row):
                yield packed
    yield packer.flush()


def lacks_bars(connection: psycopg.Connection[Any], dump: Dump) -> bool:
    """Return whether a restored database waits for the bars of the file: its records are empty, and there is one."""
    if not any(file.name.startswith(FILE) for file in dump.files) or RECORDS not in tables_of(
        connection, dump.schema_name
    ):
        return False
    statement = sql.SQL("select not exists (select from {})").format(sql.Identifier(dump.schema_name, RECORDS))
    row = connection.execute(statement).fetchone()
    return row is not None and bool(row[0])


def load_bars(url: str, dump: Dump, packed: Iterable[bytes]) -> None:
    """Store bars into a database whose records are empty, in one transaction.

    Args:
        url: of the database, whose owner alone may say when rows were recorded.
        dump: names the columns.
        packed: the file, in pieces.

    Raises:
        BackupError: PostgreSQL refused them, or the file cannot be read.
    """
    (columns,) = (table.columns for table in dump.tables if table.name == RECORDS)
    statement = sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(dump.schema_name, RECORDS), _listed(columns))
    unpacker = zlib.decompressobj(_GZIP)
    try:
        with open_connection(url) as connection, connection.cursor() as cursor, cursor.copy(statement) as rows:
            for piece in packed:
                rows.write(unpacker.decompress(piece))
    except (psycopg.Error, OSError, zlib.error) as error:
        what = str(error).partition("\n")[0]
        raise BackupError(f"The bars of {FILE} were not stored into {describe(url)}: {what}") from error


def _listed(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
