"""Every failure as an RFC 9457 problem document, in words for the client.

The database's messages, paths and secrets never reach the client; what an operator needs goes to the log.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from market_data_pipeline.domain.errors import DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.serving.problem_types import ProblemType, type_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import FastAPI
    from starlette.requests import Request

PROBLEM: Final = "application/problem+json"

# A restarted PostgreSQL accepts connections again within about this time, in seconds.
RETRY_DATABASE_AFTER: Final = 2
DATABASE_UNAVAILABLE: Final = "The database cannot be used at the moment; the API reconnects automatically."
DATABASE_BUSY: Final = "The API has more requests than it can answer at the moment; try again in a few seconds."

_LONGEST_ECHO: Final = 80  # characters of a bad value that are shown back

log = logging.getLogger(__name__)


class Problem(Exception):
    """A response other than success, raised anywhere while an answer is being made.

    Args:
        status: the HTTP status.
        detail: a sentence about this request.
        kind: which of several kinds of problems with this status; by default the status's usual one.
        headers: further response headers.
        members: further members of the document.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        kind: ProblemType | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind or type_of(status)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members


def problem_document(problem: Problem, instance: str) -> bytes:
    """Return `problem` as a document about the path `instance`."""
    document = {
        "type": problem.kind.uri if problem.kind else "about:blank",
        "title": problem.kind.title if problem.kind else problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
        "instance": instance,
        **problem.members,
    }
    return orjson.dumps(document, option=orjson.OPT_UTC_Z)


def install(app: FastAPI) -> None:
    """Make every failure of `app` a problem document."""
    ours = (Problem, DatabaseUnavailableError, DatabaseBusyError)
    for kind in (*ours, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, error: Exception) -> Response:
    problem = _problem_of(error, request.method)
    headers = {"cache-control": "no-store", **problem.headers}
    return Response(problem_document(problem, request.url.path), problem.status, headers, PROBLEM)


def _problem_of(error: Exception, method: str) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        errors = [_parameter_error(e) for e in error.errors()]
        detail = " ".join(f"{e['parameter']}: {e['detail']}" for e in errors)
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)
    if isinstance(error, HTTPException):
        return _http_problem(error, method)
    if isinstance(error, DatabaseUnavailableError):
        log.warning("database unavailable: %s", error)
        retry = {"retry-after": str(RETRY_DATABASE_AFTER)}
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, DATABASE_UNAVAILABLE, headers=retry)
    if isinstance(error, DatabaseBusyError):
        log.warning("database busy: %s", error)
        retry = {"retry-after": str(RETRY_DATABASE_AFTER)}
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, DATABASE_BUSY, kind=ProblemType.BUSY, headers=retry)
    # uvicorn logs the traceback: Starlette raises the error again once this answer is sent.
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here; the server's log says what.")


def _http_problem(error: HTTPException, method: str) -> Problem:
    status = HTTPStatus(error.status_code)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    detail = str(error.detail)
    if status is HTTPStatus.NOT_FOUND:
        detail = "There is nothing at this address; /docs lists the endpoints."
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        if headers.get("allow") != "POST":
            headers["allow"] = "GET, HEAD"
        detail = f"{method} is not supported here, only {headers['allow']}."
    return Problem(status, detail, headers=headers)


def _parameter_error(error: Mapping[str, Any]) -> dict[str, str]:
    location: Sequence[Any] = error["loc"]
    parameter = str(location[-1]) if len(location) > 1 else "query"
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "value_error":
        text = str(context["error"])
    elif kind == "extra_forbidden":
        parameter = parameter[:_LONGEST_ECHO]
        text = "there is no such parameter here."
    elif kind == "enum":
        text = f"must be {context['expected']}; {_shown(error['input'])} is not."
    elif kind in {"greater_than_equal", "less_than_equal"}:
        bound = "at least" if kind == "greater_than_equal" else "at most"
        text = f"must be {bound} {context.get('ge', context.get('le'))}; {_shown(error['input'])} is not."
    else:
        text = f"{error['msg'][0].lower()}{error['msg'][1:]}; {_shown(error['input'])} is not."
    return {"parameter": parameter, "detail": text}


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= _LONGEST_ECHO else text[:_LONGEST_ECHO] + "…")
