"""Backups in a folder of this machine: each is a folder of its own, written under a hidden name and renamed."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from market_data_pipeline.backup.manifest import (
    DumpFile,
    Manifest,
    backups_in,
    damaged_files,
    files_of,
    new_place,
    pieces_of,
    read_manifest,
    remove_backup,
    sync_folder,
    unfinished_in,
    write_file,
    write_manifest,
)
from market_data_pipeline.domain.errors import BackupError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from market_data_pipeline.store.postgres_tools import Tools

_JOBS: Final = 2  # tables dumped at the same time: more would take the processors from refreshes


class FolderWriter:
    """A backup that is being written into a folder, of which there is one at a time."""

    def __init__(self, folder: Path, lock: int) -> None:
        """Set the folder and the descriptor of its lock, which the programs keep open; `begin` names the backup."""
        self.folder = folder
        self._lock = lock
        self._place = folder
        self._draft: Path | None = None

    @classmethod
    @contextmanager
    def at(cls, folder: Path) -> Iterator[FolderWriter]:
        """Take the folder's lock, remove what dead writers left, yield a writer, and remove its draft.

        Raises:
            BackupError: another backup has the lock.
        """
        with _only_one(folder) as lock:
            for left in unfinished_in(folder):
                shutil.rmtree(left)
            writer = cls(folder, lock)
            try:
                yield writer
            finally:
                if writer._draft is not None:
                    shutil.rmtree(writer._draft, ignore_errors=True)

    def begin(self, instant: datetime) -> None:
        """Name the backup by the instant of its snapshots (UTC)."""
        self._place = new_place(self.folder, instant)
        self._draft = self._place.with_name(f".{self._place.name}")
        self._draft.mkdir(mode=0o700)

    def dump(self, name: str, tools: Tools, arguments: Sequence[str], url: str) -> list[DumpFile]:
        """Write a dump, and return its files."""
        assert self._draft is not None  # noqa: S101 - `begin` came first
        folder = self._draft / name
        arguments = ("--format=directory", f"--file={folder}", f"--jobs={_JOBS}", *arguments)
        tools.run("pg_dump", arguments, url, inherits=(self._lock,))
        folder.chmod(0o700)
        return files_of(folder)

    def add(self, name: str, file: str, pieces: Iterable[bytes]) -> list[DumpFile]:
        """Write a file beside a dump, and return what the manifest has of it."""
        assert self._draft is not None  # noqa: S101 - `begin` came first
        write_file(self._draft / name / file, pieces)
        return [each for each in files_of(self._draft / name) if each.name == file]

    def finish(self, manifest: Manifest) -> FolderBackup:
        """Write the manifest and give the backup its name."""
        assert self._draft is not None  # noqa: S101 - `begin` came first
        write_manifest(self._draft, manifest)
        sync_folder(self._draft)
        finished = self._draft.rename(self._place)
        self._draft = None
        sync_folder(self.folder)
        return FolderBackup(finished)

    def leave(self, keep: int) -> list[str]:
        """Remove all but the newest backups; return the names of the removed ones."""
        old = backups_in(self.folder)[:-keep]
        for each in old:
            remove_backup(each)
        return [each.name for each in old]


@dataclass(frozen=True, slots=True)
class FolderBackup:
    """A finished backup in a folder of its own."""

    folder: Path

    def __str__(self) -> str:
        """Return its path."""
        return str(self.folder)

    @property
    def location(self) -> str:
        """Where it is, for the table of backups."""
        return f"{socket.gethostname()}:{self.folder}"

    def manifest(self) -> Manifest:
        """Return what it holds.

        Raises:
            BackupError: it is damaged, or of a later version.
        """
        return read_manifest(self.folder)

    def damaged(self, manifest: Manifest) -> list[str]:
        """Return a sentence for each file that is missing, or not as it was written."""
        return damaged_files(self.folder, manifest)

    def entries(self, name: str, manifest: Manifest, tools: Tools) -> str:
        """Return the table of contents of a dump."""
        return tools.run("pg_restore", ["--list", self.folder / name])

    def added(self, name: str, file: str, manifest: Manifest) -> Iterator[bytes]:
        """Yield a file that lies beside a dump, in pieces."""
        return pieces_of(self.folder / name / file)

    def restore(self, name: str, manifest: Manifest, tools: Tools, arguments: Sequence[str], url: str) -> None:
        """Restore a dump."""
        tools.run("pg_restore", [*arguments, self.folder / name], url)


@contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Hold the folder's lock and yield its descriptor; the kernel releases it when all who have it open have ended.

    Raises:
        BackupError: another backup has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"Another backup into {folder} is under way: wait for it to end.") from None
        yield descriptor
    finally:
        os.close(descriptor)
