"""Backups in an object store (S3 and what speaks it, Google Cloud Storage, Azure): streamed both ways, no copy on disk.

A dump is cut into objects of 32 MB under `URL/INSTANT/DATABASE/`, so what is lost or damaged is named, a failed request
is repeated alone, and nothing of an interrupted upload hides from a list of the bucket. `URL/INSTANT/manifest.json`
comes last and makes it a backup.
"""

from __future__ import annotations

import hashlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.backup.manifest import MANIFEST, NAME, DumpFile, Manifest, name_of, parsed_manifest
from market_data_pipeline.domain.errors import BackupError, BackupUnreachableError, ConfigurationError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from obstore.store import ClientConfig, ObjectStore

    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.postgres_tools import Tools

_PART: Final = 32 << 20  # bytes, held in memory once; a store takes 5 GB in one request, and a slow line must not fail
_RETRIES: Final = 5  # of a request, over two minutes: stores answer 503 when they are busy
_OPTIONS: Final = "MARKET_DATA_BACKUP_OPTIONS"
# Who writes adds a part every few seconds, or waits a minute for a lock. Older than this, its process is gone.
_ABANDONED: Final = timedelta(hours=1)
_CLIENT: Final = ("allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout")
# What stores write in their answers; their texts are not shown, since they quote the name of the key.
_REFUSED: Final = ("AccessDenied", "403 Forbidden", "401 Unauthorized", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
# Where a program on a cloud's machine asks for a key, when it was given none.
_NO_KEY: Final = ("/latest/api/token", "/latest/meta-data", "169.254.", "metadata.google.internal")


@dataclass(frozen=True, slots=True)
class Bucket:
    """The place of backups in an object store.

    Attributes:
        url: of the folder of backups, without a slash at the end.
    """

    url: str
    _store: ObjectStore = field(repr=False)

    @classmethod
    def at(cls, url: str, options: Mapping[str, str]) -> Bucket:
        """Open the place of `url`; nothing is asked of the store yet.

        Args:
            url: such as `s3://bucket/folder`.
            options: as delta-rs takes them, `AWS_REGION` say; they add to the environment's.

        Raises:
            ConfigurationError: an option, or the kind of store, is not known.
        """
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        config: Any = {}
        client: ClientConfig = {"connect_timeout": "10s", "timeout": "10m"}
        for name, value in options.items():
            short = name.lower().removeprefix("aws_").removeprefix("google_").removeprefix("azure_")
            if short in _CLIENT:
                client[short] = value  # type: ignore[literal-required]
            else:
                config[name.lower()] = value
        try:
            store = from_url(
                url,
                config=config or None,
                client_options=client,
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=2)},
            )
        except (BaseError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{url} cannot be opened ({type(error).__name__}): check it, and the names of options in {_OPTIONS}."
            ) from None
        return cls(url, store)

    def put(self, path: str, content: bytes) -> None:
        """Store an object, whole or not at all."""
        import obstore

        with self._translated():
            obstore.put(self._store, path, content, use_multipart=False)

    def get(self, path: str) -> bytes | None:
        """Return an object; None if there is none."""
        import obstore

        with self._translated():
            try:
                return bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError as error:
                if any(text in str(error) for text in _NO_BUCKET):
                    raise
                return None

    def objects(self, prefix: str = "") -> dict[str, tuple[int, datetime]]:
        """Return the size and the instant of each object whose path begins with a folder's name."""
        import obstore

        with self._translated():
            return {
                each["path"]: (each["size"], each["last_modified"])
                for batch in obstore.list(self._store, prefix or None)
                for each in batch
            }

    def remove(self, name: str) -> None:
        """Remove a backup, or what there is of it, the manifest first: what is half removed is no backup."""
        import obstore

        paths = sorted(self.objects(f"{name}/"), key=lambda path: not path.endswith(f"/{MANIFEST}"))
        with self._translated():
            for path in paths:
                obstore.delete(self._store, path)

    def backups(self) -> list[str]:
        """Return the names of the finished backups, oldest first."""
        found = {path.partition("/")[0] for path in self.objects() if path.partition("/")[2] == MANIFEST}
        return sorted((name for name in found if NAME.fullmatch(name)), key=lambda name: name.removesuffix("Z"))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn obstore's errors into ours.

        Raises:
            ConfigurationError: there is no such bucket, or no key, or it may not do this.
            BackupUnreachableError: the store does not answer, or fails.
        """
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            text = f"{type(error).__name__} {error}"
            if any(part in text for part in _NO_BUCKET):
                raise ConfigurationError(f"There is no bucket for {self.url}: create it, or correct the URL.") from None
            if any(part in text for part in _NO_KEY):
                raise ConfigurationError(
                    f"There are no credentials for {self.url}: put them into {_OPTIONS}, for example "
                    '{"AWS_ACCESS_KEY_ID": "...", "AWS_SECRET_ACCESS_KEY": "..."}, or into the environment.'
                ) from None
            if any(part in text for part in (*_REFUSED, "PermissionDenied", "Unauthenticated")):
                raise ConfigurationError(
                    f"Access to {self.url} is denied: check the credentials, and that they may list, read, write and "
                    "delete there."
                ) from None
            raise BackupUnreachableError(
                f"{self.url} cannot be reached, or fails ({type(error).__name__}): check the network and the store's "
                "address."
            ) from None


class BucketWriter:
    """A backup that is being written into a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        """Set the bucket; `begin` names the backup."""
        self.bucket = bucket
        self._name = ""
        self._finished = False

    @classmethod
    @contextmanager
    def at(cls, bucket: Bucket) -> Iterator[BucketWriter]:
        """Remove what dead writers left, yield a writer, and remove what it wrote unless it finished."""
        objects, now = bucket.objects(), datetime.now(UTC)
        names = {name for path in objects if NAME.fullmatch(name := path.partition("/")[0])}
        for name in sorted(names):
            times = [at for path, (_, at) in objects.items() if path.startswith(f"{name}/")]
            if f"{name}/{MANIFEST}" not in objects and now - max(times) > _ABANDONED:
                bucket.remove(name)
        writer = cls(bucket)
        try:
            yield writer
        except BaseException:
            if writer._name and not writer._finished:
                with suppress(PipelineError):  # why it failed is what is told; a later backup removes what is left
                    bucket.remove(writer._name)
            raise

    def begin(self, instant: datetime) -> None:
        """Name the backup by the instant of its snapshots (UTC)."""
        self._name = name_of(instant, lambda name: bool(self.bucket.objects(f"{name}/")))

    def dump(self, name: str, tools: Tools, arguments: Sequence[str], url: str) -> list[DumpFile]:
        """Stream a dump into objects of its own; return them in their order."""
        with closing(tools.read("pg_dump", ("--format=custom", *arguments), url)) as chunks:
            return self._put(name, "", chunks)

    def add(self, name: str, file: str, pieces: Iterator[bytes]) -> list[DumpFile]:
        """Stream a file beside a dump into objects of its own; return them in their order."""
        return self._put(name, f"{file}.", pieces)

    def _put(self, name: str, prefix: str, chunks: Iterator[bytes]) -> list[DumpFile]:
        files = []
        for number, part in enumerate(_parts(chunks), 1):
            file = DumpFile(name=f"{prefix}{number:06}", size=len(part), sha256=hashlib.sha256(part).hexdigest())
            self.bucket.put(f"{self._name}/{name}/{file.name}", part)
            files.append(file)
        return files

    def finish(self, manifest: Manifest) -> StoredBackup:
        """Write the manifest, by which it becomes a backup."""
        self.bucket.put(f"{self._name}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
        self._finished = True
        return StoredBackup(self.bucket, self._name)

    def leave(self, keep: int) -> list[str]:
        """Remove all but the newest backups; return the names of the removed ones."""
        old = self.bucket.backups()[:-keep]
        for each in old:
            self.bucket.remove(each)
        return old


@dataclass(frozen=True, slots=True)
class StoredBackup:
    """A finished backup in a bucket."""

    bucket: Bucket
    name: str

    def __str__(self) -> str:
        """Return its URL."""
        return f"{self.bucket.url}/{self.name}"

    @property
    def location(self) -> str:
        """Where it is, for the table of backups."""
        return str(self)

    def manifest(self) -> Manifest:
        """Return what it holds.

        Raises:
            BackupError: it is damaged, or of a later version.
        """
        text = self.bucket.get(f"{self.name}/{MANIFEST}")
        if text is None:
            raise BackupError(f"{self}/{MANIFEST} is missing.")
        return parsed_manifest(text, f"{self}/{MANIFEST}")

    def damaged(self, manifest: Manifest) -> list[str]:
        """Return a sentence for each object that is missing, or not as it was written; all of them are read."""
        there = self.bucket.objects(f"{self.name}/")
        found = []
        for name, dump in manifest.dumps.items():
            for file in dump.files:
                size, _ = there.get(f"{self.name}/{name}/{file.name}", (None, None))
                if size is None:
                    found.append(f"{self}/{name}/{file.name} is missing.")
                elif size != file.size:
                    found.append(f"{self}/{name}/{file.name} has {size} bytes instead of {file.size}.")
                elif (problem := self._part(name, file)[1]) is not None:
                    found.append(problem)
        return found

    def entries(self, name: str, manifest: Manifest, tools: Tools) -> str:
        """Return the table of contents of a dump."""
        return tools.feed("pg_restore", ("--list",), self._stream(name, "", manifest))

    def added(self, name: str, file: str, manifest: Manifest) -> Iterator[bytes]:
        """Yield a file that lies beside a dump, in pieces that are verified."""
        return self._stream(name, f"{file}.", manifest)

    def restore(self, name: str, manifest: Manifest, tools: Tools, arguments: Sequence[str], url: str) -> None:
        """Restore a dump, each part of which is verified before the server gets it."""
        tools.feed("pg_restore", arguments, self._stream(name, "", manifest), url)

    def _stream(self, name: str, prefix: str, manifest: Manifest) -> Iterator[bytes]:
        for file in manifest.dumps[name].files:
            if not (file.name.startswith(prefix) and file.name.removeprefix(prefix).isdecimal()):
                continue
            content, problem = self._part(name, file)
            if problem is not None:
                raise BackupError(problem)
            yield content

    def _part(self, name: str, file: DumpFile) -> tuple[bytes, str | None]:
        path = f"{self.name}/{name}/{file.name}"
        content = self.bucket.get(path)
        if content is None:
            return b"", f"{self.bucket.url}/{path} is missing."
        if hashlib.sha256(content).hexdigest() != file.sha256:
            return content, f"{self.bucket.url}/{path} is not as it was written: its checksum differs."
        return content, None


def find_stored(url: str, settings: Settings) -> StoredBackup:
    """Return the backup that a URL names, or else the newest one there.

    Raises:
        BackupError: there is none.
    """
    parent, _, name = url.rpartition("/")
    if NAME.fullmatch(name):
        return StoredBackup(Bucket.at(parent, settings.backup_store_options), name)
    bucket = Bucket.at(url, settings.backup_store_options)
    found = bucket.backups()
    if not found:
        raise BackupError(f"{url} has no backup in it: name a place that `market-data backup` wrote to.")
    return StoredBackup(bucket, found[-1])


def _parts(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut a stream into parts of the same size; the last may be shorter."""
    part = bytearray()
    for chunk in chunks:
        part += chunk
        while len(part) >= _PART:
            yield bytes(part[:_PART])
            del part[:_PART]
    if part:
        yield bytes(part)
