"""The classes of failure, decided where a failure happens and carried unchanged to log, alert and screen.

Add here: a class that the code or a person must react to differently.
"""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """How to react to a failure."""

    TRANSIENT = "transient"  # the same call may succeed later
    PERMANENT = "permanent"  # it will fail until a person changes something
    DATA = "data"  # an answer arrived and cannot be trusted


def printable(text: str) -> str:
    """Return text without characters that act on a terminal, a log or a reader: they become their escape sequences.

    Those are all but letters, digits, signs, the space and the line's end: control and escape characters, and the
    invisible ones that reverse the direction of what follows.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else " " if char.isspace() else ascii(char)[1:-1] for char in text
    )


class PipelineError(Exception):
    """A failure, with a sentence that says what went wrong, where, and what to do.

    Its text never contains a secret or, since it may quote the vendor, a control character: logs, rows and screens
    show it unchanged.
    """

    kind = FailureKind.PERMANENT
    stops_run = False  # True when every other symbol would fail in the same way

    def __init__(self, sentence: object = "") -> None:
        super().__init__(printable(str(sentence)))


class UsageError(PipelineError):
    """The request makes no sense: an unknown name, a bad value. Exit code 2."""


class ConfigurationError(PipelineError):
    """The environment or a file of the project is wrong. Exit code 2."""


class TransientError(PipelineError):
    """The vendor or the database failed to answer; the same call may succeed later."""

    kind = FailureKind.TRANSIENT


class RateLimitedError(TransientError):
    """The vendor still answered 429 to the last attempt."""


class VendorUnreachableError(TransientError):
    """The vendor cannot be reached; `stops_run` once that lasts, since every other symbol would fail too."""


class UnansweredError(TransientError):
    """The vendor fails at one request (5xx, a reset, no byte in time): what it is about may be to blame."""


class UnreadableAnswerError(UnansweredError):
    """An answer arrived and is not JSON, although it begins like it."""


class VendorRequestError(PipelineError):
    """The vendor rejects this one request (400, 404, a range outside the plan)."""

    not_found = False  # True for a 404: the vendor may no longer have the ticker


class VendorRefusedError(PipelineError):
    """The vendor rejects the key or the plan (401, 403): it would reject every other request too."""

    stops_run = True
    of_plan = False  # True for a 403: another kind of data may be in the plan


class VendorUntrustedError(PipelineError):
    """The vendor's certificate cannot be verified: it would be refused for every other request too."""

    stops_run = True


class DataError(PipelineError):
    """The vendor's answer contradicts itself or the request; nothing of its window is stored."""

    kind = FailureKind.DATA


class FeatureError(PipelineError):
    """A feature could not be computed from the stored bars."""

    kind = FailureKind.DATA


class DatabaseUnavailableError(TransientError):
    """PostgreSQL cannot be reached."""

    stops_run = True


class DatabaseBusyError(TransientError):
    """PostgreSQL works, but has no connection or no time free: the same call may succeed in seconds."""


class BrokerUnavailableError(TransientError):
    """Redis, by which runs reach the workers of other hosts, cannot be reached."""


class DatabaseFullError(TransientError):
    """PostgreSQL's disk is full: nothing else that is fetched could be stored."""

    stops_run = True


class TransactionConflictError(TransientError):
    """PostgreSQL rolled a transaction back in favour of another; a retry may succeed at once."""


class BackupError(PipelineError):
    """A backup could not be made, is damaged, or cannot be restored."""


class BackupUnreachableError(BackupError, TransientError):
    """The object store of backups does not answer, or fails; the same call may succeed later."""
