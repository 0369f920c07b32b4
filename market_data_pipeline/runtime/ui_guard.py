"""What Dagster's UI answers: its own pages and programs, not what another web page makes a browser send.

A browser says where a request comes from: in Host the name under which it knows this server, in Origin and
Sec-Fetch-Site the page that sends it. Programs other than browsers send neither of the latter, and are not refused for
that. Who may reach the UI at all is for the network and a proxy to decide: Dagster has no users.
"""

from __future__ import annotations

import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

from market_data_pipeline.settings.addresses import host_of, is_loopback, names_this_machine

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_PAGE: Final = frozenset({"", "same-origin", "none"})  # of Sec-Fetch-Site; `none` is an address that was typed
_LONGEST_ECHO: Final = 80
_POLICY_VIOLATION: Final = 1008  # RFC 6455, section 7.4.1


class UiGuard:
    """An ASGI app that passes on to `app` what may reach it.

    Args:
        app: dagster-webserver's.
        listens_on: the address that the server listens on.
        url: MARKET_DATA_UI_URL, the address by which people reach it, perhaps through a proxy.
    """

    def __init__(self, app: ASGIApp, listens_on: str, url: str) -> None:
        parts = urlsplit(url)
        self._app = app
        self._is_public = not is_loopback(listens_on)
        self._hosts = {(parts.hostname or "").lower()} | ({socket.gethostname().lower()} if self._is_public else set())
        self._origin = f"{parts.scheme}://{parts.netloc}".lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await receive()  # websocket.connect
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal[1][:100]})
        else:
            await _answer(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        """Return with which status and sentence to refuse a request; None when it may pass."""
        headers = _Headers(scope)
        method = scope.get("method", "GET")
        hosts = headers.all("host")
        if len(hosts) != 1 or not self._is_ours(host_of(hosts[0]), scope):
            return HTTPStatus.MISDIRECTED_REQUEST, (
                f"The Host {', '.join(hosts)[:_LONGEST_ECHO]!r} is not this server's. If people reach it under that "
                "name, set MARKET_DATA_UI_URL to its address."
            )
        if not self._comes_from_own_page(headers, hosts[0], scope, method):
            return HTTPStatus.FORBIDDEN, (
                "A page of another site sent this request. If it is the UI's own page behind a proxy, set "
                "MARKET_DATA_UI_URL to its address."
            )
        if scope["type"] == "websocket":
            return None
        if method in _SAFE:
            if _is_graphql(scope) and _changes_something(scope["query_string"]):
                return HTTPStatus.METHOD_NOT_ALLOWED, "Send mutations by POST, as JSON."
            return None
        has_body = headers.first("content-length") not in {"", "0"} or bool(headers.first("transfer-encoding"))
        is_json = headers.first("content-type").partition(";")[0].strip().lower() == "application/json"
        if not is_json and (has_body or _is_graphql(scope)):
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send the body as JSON: Content-Type: application/json."
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        if names_this_machine(host) or host in self._hosts:
            return True
        # An address cannot be rebound as a name can: it is ours if the connection arrived at it.
        return self._is_public and bool(host) and host == (scope.get("server") or ("",))[0].lower()

    def _comes_from_own_page(self, headers: _Headers, host: str, scope: Scope, method: str) -> bool:
        origin = headers.first("origin").lower()
        if origin and origin not in {f"http://{host}".lower(), f"https://{host}".lower(), self._origin}:
            return False
        if headers.first("sec-fetch-site") in _OWN_PAGE:
            return True
        # A link on another page, in an alert for example, may open a page of the UI, not in a frame, and not GraphQL.
        opens_page = (headers.first("sec-fetch-mode"), headers.first("sec-fetch-dest")) == ("navigate", "document")
        return opens_page and method in _SAFE and scope["type"] == "http" and not _is_graphql(scope)


class _Headers:
    """The headers of a request by name; their values stripped."""

    def __init__(self, scope: Scope) -> None:
        self._found: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())

    def all(self, name: str) -> list[str]:
        return self._found.get(name, [])

    def first(self, name: str) -> str:
        return next(iter(self.all(name)), "")


def _is_graphql(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.rstrip("/").endswith("/graphql")


def _changes_something(query_string: bytes) -> bool:
    """Return whether a GET would execute anything but queries; what cannot be parsed is refused by Dagster itself."""
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

    for text in parse_qs(query_string.decode("latin-1")).get("query", []):
        try:
            definitions = parse(text).definitions
        except GraphQLError:
            continue
        operations = (one.operation for one in definitions if isinstance(one, OperationDefinitionNode))
        if any(operation is not OperationType.QUERY for operation in operations):
            return True
    return False


def _unframed(send: Send) -> Send:
    """Return `send` with a header that keeps other sites from showing the UI in a frame and guiding clicks into it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"x-frame-options", b"SAMEORIGIN")]}
        await send(message)

    return sending


async def _answer(send: Send, status: HTTPStatus, sentence: str) -> None:
    body = f"{sentence}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})
