"""Who may see the admin endpoints: every client that has the token; without a token, only this machine.

Once a token is set, everyone needs it, because a proxy on this machine makes every visitor a loopback connection.
Without one, a request counts as this machine's when nothing says that it comes from elsewhere: its connection, its Host
(a web page that the user has open may reach this machine under a name of its own, DNS rebinding), what proxies add, and
whose program sent it: a proxy that is a service of its own runs as another user, and other people on this machine are
not its operators either. Headers can only take the access away: X-Forwarded-For is the client's to write.
"""

from __future__ import annotations

import hmac
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from market_data_pipeline.serving.peer import user_of_peer
from market_data_pipeline.serving.problem_types import ProblemType
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.serving.sessions import Sessions
from market_data_pipeline.settings.addresses import host_of, is_loopback, names_this_machine

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.requests import Request

# How the names of the headers begin that proxies and content delivery networks add.
FORWARDING_HEADERS: Final = (
    "forwarded", "via", "x-forwarded", "x-real-ip", "x-original-", "x-client-ip", "x-cluster-client-ip", "x-proxy",
    "x-envoy-", "x-amz", "x-azure-", "x-appengine-", "x-arr-", "x-goog-", "true-client-ip", "client-ip", "cdn-loop",
    "cf-", "fastly-", "fly-", "akamai-",
)  # fmt: skip
_SCHEME: Final = "bearer"


class AdminAccess:
    """Decides which requests may see the admin endpoints.

    Args:
        token: None when none is configured.
        api_url: the address by which people reach the API.
    """

    def __init__(self, token: SecretStr | None, api_url: str) -> None:
        self._token = token.get_secret_value().encode() if token else None
        self.sessions = Sessions(self._token, api_url) if self._token else None

    def is_allowed(self, request: Request) -> bool:
        """Return True for the right token or a session; without a configured token for this machine."""
        if self._token is None or self.sessions is None:
            return comes_from_this_machine(request)
        return self.sessions.has_one(request) or self._has_token(request, self._token)

    def is_token(self, given: str) -> bool:
        """Return whether this is the token, in a time that does not depend on where the two differ."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token or b"") and self._token is not None

    def offer(self, request: Request) -> str:
        """Return what a page offers its reader: to sign `in` or `out`, or nothing."""
        if self.sessions is None:
            return ""
        if self.sessions.has_one(request):
            return "out"
        return "" if self.is_allowed(request) else "in"

    def require(self, request: Request) -> None:
        """Return if the request is allowed.

        Raises:
            Problem: 401 when the token would help, 403 when there is none.
        """
        if self.is_allowed(request):
            return
        if self._token is None:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "Without MARKET_DATA_API_TOKEN, admin endpoints answer only requests that a program of the API's own "
                "user, or of root, sends to localhost on its machine, and none that a proxy passes on.",
                kind=ProblemType.LOCAL_ONLY,
            )
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "Send the API's token: Authorization: Bearer <MARKET_DATA_API_TOKEN>.",
            headers={"www-authenticate": 'Bearer realm="market-data admin"'},
        )

    def _has_token(self, request: Request, token: bytes) -> bool:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        given = credentials.strip().encode("latin-1", "replace")
        # Compared even when the scheme is wrong, in a time that does not depend on where they differ.
        same = hmac.compare_digest(given, token)
        return same and scheme.lower() == _SCHEME


def comes_from_this_machine(request: Request) -> bool:
    """Return whether a program on this machine sent the request itself, as far as the request shows."""
    if request.client is None or not is_loopback(request.client.host):
        return False
    if not names_this_machine(host_of(request.headers.get("host", ""))):
        return False
    # nginx without further settings adds no header and replaces the Host. Before 1.30 it speaks HTTP/1.0; browsers,
    # curl and client libraries have spoken 1.1 for many years. A newer one is known by its user only.
    if request.scope["http_version"] == "1.0" or any(name.startswith(FORWARDING_HEADERS) for name in request.headers):
        return False
    return _is_of_an_operator(request)


def _is_of_an_operator(request: Request) -> bool:
    """Return whether this process's user or root sent a request; True where the system does not tell."""
    client, server = request.client, request.scope.get("server")
    user = user_of_peer(client, server) if client and server else None
    return user in {None, 0, os.geteuid()}
