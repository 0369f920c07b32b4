"""URLs of PostgreSQL as users write them, in the one form that libpq and SQLAlchemy both read."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

_SCHEMES: Final = {"postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"}
_PORT: Final = 5432


def postgres_url(given: Any) -> str:
    """Return a libpq URL, `postgresql://…`, of a server and a database; the driver of an SQLAlchemy URL is dropped.

    Several hosts, `host1:5432,host2:5432`, become the parameters `host` and `port`: SQLAlchemy, by which Dagster
    connects, reads them only there.

    Raises:
        ValueError: it is no such URL; the message shows nothing of it.
    """
    text = str(given).strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError("does not start with postgresql:// (its value is not shown)")
    try:
        # Newer Pythons refuse the brackets of one host among several, so the hosts are split first.
        end = min((rest.index(sign) for sign in "/?#" if sign in rest), default=len(rest))
        authority, path = rest[:end], rest[end:]
        parts = urlsplit(f"//host{path}")
        login, at, where = authority.rpartition("@")
        ports = [urlsplit(f"//{each}").port for each in where.split(",")]
        usable = 0 not in ports and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is not a well-formed URL: write @ : / ? # in the password as %40 %3A %2F %3F %23")
    if not parts.path.strip("/") and "dbname" not in parse_qs(parts.query):
        raise ValueError("does not name a database (its value is not shown)")
    if len(ports) == 1:
        return f"postgresql://{rest}"
    pairs = zip(where.split(","), ports, strict=True)
    hosts = ",".join(unquote(each.removesuffix(f":{port}").strip("[]")) for each, port in pairs)
    several = f"host={quote(hosts, safe=',')}&port={','.join(str(port or _PORT) for port in ports)}"
    return f"postgresql://{login}{at}{parts.path}?{several}" + (f"&{parts.query}" if parts.query else "")


def psycopg2_url(url: str) -> str:
    """Return `url` for dagster-postgres, which supports only psycopg2, where SQLAlchemy 2.1 would choose psycopg 3."""
    return "postgresql+psycopg2" + url[url.index("://") :] if url else url
