"""Who may see the admin endpoints: this machine, and every client that has the token.

The connection's address counts, never a header: X-Forwarded-For is the client's to write. But a request that carries
such a header came through a proxy on behalf of another machine, and one whose Host is not this machine's name may come
from a web page that the user happens to have open (DNS rebinding); neither counts as this machine.
"""

from __future__ import annotations

import hmac
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from market_data_pipeline.serving.problems import Problem

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.requests import Request

FORWARDING_HEADERS: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_SCHEME: Final = "bearer"


class AdminAccess:
    """Decides which requests may see the admin endpoints; `token` is None when none is configured."""

    def __init__(self, token: SecretStr | None) -> None:
        self._token = token.get_secret_value().encode() if token else None

    def is_allowed(self, request: Request) -> bool:
        """Return True for this machine and for the right token."""
        return _is_this_machine(request) or self._knows_token(request)

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
                "Without MARKET_DATA_API_TOKEN, admin endpoints answer only requests from the API's own machine.",
            )
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "Send the API's token: Authorization: Bearer <MARKET_DATA_API_TOKEN>.",
            headers={"www-authenticate": 'Bearer realm="market-data admin"'},
        )

    def _knows_token(self, request: Request) -> bool:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        given = credentials.strip().encode("latin-1", "replace")
        # Compared even when it cannot match, in a time that does not depend on where they differ.
        same = hmac.compare_digest(given, self._token or b"")
        return same and self._token is not None and scheme.lower() == _SCHEME


def _is_this_machine(request: Request) -> bool:
    if request.client is None or any(header in request.headers for header in FORWARDING_HEADERS):
        return False
    return _is_loopback(request.client.host) and _names_this_machine(request.headers.get("host", ""))


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _names_this_machine(host: str) -> bool:
    name = host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]
    return name.lower() == "localhost" or _is_loopback(name)
