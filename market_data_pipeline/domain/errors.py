"""The classes of failure, decided where a failure happens and carried unchanged to log, alert and screen.

Add here: a class when somebody has to react differently to it. Keep out: retrying and reporting.
"""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """How a failure is to be met."""

    TRANSIENT = "transient"  # the same call may succeed later
    PERMANENT = "permanent"  # it will not, until a person changes something
    DATA = "data"  # an answer arrived and cannot be trusted


class PipelineError(Exception):
    """A failure with a sentence that says what was wrong, where, and what to do.

    Its text never holds a secret: it goes to logs, rows and screens as it is.
    """

    kind = FailureKind.PERMANENT
    stops_run = False  # True when every other symbol would fail in the same way


class UsageError(PipelineError):
    """What was asked for cannot be: an unknown name, a bad value. Exit code 2."""


class ConfigurationError(PipelineError):
    """The environment or a file of the project is wrong. Exit code 2."""


class TransientError(PipelineError):
    """The vendor or the database did not answer as it should; trying again later is right."""

    kind = FailureKind.TRANSIENT


class RateLimitedError(TransientError):
    """The vendor still refused for the plan's rate after the last attempt."""


class VendorUnreachableError(TransientError):
    """No connection to the vendor can be made. One that lasts `stops_run`: every other symbol would meet it, too."""


class VendorRequestError(PipelineError):
    """The vendor says that this one request is wrong (400, 404, a range outside the plan)."""


class VendorRefusedError(PipelineError):
    """The vendor refuses the key or the plan (401, 403): every other request would be refused too."""

    stops_run = True


class DataError(PipelineError):
    """The vendor's answer contradicts itself or the request; nothing of its window is stored."""

    kind = FailureKind.DATA


class FeatureError(PipelineError):
    """A feature could not be computed from bars that are stored."""

    kind = FailureKind.DATA


class DatabaseUnavailableError(TransientError):
    """PostgreSQL cannot be reached."""

    stops_run = True


class DatabaseFullError(TransientError):
    """PostgreSQL has no disk left: whatever else is fetched could not be stored either."""

    stops_run = True


class TransactionConflictError(TransientError):
    """PostgreSQL rolled a transaction back for another one's sake; the same one may succeed at once."""
