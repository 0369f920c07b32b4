"""What a variable's text may be: parsers that raise ValueError with a message that completes the sentence "VARIABLE …".

The message shows the given text unless that may hold a secret. URLs of PostgreSQL are in `database_urls`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Secret, SecretStr


def whole_number(low: int, high: int) -> Callable[[Any], int]:
    """Return a parser of whole numbers from `low` to `high`, both included."""

    def parse(given: Any) -> int:
        text = str(given).strip()
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError(f"is {given!r}, which is not a whole number")
        if not low <= (number := int(text)) <= high:
            raise ValueError(f"is {number}, which is not between {low} and {high}")
        return number

    return parse


def one_of(what: str, names: Collection[str]) -> Callable[[Any], str]:
    """Return a parser of one of `names`, ignoring case."""

    def parse(given: Any) -> str:
        name = str(given).strip().lower()
        if name not in names:
            raise ValueError(f"is {given!r}, which is not a {what}: use one of {', '.join(names)}")
        return name

    return parse


def some_of(what: str, names: Collection[str]) -> Callable[[Any], tuple[str, ...]]:
    """Return a parser of comma-separated ones of `names`, ignoring case."""
    parse_one = one_of(what, names)

    def parse(given: Any) -> tuple[str, ...]:
        parts = given if isinstance(given, (list, tuple)) else re.split(r"[,\s]+", str(given).strip(", "))
        return tuple(dict.fromkeys(map(parse_one, parts)))

    return parse


def instant(given: Any) -> datetime:
    """Return an ISO 8601 instant with its offset as aware UTC."""
    try:
        moment = given if isinstance(given, datetime) else datetime.fromisoformat(str(given).strip())
    except ValueError:
        raise ValueError(f"is {given!r}, which is not an ISO 8601 instant") from None
    if moment.tzinfo is None:
        raise ValueError(f"is {given!r}, which has no offset from UTC")
    return moment.astimezone(UTC)


_STORES = frozenset({"abfs", "abfss", "az", "azure", "gs", "s3", "s3a"})


def lake_url(given: Any) -> str:
    """Return the URL of an object store or the absolute path of a folder, which need not exist."""
    text = str(given).strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        return str(Path(text).expanduser().absolute())
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not rest.strip("/"):
        raise ValueError(f"is {text!r}, which is neither a folder nor the URL of an object store")
    if "@" in rest.split("/")[0] and scheme not in {"abfs", "abfss"}:
        raise ValueError("has a name or a password in it; they belong in MARKET_DATA_LAKE_OPTIONS or the environment")
    return text.rstrip("/")


def store_options(given: Any) -> Secret[dict[str, str]]:
    """Return options of an object store, as delta-rs names them, given as a JSON object of texts."""
    try:
        options = given if isinstance(given, dict) else json.loads(str(given))
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise ValueError("is not a JSON object whose values are texts")
    return Secret(options)


def path_from(root: Path, given: str) -> str:
    """Return a path with `root` before it if it is relative; a URL, an absolute path and nothing as they are."""
    text = given.strip()
    return str(root / Path(text).expanduser()) if text and "://" not in text else given


def existing_path(given: Any) -> Path:
    """Return the absolute path of a file or folder that exists."""
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"is {str(given)!r}, and there is no such file or folder")
    return path


def backup_place(given: Any) -> Path | str:
    """Return the path of a folder, which need not exist yet, or the URL of an object store as text."""
    text = str(given).strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        path = Path(text).expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError(f"is {text!r}, which is not a folder")
        return path
    if scheme not in _STORES or not rest.strip("/"):
        raise ValueError(
            f"is {scheme + separator!r} and a place, which is neither a folder nor the URL of an object store, such as "
            "s3://bucket/folder"
        )
    if ("@" in rest.split("/")[0] and scheme not in {"abfs", "abfss"}) or "?" in rest or "#" in rest:
        raise ValueError("has more than a bucket and a folder: secrets belong in MARKET_DATA_BACKUP_OPTIONS")
    return text.rstrip("/")


def module_name(given: Any) -> str:
    """Return the name of an importable module, or of a file that ends in `.py`."""
    text = str(given).strip()
    if not text.endswith(".py") and not all(part.isidentifier() for part in text.split(".")):
        raise ValueError(f"is {text!r}, which is neither a module's name nor a .py file")
    return text


def file_of_module(named: str | None, root: Path) -> str | None:
    """Return the absolute path of a `.py` file, a relative one taken from `root`; other names as they are."""
    if named is None or not named.endswith(".py"):
        return named
    file = root / Path(named).expanduser()
    if not file.is_file():
        raise ValueError(f"is {named!r}, and there is no such file")
    return str(file)


def api_key(given: Any) -> SecretStr:
    """Return a key that can be sent in a header."""
    text = given.get_secret_value() if isinstance(given, SecretStr) else str(given)
    if not re.fullmatch(r"[!-~]+", text := text.strip()):
        raise ValueError("contains a blank or a character that no key has (its value is not shown)")
    return SecretStr(text)


def base_url(given: Any) -> str:
    """Return the address of a Polygon-compatible server, without a slash at its end."""
    text = str(given).strip()
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is not an address that starts with https:// or http:// and names a host")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must not contain a key, a login or anything after a ? (its value is not shown)")
    return text.rstrip("/")


def files_url(given: Any) -> str:
    """Return the address of an object store, or a folder that exists as an absolute path."""
    text = str(given).strip()
    if text.startswith(("http://", "https://")):
        return base_url(text)
    if "://" in text and not text.startswith("file://"):
        raise ValueError("is neither a folder nor an address that starts with https:// or http://")
    return str(existing_path(text.removeprefix("file://")))


def broker_url(given: Any) -> str:
    """Return the address of a Redis server; it may hold a password, so that no message shows it."""
    text = str(given).strip()
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is not an address that starts with redis:// or rediss:// and names a host")
    return text


def listening_address(given: Any) -> str:
    """Return an address of this machine to listen on: an IP address, or localhost."""
    text = str(given).strip().strip("[]").lower()
    try:
        return "127.0.0.1" if text == "localhost" else str(ip_address(text))
    except ValueError:
        raise ValueError(f"is {str(given)!r}, which is neither an IP address nor localhost") from None


def alert_urls(given: Any) -> list[str]:
    """Return comma-separated Apprise URLs; a comma inside one, as between mail recipients, is part of it."""
    if isinstance(given, list):
        return given
    urls = [url.strip() for url in re.split(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", str(given).strip(", "))]
    for number, url in enumerate(urls, start=1):
        if "://" not in url:
            raise ValueError(f"has no :// in address number {number} (its value is not shown)")
    return urls


def origins(given: Any) -> list[str]:
    """Return comma-separated origins as browsers send them, such as `https://example.org:8443`; `*` is every one."""
    if isinstance(given, list):
        return given
    found = [one.rstrip("/") for one in re.split(r"[,\s]+", str(given).strip(", ")) if one]
    for one in found:
        if one != "*" and not re.fullmatch(r"https?://[^/?#@]+", one):
            raise ValueError(f"has {one!r}, which is not an origin: a scheme and a host, with its port if it has one")
    return [one.lower() for one in found]
