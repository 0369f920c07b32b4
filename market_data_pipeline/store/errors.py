"""What PostgreSQL's errors mean: which class of failure a SQLSTATE is, and the sentence for it.

| SQLSTATE | failure |
|---|---|
| none, 08, 57P0x, 25P03, 25P04, and the connection is gone | DatabaseUnavailableError: the run stops |
| 25006 | DatabaseUnavailableError: a standby or read-only, nothing can be stored |
| 53100 | DatabaseFullError: the run stops, for every other series would be fetched in vain |
| 40 | TransactionConflictError: the same transaction may succeed at once |
| 55P03, 57014, 53, 58 | TransientError: this series is tried again by the next run |
| 3F000, 42P01, 42703 | ConfigurationError: the schema is not the one this program was written for |
| anything else | PipelineError: a statement is wrong, or a rule of the schema was broken |

Whether the connection is gone is asked of the connection: libpq's words depend on its version and language.

Add here: a SQLSTATE that somebody has to react to differently. Keep out: trying again.
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

_ENDS_THE_SESSION: Final = ("08", "57P", "25P03", "25P04")
_NO_SUCH_RELATION: Final = ("3F000", "42P01", "42703")
# Out of memory or connections, an I/O error, a lock or a statement that took longer than allowed, or was cancelled.
_PASSES: Final = ("53", "58", "55P03", "57014")

_LAYERS: Final = re.compile(r"^[A-Z_]+: (\[[^]]+\] )?(Failed to connect: )?")


def failure(sqlstate: str | None, text: str, *, lost: bool) -> PipelineError:
    """Return the failure that an error of the driver means.

    Args:
        sqlstate: what the server said, None when it did not or the driver failed by itself.
        text: the driver's message, with or without the statement.
        lost: the connection is gone.
    """
    said = f"SQLSTATE {sqlstate}: {sentence(text)}" if sqlstate else sentence(text)
    if lost or (sqlstate or "").startswith(_ENDS_THE_SESSION):
        return DatabaseUnavailableError(
            f"The connection to PostgreSQL was lost ({said}); the next run takes up what was under way."
        )
    if sqlstate is None:
        return PipelineError(f"The PostgreSQL driver refuses a statement ({said}).")
    if sqlstate == "25006":
        return DatabaseUnavailableError(
            f"PostgreSQL accepts no writes: it is a standby or set to read-only ({said}). Check DATABASE_URL."
        )
    if sqlstate == "53100":
        return DatabaseFullError(f"The database's disk is full, nothing was stored ({said}). Make room on it.")
    if sqlstate.startswith("40"):
        return TransactionConflictError(f"PostgreSQL rolled the transaction back for another one's sake ({said}).")
    if sqlstate.startswith(_PASSES):
        return TransientError(f"PostgreSQL could not finish a statement ({said}).")
    if sqlstate in _NO_SUCH_RELATION:
        return ConfigurationError(
            f"The database lacks something that this program needs ({said}): run `market-data migrate`."
        )
    return PipelineError(f"PostgreSQL refused a statement ({said}).")


def sentence(text: str) -> str:
    """Return what the server said: the driver puts its layers before it and the statement after it."""
    told = text.split("\n\nQuery was:")[0].split(". SQLSTATE:")[0]
    for level in ("FATAL:", "PANIC:", "ERROR:"):
        if level in told:
            told = told.split(level, 1)[1]
            break
    # libpq guesses at reasons in lines of their own, with a tab in front.
    told = " ".join(line for line in told.splitlines() if not line.startswith("\t"))
    return " ".join(_LAYERS.sub("", told).split()).rstrip(".")
