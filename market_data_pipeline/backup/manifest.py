"""What a backup holds: its manifest; and what it is on disk, a folder with a dump of each database and the manifest.

Backups lie side by side in one folder, each named by its instant. One that is being made, or was interrupted, has a
name that begins with a dot; it becomes a backup by being renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from market_data_pipeline.domain.errors import BackupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from market_data_pipeline.store.checksums import TableContent

MANIFEST: Final = "manifest.json"
NAME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d{6}(\.\d{6})?Z")
_CHUNK: Final = 1 << 20
Rows = Annotated[tuple[int, str], Field(description="Rows, and their checksum.")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DumpFile(_Part):
    """One file of a dump."""

    name: str
    size: int
    sha256: str


class Table(_Part):
    """What a table held; `months` by series and month, for records, and for bars and features of older schemas."""

    name: str
    columns: tuple[str, ...]
    total: Rows
    months: dict[str, dict[str, Rows]] = {}

    @classmethod
    def of(cls, content: TableContent) -> Table:
        """Return the same as a part of a manifest."""
        months = {
            series: {month: (part.rows, part.checksum) for month, part in of_series.items()}
            for series, of_series in content.months.items()
        }
        return cls(
            name=content.name,
            columns=content.columns,
            total=(content.total.rows, content.total.checksum),
            months=months,
        )


class Dump(_Part):
    """The dump of one schema of one database.

    Attributes:
        schema_name: of the tables.
        server: the server's major version.
        tools: the version of pg_dump.
        grantees: the roles that have privileges in it.
        files: all files, in a folder named like the dump.
        tables: what they hold.
    """

    schema_name: str
    server: int
    tools: str
    grantees: list[str]
    files: list[DumpFile]
    tables: list[Table]


class BarsOf(_Part):
    """What the bars are of: see `market_data.source`."""

    kind: str
    host: str | None
    plan: str


class Manifest(_Part):
    """What a backup holds.

    Attributes:
        taken_at: the instant of its snapshots, UTC.
        version: of this package.
        migration: the newest of the schema.
        source: what the bars are of; None when there are none.
        market_data: the bars, features and audit log.
        dagster: Dagster's storage; None where it had no tables.
        features: whether the features are in it; if not, they are computed again from the bars.
    """

    format: Literal[1]
    taken_at: datetime
    version: str
    migration: str
    source: BarsOf | None
    market_data: Dump
    dagster: Dump | None
    features: bool = True

    @property
    def dumps(self) -> dict[str, Dump]:
        """The dumps by their folder, in the order in which they are restored."""
        return {**({"dagster": self.dagster} if self.dagster else {}), "market_data": self.market_data}

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.size for dump in self.dumps.values() for file in dump.files)


def new_place(folder: Path, instant: datetime) -> Path:
    """Return where the backup of an instant (UTC) is to be: named by its second, or more exactly if that is taken."""
    return folder / name_of(instant, lambda name: (folder / name).exists())


def name_of(instant: datetime, is_taken: Callable[[str], bool]) -> str:
    """Return the name of the backup of an instant (UTC): its second, or more exactly if that is taken."""
    name = f"{instant:%Y-%m-%dT%H%M%SZ}"
    return f"{instant:%Y-%m-%dT%H%M%S.%fZ}" if is_taken(name) else name


def backups_in(folder: Path) -> list[Path]:
    """Return the finished backups in a folder, oldest first."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: path.name.removesuffix("Z"))  # a second before its fractions


def unfinished_in(folder: Path) -> list[Path]:
    """Return what interrupted backups left in a folder."""
    return [path for path in folder.iterdir() if path.name[:1] == "." and NAME.fullmatch(path.name[1:])]


def remove_backup(path: Path) -> None:
    """Remove a backup; one that is half removed is not taken for a backup."""
    hidden = path.with_name(f".{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.rmtree(path.rename(hidden))


def find_backup(path: Path) -> Path:
    """Return the backup that `path` is, or else the newest one in it.

    Raises:
        BackupError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    found = backups_in(path) if path.is_dir() else []
    if not found:
        raise BackupError(f"{path} is no backup and has none in it: name a folder that `market-data backup` wrote to.")
    return found[-1]


def read_manifest(backup: Path) -> Manifest:
    """Return the manifest of a backup.

    Raises:
        BackupError: it is damaged, or of a later version.
    """
    return parsed_manifest((backup / MANIFEST).read_bytes(), str(backup / MANIFEST))


def parsed_manifest(text: bytes, name: str) -> Manifest:
    """Return a manifest from its text; `name` says in errors where it is.

    Raises:
        BackupError: it is damaged, or of a later version.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"])) or "its text"
        raise BackupError(
            f"{name} is damaged, or was written by a later version of this code: {where}: {first['msg']}."
        ) from None


def write_manifest(backup: Path, manifest: Manifest) -> None:
    """Write the manifest of a backup to the disk, so that it is there when the folder gets its name."""
    with (backup / MANIFEST).open("x", encoding="utf-8") as stream:
        (backup / MANIFEST).chmod(0o600)
        stream.write(manifest.model_dump_json(indent=1))
        stream.flush()
        os.fsync(stream.fileno())


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file of a dump, which only its user can read."""
    with path.open("xb") as stream:
        path.chmod(0o600)
        stream.writelines(pieces)


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield a file of a dump in pieces."""
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            yield piece


def sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_of(dump: Path) -> list[DumpFile]:
    """Return the files of a dump with their checksums."""
    return [DumpFile(name=file.name, size=file.stat().st_size, sha256=_sha256(file)) for file in sorted(dump.iterdir())]


def damaged_files(backup: Path, manifest: Manifest) -> list[str]:
    """Return a sentence for each file of a backup that is missing, or not as it was written."""
    return [sentence for name, dump in manifest.dumps.items() for sentence in _differences(backup / name, dump.files)]


def _differences(folder: Path, files: Iterable[DumpFile]) -> list[str]:
    found = []
    for file in files:
        path = folder / file.name
        if not path.is_file():
            found.append(f"{path} is missing.")
        elif path.stat().st_size != file.size:
            found.append(f"{path} has {path.stat().st_size} bytes instead of {file.size}.")
        elif _sha256(path) != file.sha256:
            found.append(f"{path} is not as it was written: its checksum differs.")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
