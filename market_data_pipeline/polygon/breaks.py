"""How an HTTP exchange breaks, in our words: the exceptions' own may quote the request, and so the key.

Add here: a way to break that deserves a sentence of its own. Keep out: which class of failure it is (transport).
"""

from __future__ import annotations

import os
import socket
import zlib
from http.client import HTTPException
from typing import Final

import requests
import urllib3

# What requests, the libraries below it and the socket raise when an exchange breaks.
BROKEN: Final = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, zlib.error)


def unmade(error: BaseException) -> str | None:
    """Return why no connection was made, None when one was and broke."""
    if isinstance(error, requests.exceptions.ProxyError) or not isinstance(error, requests.ConnectionError):
        return None
    wrapped = error.args[0] if error.args else None
    inner = wrapped.reason if isinstance(wrapped, urllib3.exceptions.MaxRetryError) else None
    if not isinstance(inner, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return None
    return words(inner.__cause__ or inner.__context__)


def words(error: BaseException | None) -> str:
    """Return what the system says about a connection that was not made."""
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, TimeoutError) or not isinstance(error, OSError) or not error.errno:
        return "no connection in time"
    return os.strerror(error.errno).lower()


def reason(error: BaseException) -> str:
    """Return what went wrong in our words; the exception's own may quote the request."""
    name = type(error).__name__
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection in time ({name})"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"no byte in time ({name})"
    if isinstance(error, zlib.error):
        return "the compressed body is damaged"
    return f"the connection failed ({name})"
