"""The commands that make, restore and verify backups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli.console import AsJson, instant, print_json, settings
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.runtime.console import console

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

app = typer.Typer()

_MB = 1_000_000
_Existing = Annotated[
    str,
    typer.Argument(
        metavar="[DIR|URL]",
        help="A backup, or a place of backups, of which the newest is meant.",
        show_default=False,
    ),
]


@app.command(epilog="Example: market-data backup /srv/backups --keep 7")
def backup(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="[DIR|URL]",
            help="Where backups lie side by side: a folder, or an object store such as s3://bucket/folder; "
            "MARKET_DATA_BACKUP_DIR if omitted.",
            show_default=False,
        ),
    ] = "",
    keep: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Remove older backups there until so many are left. All stay if omitted; in MARKET_DATA_BACKUP_DIR, "
            "MARKET_DATA_BACKUPS_KEPT do.",
            show_default=False,
        ),
    ] = None,
    without_features: Annotated[
        bool,
        typer.Option(
            "--without-features",
            help="Leave the features out: the first refresh after a restore computes them again from the bars.",
        ),
    ] = False,
) -> None:
    """Back up the market data and Dagster's storage, while everything runs.

    The backup is a folder there, named by its instant, that appears once
    it is whole. It has no secrets of the settings, but all that is stored.
    Credentials of an object store: MARKET_DATA_BACKUP_OPTIONS.
    """
    from market_data_pipeline.backup.make import make_backup
    from market_data_pipeline.backup.scheduled import scheduled_backup
    from market_data_pipeline.runtime.database import ensure_server

    given, config = _place(folder), settings()
    ensure_server(config)
    if given is None and config.backup_dir is None:
        raise UsageError("Name a place for the backup, or set MARKET_DATA_BACKUP_DIR.")
    features = not without_features
    if given is None:
        made = scheduled_backup(config, keep=keep, features=features)
    else:
        made = make_backup(config, given, keep=keep, features=features)
    manifest = made.manifest
    console().print(
        f"Wrote {made.backup} ({manifest.size / _MB:.1f} MB) as of {instant(manifest.taken_at)}", markup=False
    )
    if manifest.dagster is None:
        console().print("Dagster's storage has no tables yet and is not in it.")
    for name in made.removed:
        console().print(f"Removed the older {name}", markup=False)


@app.command(epilog="Example: market-data restore /srv/backups")
def restore(folder: _Existing = "") -> None:
    """Restore a backup, or the newest one of a place, into empty databases.

    Each database is restored in one transaction and compared with the
    backup. Nothing is ever overwritten: a database that holds anything
    else is refused. Run it again if it was interrupted.
    """
    from market_data_pipeline.backup.restore import restore_backup
    from market_data_pipeline.runtime.database import ensure_server
    from market_data_pipeline.runtime.move_progress import shown_move

    config = settings()
    where = _named(folder, config)
    ensure_server(config)
    with shown_move() as on_move:
        done = restore_backup(config, where, lambda line: console().print(line, markup=False), on_move)
    for name in done.migrated:
        console().print(f"applied {name}", markup=False)
    console().print(
        f"Restored and compared: everything is as of {instant(done.manifest.taken_at)}. `market-data up` goes on from "
        "there and fetches what is missing since.",
        markup=False,
    )


@app.command(epilog="Example: market-data verify /srv/backups --files-only")
def verify(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="[DIR|URL]",
            help="Compare with this backup, or the newest in this place: its files, and each table, series and month.",
            show_default=False,
        ),
    ] = "",
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Only whether the backup's files are undamaged; needs no database.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify what is stored: the audit log, the rules of quality and perhaps that it equals a backup.

    It exits with 1 if something is wrong. What was stored after a backup
    differs from it: compare right after a restore.
    """
    from market_data_pipeline.backup.verify import verify as verification
    from market_data_pipeline.runtime.database import ensure_server

    config = settings()
    where = _named(folder, config) if folder or files_only else None
    if not files_only:
        ensure_server(config)
    found = verification(config, where, files_only=files_only)
    if as_json:
        print_json(found)
    else:
        for sentence in found.warnings:
            console().print(f"warning: {sentence}", markup=False)
        for sentence in found.problems:
            console().print(sentence, markup=False)
        looked = [f"{found.files} files and {found.rows} rows compared with {found.backup}"] if found.backup else []
        looked += [f"{found.rules} rules and the audit log"] if found.rules else []
        console().print(f"{len(found.problems)} problems in {'; '.join(looked)}.", markup=False)
    if found.problems:
        raise typer.Exit(1)


def _place(given: str) -> Path | str | None:
    from market_data_pipeline.settings.parsers import backup_place

    if not given:
        return None
    try:
        place = backup_place(given)
        return place.absolute() if isinstance(place, Path) else place
    except ValueError as error:
        raise UsageError(f"The place {error}.") from None


def _named(given: str, config: Settings) -> Path | str:
    where = _place(given) or config.backup_dir
    if where is None:
        raise UsageError("Name a backup, or set MARKET_DATA_BACKUP_DIR.")
    return where
