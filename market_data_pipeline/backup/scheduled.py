"""The backup that the settings describe: where it goes, how many stay, and when the next one is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.backup.make import make_backup
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.objectives import BACKUP_WITHIN

if TYPE_CHECKING:
    from market_data_pipeline.backup.make import Made
    from market_data_pipeline.settings import Settings


def scheduled_backup(settings: Settings, *, keep: int | None = None, features: bool = True) -> Made:
    """Make a backup in MARKET_DATA_BACKUP_DIR, perhaps without features; `keep` replaces MARKET_DATA_BACKUPS_KEPT.

    Raises:
        ConfigurationError: MARKET_DATA_BACKUP_DIR is not set; and as `make_backup`.
    """
    if settings.backup_dir is None:
        raise ConfigurationError("MARKET_DATA_BACKUP_DIR is not set: it names the place of backups.")
    kept = keep or settings.backups_kept
    return make_backup(settings, settings.backup_dir, keep=kept, next_within=BACKUP_WITHIN, features=features)
