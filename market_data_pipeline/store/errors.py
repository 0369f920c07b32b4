"""What PostgreSQL's errors mean: which class of failure a SQLSTATE is, and the sentence for it.

| SQLSTATE | failure |
|---|---|
| none, 08, 57P0x, 25P03, 25P04, and the connection is gone | DatabaseUnavailableError: the run stops |
| 25006 | DatabaseUnavailableError: a standby or read-only, nothing can be stored |
| 53100 | DatabaseFullError: the run stops, because no other series that it fetched could be stored |
| 40 | TransactionConflictError: the same transaction may succeed at once |
| 55P03, 57014, 53, 58 | TransientError: the next run tries this series again |
| 3F000, 42P01, 42703 | ConfigurationError: the schema is not the one this program was written for |
| MD001 | ConfigurationError: what another source sent (`sql/0024_source.sql`) |
| MD002 | ConfigurationError: bars are being moved to another table (`sql/0050_records.sql`) |
| anything else | PipelineError: a statement is wrong, or a rule of the schema was broken |

Whether the connection is gone is read from the connection, because libpq's message depends on its version and language.
"""

from __future__ import annotations

import re
from typing import Final

from market_data_pipeline.domain.errors import (
    ConfigurationError,
    DatabaseFullError,
    DatabaseUnavailableError,
    PipelineError,
    TransactionConflictError,
    TransientError,
)

_ENDS_THE_CONNECTION: Final = ("08", "57P", "25P03", "25P04")
_NO_SUCH_RELATION: Final = ("3F000", "42P01", "42703")
# Out of memory or connections, an I/O error, a lock or a statement that took longer than allowed, or was cancelled.
_TRANSIENT: Final = ("53", "58", "55P03", "57014")


def failure(sqlstate: str | None, text: str, *, lost: bool) -> PipelineError:
    """Return the failure that an error of the driver means.

    Args:
        sqlstate: the server's code, None when the driver itself failed.
        text: the server's message, or the driver's.
        lost: the connection is gone.
    """
    words = f"SQLSTATE {sqlstate}: {said(text)}" if sqlstate else said(text)
    if lost or (sqlstate or "").startswith(_ENDS_THE_CONNECTION):
        return DatabaseUnavailableError(
            f"The connection to PostgreSQL was lost ({words}); the next run resumes what was in progress."
        )
    if sqlstate is None:
        return PipelineError(f"The PostgreSQL driver refused a statement ({words}).")
    if sqlstate == "25006":
        return DatabaseUnavailableError(
            f"PostgreSQL accepts no writes: it is a standby or set to read-only ({words}). Check DATABASE_URL."
        )
    if sqlstate == "53100":
        return DatabaseFullError(
            f"The database's disk is full, so nothing was stored ({words}). Free some space on it."
        )
    if sqlstate.startswith("40"):
        return TransactionConflictError(f"PostgreSQL rolled the transaction back in favour of another one ({words}).")
    if sqlstate.startswith(_TRANSIENT):
        return TransientError(f"PostgreSQL could not finish a statement ({words}).")
    if sqlstate in _NO_SUCH_RELATION:
        return ConfigurationError(f"The database's schema is missing or too old ({words}): run `market-data migrate`.")
    if sqlstate == "MD001":
        return ConfigurationError(f"Nothing was stored: {said(text)}. Check POLYGON_API_KEY and DATABASE_URL.")
    if sqlstate == "MD002":
        return ConfigurationError(f"Nothing was stored: {said(text)}.")
    return PipelineError(f"PostgreSQL refused a statement ({words}).")


def said(text: str) -> str:
    """Return the server's words on one line, without the level; libpq adds guesses in lines that begin with a tab."""
    words = " ".join(line for line in text.splitlines() if not line.startswith("\t"))
    return " ".join(re.sub(r"^.*?\b(FATAL|PANIC|ERROR):", "", words).split()).rstrip(".")
