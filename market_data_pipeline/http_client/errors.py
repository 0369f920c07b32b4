"""What the client raises: the problems of the API as classes."""

from __future__ import annotations

from typing import Any, Final

from market_data_pipeline.domain.errors import PipelineError, TransientError, UsageError


class ApiError(PipelineError):
    """The API answered with a failure.

    Attributes:
        status: of HTTP; None when there was no answer.
        type: of the problem document, such as `/problems/not-tracked`; None without one.
        problem: the document.
    """

    def __init__(self, sentence: str, status: int | None = None, problem: dict[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.problem = problem or {}
        self.type: str | None = self.problem.get("type")


class NotTrackedError(ApiError, UsageError):
    """Symbols are not followed there; `problem["symbols"]` names them."""


class WrongRequestError(ApiError, UsageError):
    """A parameter has a value that the API does not take."""


class RefusedError(ApiError):
    """A token is missing or wrong."""


class ApiUnavailableError(ApiError, TransientError):
    """The API or its database cannot be reached or is busy; the same call may succeed later."""


_BY_TYPE: Final = {"/problems/not-tracked": NotTrackedError}
_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    401: RefusedError,
    403: RefusedError,
    422: WrongRequestError,
    429: ApiUnavailableError,
    502: ApiUnavailableError,
    503: ApiUnavailableError,
    504: ApiUnavailableError,
}


def error_of(status: int, problem: dict[str, Any]) -> ApiError:
    """Return the error of an answer with this status and document, which is empty when it was none."""
    kind = _BY_TYPE.get(str(problem.get("type")), _BY_STATUS.get(status, ApiError))
    return kind(str(problem.get("detail") or f"The API answered {status}."), status, problem)
