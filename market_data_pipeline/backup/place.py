"""Where backups are: a folder, or an object store by its URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from market_data_pipeline.backup.folder import FolderBackup, FolderWriter
from market_data_pipeline.backup.manifest import find_backup
from market_data_pipeline.backup.object_store import Bucket, BucketWriter, StoredBackup, find_stored

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from market_data_pipeline.settings import Settings

Place: TypeAlias = Path | str  # a URL when it is text
Backup: TypeAlias = FolderBackup | StoredBackup
Writer: TypeAlias = FolderWriter | BucketWriter


def backup_at(place: Place, settings: Settings) -> Backup:
    """Return the backup that a place names, or else the newest one in it.

    Raises:
        BackupError: there is none.
    """
    return find_stored(place, settings) if isinstance(place, str) else FolderBackup(find_backup(place))


def writer_at(place: Place, settings: Settings) -> AbstractContextManager[FolderWriter | BucketWriter]:
    """Return what writes a backup into a place; it removes what it wrote unless it finishes."""
    if isinstance(place, str):
        return BucketWriter.at(Bucket.at(place, settings.backup_store_options))
    return FolderWriter.at(place)
