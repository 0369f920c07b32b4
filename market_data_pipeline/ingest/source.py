"""Where bars come from, and the refusal of another source than the one whose bars a database holds.

It is refused before anything is requested; the database itself checks each transaction too (`sql/0024_source.sql`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.polygon.flat_files import FileAccess, FlatFiles
from market_data_pipeline.polygon.staged_days import StagedDays
from market_data_pipeline.settings import FLAT_FILES_URL, MASSIVE_URL, VENDOR_URL, project
from market_data_pipeline.settings.addresses import names_this_machine
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline.store.connection import describe
from market_data_pipeline.store.source import Source, adopt_source, held_source

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.source import Held

_OTHER_DATABASE: Final = (
    "name another database, for example DATABASE_URL=postgresql://user:password@localhost:5432/other"
)


@dataclass(frozen=True, slots=True)
class Vendor:
    """Where the vendor answers, and the key that it accepts."""

    base_url: str
    key: str = field(repr=False)


def named_vendor(settings: Settings) -> Vendor:
    """Return the vendor that the settings name; runtime.sandbox is what starts a sandbox when they name none.

    Raises:
        ConfigurationError: they name none, or one on another machine without a key.
    """
    base_url = settings.base_url
    if base_url and settings.api_key:
        return Vendor(base_url, settings.api_key.get_secret_value())
    if base_url and names_this_machine(urlsplit(base_url).hostname or ""):
        return Vendor(base_url, SANDBOX_KEY)  # a sandbox that the user started
    named = f"POLYGON_BASE_URL names {base_url}" if base_url else "no sandbox is started here"
    raise ConfigurationError(
        f"POLYGON_API_KEY is not set, and {named}: set the key, "
        "for example POLYGON_API_KEY=your-key, or remove POLYGON_BASE_URL to use the sandbox."
    )


def file_access(settings: Settings, vendor: Vendor) -> FileAccess | None:
    """Return where the flat files of `vendor` are, and the key for them; None when the settings name none.

    Raises:
        ConfigurationError: they name files of another source than the bars.
    """
    if settings.kind_of_bars != "vendor":
        if settings.flat_files_url is not None and not names_this_machine(
            urlsplit(settings.flat_files_url).hostname or ""
        ):
            raise ConfigurationError(
                "MARKET_DATA_FLAT_FILES_URL is set, but bars come from the sandbox, which has files of its own: set "
                "POLYGON_API_KEY too, or remove MARKET_DATA_FLAT_FILES_URL."
            )
        key = SecretStr(SANDBOX_KEY)
        return FileAccess(settings.flat_files_url or vendor.base_url, key, key)
    key_id, secret = settings.flat_files_key_id, settings.flat_files_secret
    if settings.flat_files_url is None and key_id is None and secret is None:
        return None
    if (key_id is None) != (secret is None):
        missing = "MARKET_DATA_FLAT_FILES_SECRET" if secret is None else "MARKET_DATA_FLAT_FILES_KEY_ID"
        raise ConfigurationError(f"{missing} is not set: the flat files' access key has two parts, and one is given.")
    return FileAccess(settings.flat_files_url or FLAT_FILES_URL, key_id, secret)


def no_files() -> ConfigurationError:
    """Return the error of settings that name no flat files although they are to be read."""
    return ConfigurationError(
        "The settings name no flat files: set MARKET_DATA_FLAT_FILES_KEY_ID and MARKET_DATA_FLAT_FILES_SECRET to the "
        "access key for the vendor's S3, which is not the API key, for example "
        "MARKET_DATA_FLAT_FILES_KEY_ID=your-key-id; or backfill with --source rest."
    )


def staged_days(settings: Settings, vendor: Vendor) -> StagedDays:
    """Return this machine's copies of the flat files of `vendor`.

    Raises:
        ConfigurationError: the settings name no flat files, or what they name cannot be used.
    """
    access = file_access(settings, vendor)
    if access is None:
        raise no_files()
    return StagedDays(settings.state_dir / "flat_files", FlatFiles(access))


def source_of(settings: Settings) -> Source:
    """Return the source that the settings name."""
    host = urlsplit(settings.base_url or "").hostname if settings.kind_of_bars == "vendor" else None
    if host == urlsplit(MASSIVE_URL).hostname:
        host = urlsplit(VENDOR_URL).hostname  # two names of one vendor
    return Source(settings.kind_of_bars, host, settings.plan)


def check_source(settings: Settings) -> Source:
    """Return the source that the settings name; call this before fetching from it, or starting a sandbox.

    The bars of a database that was filled before sources were recorded are taken for a vendor's on a server of the
    user's own, and on the embedded one for what the database's name says.

    Raises:
        ConfigurationError: the database holds bars of another source, or bars of which nothing is known while the
            settings name none of a vendor.
        DatabaseUnavailableError: the database cannot be reached.
    """
    wanted = source_of(settings)
    held = held_source(settings.database_url)
    if held.source is None and held.has_bars:
        if wanted.kind != "vendor" and not settings.embedded_database:
            raise ConfigurationError(
                f"{describe(settings.database_url)} holds bars whose source an earlier version did not record, and the "
                f"settings name {wanted}: if that is what they are, run `{wanted.statement}` there; if not, "
                f"{_how(wanted, wanted)}."
            )
        adopt_source(settings.database_url, wanted)
    _refuse_other(held, wanted, settings.database_url)
    if settings.embedded_database and settings.uses_sandbox and wanted.kind == "sandbox":
        # A key that is missing today must not turn a project with a vendor's bars into one with made-up ones.
        vendors = project.local_url(settings.state_dir, project.DATABASE)
        _refuse_other(held_source(vendors), wanted, vendors)
    return wanted


def _refuse_other(held: Held, wanted: Source, url: str) -> None:
    source = held.source
    if source is not None and (source.kind, source.host) != (wanted.kind, wanted.host):
        since = f" since {held.since:%Y-%m-%d}" if held.since else ""
        raise ConfigurationError(
            f"{describe(url)} holds {source}{since}, and the settings name {wanted}: {_how(source, wanted)}. "
            "Nothing was fetched."
        )


def _how(held: Source, wanted: Source) -> str:
    if wanted.kind == "sandbox":
        return f"set POLYGON_API_KEY (or MASSIVE_API_KEY), or {_OTHER_DATABASE}"
    if wanted.kind == held.kind == "vendor":
        return f"correct POLYGON_BASE_URL, or {_OTHER_DATABASE}"
    return _OTHER_DATABASE
