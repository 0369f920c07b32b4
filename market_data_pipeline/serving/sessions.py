"""The sign-in of a browser: a cookie whose value proves that its holder knew the token, for one working day.

The server keeps no list of sessions. The value is the instant at which it ends, signed with the token, so a new token
ends every session.
"""

from __future__ import annotations

import hmac
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

COOKIE: Final = "market_data_session"
LIFETIME_SECONDS: Final = 12 * 3600


class Sessions:
    """Starts, recognizes and ends sessions.

    Args:
        token: the key that signs them.
        api_url: the address by which people reach the API; the cookie is sent below its path only.
    """

    def __init__(self, token: bytes, api_url: str) -> None:
        parts = urlsplit(api_url)
        self._token = token
        self._path = f"{parts.path}/"
        self._is_secure = parts.scheme == "https"

    def start(self, request: Request, response: Response) -> None:
        """Let `response` give the browser a session."""
        ends = str(int(time.time()) + LIFETIME_SECONDS)
        # A proxy says by this header that the browser came by https; a wrong one affects only who sends it.
        is_secure = self._is_secure or request.headers.get("x-forwarded-proto", "").lower() == "https"
        response.set_cookie(
            COOKIE,
            f"{ends}.{self._signature(ends)}",
            max_age=LIFETIME_SECONDS,
            path=self._path,
            secure=is_secure,
            httponly=True,
            samesite="strict",
        )

    def end(self, response: Response) -> None:
        """Let `response` remove the browser's session."""
        response.delete_cookie(COOKIE, path=self._path, secure=self._is_secure, httponly=True, samesite="strict")

    def has_one(self, request: Request) -> bool:
        """Return whether the request carries a session that has not ended."""
        ends, _, signature = request.cookies.get(COOKIE, "").partition(".")
        is_ours = hmac.compare_digest(signature.encode("latin-1", "replace"), self._signature(ends).encode())
        return is_ours and ends.isascii() and ends.isdigit() and int(ends) > time.time()

    def _signature(self, ends: str) -> str:
        return hmac.new(self._token, f"session until {ends}".encode("latin-1", "replace"), sha256).hexdigest()
