"""One HTTP exchange with the vendor: the key, the deadlines and the size, but not what the answer means.

The key is sent in the Authorization header to the configured host and nowhere else: redirects are not followed, and no
exception of `requests` leaves this module, because each holds the request, and its message may quote it.

`requests` has no total deadline: its read timeout starts again with every byte, so a server that drips bytes never
exceeds it. Here a timer shuts the exchange's socket down, whatever the thread that waits on it is doing.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import weakref
import zlib
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from market_data_pipeline.domain.errors import (
    ConfigurationError,
    DataError,
    PipelineError,
    UnansweredError,
    VendorUnreachableError,
    VendorUntrustedError,
)
from market_data_pipeline.settings.addresses import names_this_machine
from market_data_pipeline.settings.network import certificate_authorities

if TYPE_CHECKING:
    from collections.abc import Mapping


OK: Final = 200
_CHUNK: Final = 1 << 16
_SHORTEST_SECRET: Final = 8  # the vendor's keys have 32 characters
_GZIP: Final = zlib.MAX_WBITS | 16
# What requests, the libraries below it and the socket raise when an exchange breaks.
_BROKEN: Final = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, zlib.error)


def _unconnected(error: BaseException) -> str | None:
    """Return why no connection was made, None when one was made and broke."""
    if isinstance(error, requests.exceptions.ProxyError) or not isinstance(error, requests.ConnectionError):
        return None
    wrapped = error.args[0] if error.args else None
    inner = wrapped.reason if isinstance(wrapped, urllib3.exceptions.MaxRetryError) else None
    if not isinstance(inner, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return None
    return _words(inner.__cause__ or inner.__context__)


def _untrusted(error: BaseException | None) -> str | None:
    """Return why the certificate is not trusted, None when something else went wrong."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        wrapped = error.args[0] if error.args else None
        inner = wrapped.reason if isinstance(wrapped, urllib3.exceptions.MaxRetryError) else wrapped
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None


def _words(error: BaseException | None) -> str:
    """Return why a connection could not be made, in words."""
    if isinstance(error, socket.gaierror):
        return "its host name is unknown"
    if isinstance(error, TimeoutError) or not isinstance(error, OSError) or not error.errno:
        return "no connection in time"
    return os.strerror(error.errno).lower()


def _reason(error: BaseException) -> str:
    """Return what went wrong in our words: the exception's message may quote the request."""
    name = type(error).__name__
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection in time ({name})"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"no byte in time ({name})"
    if isinstance(error, zlib.error):
        return "the compressed body is damaged"
    return f"the connection failed ({name})"


class Deadline:
    """Ends the exchange that this thread makes inside the `with` block through a `DeadlineAdapter`.

    Attributes:
        expired: the time was up before the block ended; what was received is not to be trusted.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        _thread.deadline = self
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _thread.deadline = None

    def watch(self, connected: socket.socket | None) -> None:
        """Remember the socket that the exchange waits on."""
        self._socket = connected
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        self.expired = True
        if self._socket is not None:
            with suppress(OSError):
                # An SSLSocket's own shutdown would drop its encryption state while it is being read.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class DeadlineAdapter(HTTPAdapter):
    """Gives `requests` connections that a `Deadline` can end; through a proxy only the read timeout applies."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Create the pools; see HTTPAdapter."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class _Thread(threading.local):
    deadline: Deadline | None = None


_thread = _Thread()


class _HTTPPool(HTTPConnectionPool):
    class ConnectionCls(HTTPConnection):
        def getresponse(self) -> Any:
            _watch(self.sock)
            return super().getresponse()


class _HTTPSPool(HTTPSConnectionPool):
    class ConnectionCls(HTTPSConnection):
        def getresponse(self) -> Any:
            _watch(self.sock)
            return super().getresponse()


def _watch(connected: Any) -> None:
    if _thread.deadline is not None:
        _thread.deadline.watch(connected)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one exchange.

    Attributes:
        connect: seconds to open a connection.
        read: seconds without a byte.
        total: seconds from the first byte sent to the last received; a full page takes 1 to 3.
        body: bytes of an unpacked body; the largest recorded page has 5 million.
    """

    connect: float = 10
    read: float = 30
    total: float = 120
    body: int = 64 << 20


class Answer(NamedTuple):
    """A complete answer without the key: its body is unpacked, `size` is what came over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    size: int


class Transport:
    """Sends GET requests to one host; threads may share it, and each gets its own connection."""

    def __init__(self, base_url: str, api_key: str, limits: Limits | None = None) -> None:
        """Check the address and the key; nothing is sent.

        Raises:
            ConfigurationError: the address names no host or holds a login, the key cannot be sent in a header, or the
                environment names certificate authorities that do not exist.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise ConfigurationError(
                "POLYGON_BASE_URL must be an address such as https://api.polygon.io, without a login."
            )
        if not api_key or not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
            raise ConfigurationError("POLYGON_API_KEY is empty, or holds a blank or a character that no key has.")
        self._base = base_url.rstrip("/")
        self._host = parts.hostname
        self._auth = _Bearer(api_key)
        self._limits = limits or Limits()
        self._authorities = certificate_authorities() or DEFAULT_CA_BUNDLE_PATH
        self._local = threading.local()
        self._sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Transport({self._base!r})"

    def get(self, target: str, what: str) -> Answer:
        """Return the complete answer to `GET target`.

        Args:
            target: path and query, from the slash on.
            what: names the request in messages.

        Raises:
            VendorUnreachableError: no connection.
            VendorUntrustedError: the host's certificate cannot be verified.
            UnansweredError: a reset, a deadline, or a body that is cut short or cannot be unpacked.
            DataError: the body is larger than allowed.
        """
        failure: PipelineError
        deadline = Deadline(self._limits.total)
        try:
            with deadline:
                answer = self._exchange(target)
        except PipelineError as error:
            failure = type(error)(f"{what}: {error}.")
        except _BROKEN as error:
            if untrusted := _untrusted(error):
                failure = self._untrusted(what, untrusted)
            elif why := _unconnected(error):
                failure = self._unreachable(what, why)
            else:
                failure = UnansweredError(f"{what}: {_reason(error)}.")
        else:
            if not deadline.expired:
                return answer
        if deadline.expired:
            failure = UnansweredError(f"{what}: no complete answer within {self._limits.total:g} s.")
        # Raised out here, the failure has no __context__: the exceptions above hold the request, and so the key.
        raise failure

    def connect(self, what: str) -> None:
        """Make a connection and close it, without a request; through a proxy, do nothing.

        Raises:
            VendorUnreachableError: it cannot be made.
            VendorUntrustedError: the host's certificate cannot be verified.
        """
        if self._session().trust_env and select_proxy(self._base, get_environ_proxies(self._base)):
            return
        parts = urlsplit(self._base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with socket.create_connection((self._host, port), timeout=self._limits.connect) as made:
                if parts.scheme == "https":
                    self._tls().wrap_socket(made, server_hostname=self._host).close()
        except ssl.SSLCertVerificationError as error:
            raise self._untrusted(what, error.verify_message) from None
        except OSError as error:
            raise self._unreachable(what, _words(error)) from None

    def _tls(self) -> ssl.SSLContext:
        if Path(self._authorities).is_dir():
            return ssl.create_default_context(capath=self._authorities)
        return ssl.create_default_context(cafile=self._authorities)

    def _unreachable(self, what: str, why: str) -> VendorUnreachableError:
        return VendorUnreachableError(f"{what}: {self._base} cannot be reached ({why}).")

    def _untrusted(self, what: str, why: str) -> VendorUntrustedError:
        return VendorUntrustedError(
            f"{what}: the certificate of {self._base} is not trusted ({why}). If your network has a certificate "
            "authority of its own, name its file, for example SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt."
        )

    def redacted(self, text: str) -> str:
        """Return `text` without the key."""
        return self._auth.redacted(text)

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for session in list(self._sessions):
                session.close()
            self._sessions.clear()
            self._local = threading.local()

    def _exchange(self, target: str) -> Answer:
        timeout = (self._limits.connect, self._limits.read)
        url = self._base + target
        with self._session().get(url, stream=True, allow_redirects=False, timeout=timeout) as response:
            try:
                body, size = _unpacked(response, self._limits.body)
            except (PipelineError, *_BROKEN):
                if response.status_code == OK:
                    raise
                body, size = b"", 0  # the status of a refusal counts, whatever became of its body
            headers = {name: self.redacted(value) for name, value in response.headers.items()}
            return Answer(response.status_code, CaseInsensitiveDict(headers), self._auth.redacted_body(body), size)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.auth = self._auth  # also keeps requests from sending a ~/.netrc login instead
            session.headers.update({"Accept": "application/json", "Accept-Encoding": "gzip"})
            session.headers["User-Agent"] = "market-data-pipeline"
            session.trust_env = not names_this_machine(self._host)  # a proxy cannot reach our own sandbox
            session.verify = self._authorities
            for scheme in ("http://", "https://"):
                session.mount(scheme, DeadlineAdapter(pool_connections=1, pool_maxsize=1, max_retries=0))
            self._local.session = session
            with self._lock:
                self._sessions.add(session)
        return session


class _Bearer(AuthBase):
    """Puts the key into the header of each request, and shows it nowhere."""

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def __repr__(self) -> str:
        return "_Bearer(***)"

    def redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._is_secret else text

    def redacted_body(self, body: bytes) -> bytes:
        return body.replace(self._key.encode(), b"***") if self._is_secret else body

    @property
    def _is_secret(self) -> bool:
        """False for a short key, which is a word such as the sandbox's: blanking it would garble other text."""
        return len(self._key) >= _SHORTEST_SECRET


def _unpacked(response: requests.Response, limit: int) -> tuple[bytes, int]:
    """Return the body and its size on the wire; urllib3 would accept a gzip stream that is cut short."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip", "x-gzip", ""}:
        raise UnansweredError("the body has an encoding that was not requested")
    gzipped = "gzip" in encoding
    unpack = zlib.decompressobj(wbits=_GZIP)
    body, size = bytearray(), 0
    for chunk in response.raw.stream(_CHUNK, decode_content=False):
        size += len(chunk)
        if not gzipped:
            body += chunk
        while gzipped and chunk and len(body) <= limit:
            if unpack.eof:  # a gzip file may have several members
                unpack = zlib.decompressobj(wbits=_GZIP)
            body += unpack.decompress(chunk, limit + 1 - len(body))
            chunk = unpack.unused_data
        if len(body) > limit or size > limit:
            raise DataError(f"the body is larger than {limit} bytes")
    if gzipped and size and not unpack.eof:
        raise UnansweredError("the compressed body is cut short")
    return bytes(body), size
