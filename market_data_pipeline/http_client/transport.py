"""Requests to the read API: the token in its header, retries while the API is busy, and pages one after the other."""

from __future__ import annotations

import gzip
import json
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.http_client.errors import ApiError, ApiUnavailableError, error_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from email.message import Message

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_NEXT: Final = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
ATTEMPTS: Final = 4  # of one request, while the API is busy or restarts
_LONGEST_WAIT_SECONDS: Final = 30.0
_WAIT_SECONDS: Final = 0.5  # doubled with each attempt, where the API does not say how long


class Reply(NamedTuple):
    """One answer: its body, and where the next page is."""

    body: bytes
    next: str | None


class Transport:
    """Sends requests to one API.

    Args:
        base_url: where the API is, with its path prefix if it has one.
        token: sent in the header Authorization, never in an address; None for none.
        timeout: seconds without a byte after which a request has failed.

    Raises:
        UsageError: the URL is not one, or holds a password or a query.
    """

    def __init__(self, base_url: str, token: str | None, timeout: float) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError("base_url is not the address of an API, for example http://127.0.0.1:8000.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError("base_url holds more than an address; pass the token as token=.")
        self._base = base_url.rstrip("/")
        self._origin = (parts.scheme, parts.netloc)
        self._token = token
        self._timeout = timeout
        # Compressing costs more than sending where nothing has to be sent far.
        self._encoding = "identity" if parts.hostname in _LOOPBACK else "gzip"

    def get(self, path: str, parameters: Mapping[str, Any], accept: str) -> Reply:
        """Return the answer to a request; parameters that are None are left out.

        Raises:
            ApiError: one of its classes, by the problem that the API answered with.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._follow(f"{self._base}{path}{'?' if given else ''}{urlencode(given)}", accept)

    def pages(self, path: str, parameters: Mapping[str, Any], accept: str) -> Iterator[bytes]:
        """Yield the body of each page, the newest records first; raises as `get` does."""
        reply = self.get(path, parameters, accept)
        yield reply.body
        while reply.next is not None:
            reply = self._follow(reply.next, accept)
            yield reply.body

    def _follow(self, address: str, accept: str) -> Reply:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._send(address, accept)
            except ApiUnavailableError as error:
                if attempt == ATTEMPTS:
                    raise
                asked = error.problem.get("retry_after", _WAIT_SECONDS * 2 ** (attempt - 1))
                time.sleep(min(float(asked), _LONGEST_WAIT_SECONDS))
        raise AssertionError

    def _send(self, address: str, accept: str) -> Reply:
        request = urllib.request.Request(  # noqa: S310 - http or https, checked above
            address, headers={"Accept": accept, "Accept-Encoding": self._encoding, "User-Agent": "market-data-client"}
        )
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310 - as above
                return Reply(_body(answer.read(), answer.headers), self._next(address, answer.headers))
        except urllib.error.HTTPError as error:
            raise error_of(error.code, _problem(error)) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ApiUnavailableError(f"{self._base} cannot be reached: {reason}.") from None

    def _next(self, address: str, headers: Message) -> str | None:
        found = _NEXT.search(headers.get("Link", ""))
        if found is None:
            return None
        target: str = urljoin(address, found[1])
        parts = urlsplit(target)
        if (parts.scheme, parts.netloc) != self._origin:
            raise ApiError(f"The next page of {self._base} would be on another host, {parts.netloc}.")
        return target


def _body(content: bytes, headers: Message) -> bytes:
    return gzip.decompress(content) if headers.get("Content-Encoding") == "gzip" else content


def _problem(error: urllib.error.HTTPError) -> dict[str, Any]:
    """Return the problem document of a failed request, with the seconds of Retry-After as `retry_after`."""
    try:
        document = json.loads(_body(error.read(), error.headers))
    except (ValueError, OSError, HTTPException, EOFError):
        document = None
    problem: dict[str, Any] = document if isinstance(document, dict) else {}
    seconds = error.headers.get("Retry-After", "")
    return problem | ({"retry_after": int(seconds)} if seconds.isdigit() else {})
