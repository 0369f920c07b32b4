"""The kinds of problems: the `type` of each problem document, what it means and what to do about it.

A type is compared as text; it is also the path of a page about it, below the API's address.
"""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus
from typing import Final

PATH: Final = "/problems"


class ProblemType(Enum):
    """One kind of problem: its status, its title, what it means, and what to do."""

    INVALID_PARAMETER = (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "A parameter is invalid",
        "A parameter is unknown, is not of its type, or lies outside its range; `errors` names each of them.",
        "Correct the parameters; sent again unchanged, the request fails again.",
    )
    NOT_FOUND = (
        HTTPStatus.NOT_FOUND,
        "There is nothing at this address",
        "The path is not one of this API.",
        "Look up the path in the list of endpoints.",
    )
    NOT_TRACKED = (
        HTTPStatus.NOT_FOUND,
        "The symbol is not tracked",
        "The symbol is not in this project's universe, or is spelled differently there.",
        "Check the spelling; `market-data universe add SYMBOL` adds a symbol.",
    )
    NEVER_COMPUTED = (
        HTTPStatus.NOT_FOUND,
        "The series has never been computed",
        "The symbol is tracked, but nothing of this series is stored yet; a backfill has been queued.",
        "Ask again after the number of seconds in Retry-After.",
    )
    NO_BARS = (
        HTTPStatus.NOT_FOUND,
        "The vendor has no bars of the series",
        "The symbol is tracked, but the vendor had no bars of it when it was last asked, or does not know the ticker.",
        "Ask again at `next_look_at`; until then the answer stays, and nothing is queued. Check the ticker's spelling.",
    )
    METHOD_NOT_ALLOWED = (
        HTTPStatus.METHOD_NOT_ALLOWED,
        "The method is not supported",
        "This API only reads.",
        "Use GET or HEAD, or what the Allow header lists.",
    )
    NOT_ACCEPTABLE = (
        HTTPStatus.NOT_ACCEPTABLE,
        "None of the representations is acceptable",
        "The Accept header excludes every representation that this address has.",
        "Accept one of those that `detail` lists, or leave the header out.",
    )
    TOKEN_REQUIRED = (
        HTTPStatus.UNAUTHORIZED,
        "The token is required",
        "The address is for operators, and the request carries no token or a wrong one.",
        "Send `Authorization: Bearer` with the value of MARKET_DATA_API_TOKEN, or sign in with a browser.",
    )
    LOCAL_ONLY = (
        HTTPStatus.FORBIDDEN,
        "Only this machine has access",
        "The address is for operators. No token is configured, so it answers only requests that a program of the API's "
        "own user, or of root, sends to localhost on its machine.",
        "Set MARKET_DATA_API_TOKEN where the API runs, and send it.",
    )
    FOREIGN_PAGE = (
        HTTPStatus.FORBIDDEN,
        "A page of another site sent the form",
        "Only this API's own pages may sign a browser in or out.",
        "Open the form on this API's address and send it from there.",
    )
    DATABASE_UNAVAILABLE = (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The database is unavailable",
        "PostgreSQL cannot be reached.",
        "Try again after the number of seconds in Retry-After; the API reconnects automatically.",
    )
    BUSY = (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The API is busy",
        "There are more requests than the API or its database can answer at the moment; nothing is broken.",
        "Try again after the number of seconds in Retry-After, and less often.",
    )
    UNHEALTHY = (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "A dependency is down",
        "The database or Dagster's daemon does not work; the document says which.",
        "`market-data health` on the machine says more; `market-data up` starts what is missing.",
    )
    INTERNAL_ERROR = (
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Something went wrong here",
        "The API failed unexpectedly.",
        "The API's log says why; please report it.",
    )
    BAD_REQUEST = (
        HTTPStatus.BAD_REQUEST,
        "The request cannot be read",
        "What arrived is not HTTP, or is not what this address takes.",
        "Correct the client.",
    )
    REQUEST_TIMEOUT = (
        HTTPStatus.REQUEST_TIMEOUT,
        "The request did not arrive in time",
        "The client sent the request too slowly.",
        "Send it again.",
    )
    BODY_TOO_LARGE = (
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "The body is too large",
        "No request to this API needs a large body.",
        "Send none.",
    )
    ADDRESS_TOO_LONG = (
        HTTPStatus.REQUEST_URI_TOO_LONG,
        "The address is too long",
        "The path with its query has more bytes than this API reads.",
        "Shorten it; `detail` names the limit.",
    )
    HEADERS_TOO_LARGE = (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The headers are too large",
        "Address and headers together have more bytes than this API reads.",
        "Send fewer headers or cookies; `detail` names the limit.",
    )

    def __init__(self, status: HTTPStatus, title: str, meaning: str, remedy: str) -> None:
        self.status = status
        self.title = title
        self.meaning = meaning
        self.remedy = remedy

    @property
    def slug(self) -> str:
        """The last part of its address."""
        return self.name.lower().replace("_", "-")

    @property
    def uri(self) -> str:
        """The `type` of its documents."""
        return f"{PATH}/{self.slug}"


# The first kind of each status.
_BY_STATUS: Final = {kind.status: kind for kind in reversed(ProblemType)}
BY_SLUG: Final = {kind.slug: kind for kind in ProblemType}


def type_of(status: HTTPStatus) -> ProblemType | None:
    """Return the usual kind of problem with a status."""
    return _BY_STATUS.get(status)
