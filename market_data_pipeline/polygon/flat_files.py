"""The vendor's flat files: which days there are, in which version, and their bytes.

One gzipped CSV file holds a day of the whole market. The files lie in an object store that speaks S3 (the vendor's, a
sandbox's, a mirror) or in a folder; both have the same layout and are read by the same client.

Keep out: what is in a file (polygon.day_file) and which days are worth a download (ingest).
"""

from __future__ import annotations

import datetime as dt
import errno
import re
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from market_data_pipeline.domain.errors import ConfigurationError, DataError, TransientError, VendorRefusedError
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config
    from pydantic import SecretStr

BUCKET: Final = "flatfiles"
MARKET: Final = "us_stocks_sip"

_REGION: Final = "us-east-1"  # part of a signature; the vendor has one region and ignores its name
_CHUNK: Final = 1 << 20
_CONNECT: Final = dt.timedelta(seconds=10)
_WHOLE: Final = dt.timedelta(minutes=10)  # a day of minutes is 15 to 20 MB
_RETRIES: Final = 4
_LONGEST_RETRIES: Final = dt.timedelta(minutes=2)
_REFUSED: Final = re.compile(r"\b40[13] (Unauthorized|Forbidden)")
_KEY: Final = re.compile(r"(?P<day>\d{4}-\d{2}-\d{2})\.csv\.gz")


class Dataset(StrEnum):
    """A folder of the vendor: bars of one length."""

    MINUTES = "minute_aggs_v1"
    DAYS = "day_aggs_v1"

    @classmethod
    def of(cls, timeframe: Timeframe) -> Dataset:
        """Return the folder that a fetched timeframe is made from."""
        return cls.DAYS if timeframe is Timeframe.D1 else cls.MINUTES


class FileVersion(NamedTuple):
    """One version of one file.

    Attributes:
        dataset: which folder.
        day: the session's date.
        etag: of the version, as the store gives it.
        bytes: its size, compressed.
        published_at: when it was stored, aware UTC.
    """

    dataset: Dataset
    day: dt.date
    etag: str
    bytes: int
    published_at: dt.datetime

    @property
    def key(self) -> str:
        """Where the file lies in the bucket."""
        return key_of(self.dataset, self.day)


def key_of(dataset: Dataset, day: dt.date) -> str:
    """Return where the file of a day lies in the bucket."""
    return f"{MARKET}/{dataset}/{day:%Y/%m}/{day}.csv.gz"


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Where the files are, and who asks; `key_id` and `secret` are None for a folder and for a store that needs none.

    `url` is the address of a store that speaks S3, with the bucket as its path unless that is `flatfiles`; or a folder,
    as an absolute path or a file:// URL.
    """

    url: str
    key_id: SecretStr | None = None
    secret: SecretStr | None = None

    @property
    def folder(self) -> Path | None:
        """The folder, if the files are in one."""
        path = self.url.removeprefix("file://")
        return Path(path) if path.startswith("/") else None

    def __str__(self) -> str:
        """Show where the files are, never the key."""
        return str(self.folder or self.url)


class FlatFiles:
    """A client of the files; threads may share it.

    Args:
        access: where the files are, and who asks.
        retries: attempts after the first one of each request.

    Raises:
        ConfigurationError: the place cannot be used.
    """

    def __init__(self, access: FileAccess, *, retries: int = _RETRIES) -> None:
        self.access = access
        self._store = _store(access, retries)

    def __repr__(self) -> str:
        """Show where the files are, never the key."""
        return f"FlatFiles({self.access})"

    def listing(self, dataset: Dataset, first: dt.date, last: dt.date) -> dict[dt.date, FileVersion]:
        """Return the files of the days from `first` to `last`, both included; one request per month.

        Raises:
            VendorRefusedError: the key is refused.
            TransientError: the store cannot be reached, or fails.
        """
        import obstore

        found: dict[dt.date, FileVersion] = {}
        for month in _months(first, last):
            prefix = f"{MARKET}/{dataset}/{month:%Y/%m}/"
            with self._translated(f"the list of {prefix}"):
                for batch in obstore.list(self._store, prefix):
                    for each in batch:
                        match = _KEY.fullmatch(each["path"].rpartition("/")[2])
                        day = _day(match["day"]) if match else None
                        if day is not None and first <= day <= last:
                            etag = (each["e_tag"] or "").strip('"') or f"{each['last_modified']:%s}-{each['size']}"
                            found[day] = FileVersion(dataset, day, etag, each["size"], each["last_modified"])
        return dict(sorted(found.items()))

    def download(self, version: FileVersion, into: IO[bytes]) -> None:
        """Write a file's bytes, compressed as they are, into `into`.

        Raises:
            DataError: the file was withdrawn, or replaced since it was listed, or ends early.
            VendorRefusedError: the key is refused.
            TransientError: the store cannot be reached, or fails.
        """
        import obstore

        count = 0
        with self._translated(version.key):
            answer = obstore.get(self._store, version.key)
            etag = (answer.meta["e_tag"] or "").strip('"')
            if etag and etag != version.etag and self.access.folder is None:
                raise DataError(f"{version.key} was replaced while it was read; the next run reads the new one.")
            for chunk in answer.stream(min_chunk_size=_CHUNK):
                into.write(chunk)
                count += len(chunk)
        if count != answer.meta["size"]:
            raise DataError(f"{version.key} ends after {count} of {answer.meta['size']} bytes.")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn obstore's errors into ours. Their texts quote answers of the server, which may quote the key."""
        from obstore import exceptions

        try:
            yield
        except (exceptions.NotFoundError, FileNotFoundError):
            raise DataError(f"{what} is not at {self.access} any more.") from None
        except (exceptions.BaseError, OSError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise  # of the disk here
            named = isinstance(error, exceptions.UnauthenticatedError | exceptions.PermissionDeniedError)
            if named or _REFUSED.search(str(error)):
                raise VendorRefusedError(
                    f"{self.access} refuses {what}: check MARKET_DATA_FLAT_FILES_KEY_ID and "
                    "MARKET_DATA_FLAT_FILES_SECRET, and that the plan includes flat files (basic does not)."
                ) from None
            raise TransientError(f"{what} cannot be read from {self.access} ({type(error).__name__}).") from None


def _store(access: FileAccess, retries: int) -> ObjectStore:
    from obstore.store import LocalStore, S3Store

    if (folder := access.folder) is not None:
        if not (folder / MARKET).is_dir():
            raise ConfigurationError(
                f"MARKET_DATA_FLAT_FILES_URL names {folder}, which has no folder {MARKET}/; for example a mirror with "
                f"{key_of(Dataset.MINUTES, dt.date(2026, 3, 2))}."
            )
        return LocalStore(str(folder))
    parts = urlsplit(access.url)
    options: ClientConfig = {"allow_http": parts.scheme == "http", "connect_timeout": _CONNECT, "timeout": _WHOLE}
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": _LONGEST_RETRIES}
    config: S3Config = {"region": _REGION, "virtual_hosted_style_request": False, "skip_signature": True}
    if access.key_id is not None and access.secret is not None:
        config |= {
            "skip_signature": False,
            "access_key_id": access.key_id.get_secret_value(),
            "secret_access_key": access.secret.get_secret_value(),
        }
    return S3Store(
        parts.path.strip("/") or BUCKET,
        endpoint=f"{parts.scheme}://{parts.netloc}",
        config=config,
        client_options=options,
        retry_config=retry,
    )


def _months(first: dt.date, last: dt.date) -> Iterator[dt.date]:
    month = first.replace(day=1)
    while month <= last:
        yield month
        month = (month + dt.timedelta(days=32)).replace(day=1)


def _day(text: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        return None
