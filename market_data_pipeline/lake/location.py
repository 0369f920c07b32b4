"""Where the lake is: a folder or an object store, opened by delta-rs.

Keep out: what is in the tables.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import ConfigurationError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

    from market_data_pipeline.settings import Settings

INSTALL: Final = "run `pip install 'market-data-pipeline[lake]'`, or `make install` in a checkout"


class LakeConflictError(TransientError):
    """Another process has written the table meanwhile."""


@dataclass(frozen=True, slots=True)
class Lake:
    """A folder of Delta tables.

    Attributes:
        url: a path, or the URL of an object store, without a slash at the end.
        options: delta-rs' storage options, which may hold secrets.
    """

    url: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Lake:
        """Return the project's lake."""
        options = settings.lake_options
        return cls(settings.lake_url.rstrip("/"), options.get_secret_value() if options else {})

    @property
    def local(self) -> Path | None:
        """The folder, if it is one of this machine."""
        if self.url.startswith("file:///"):
            return Path(self.url.removeprefix("file://"))
        return None if "://" in self.url else Path(self.url)

    def table_url(self, name: str) -> str:
        """Return the path or URL of a table."""
        return f"{self.url}/{name}"

    def open(self, name: str) -> DeltaTable | None:
        """Return a table as it is now, None if it does not exist.

        Raises:
            ConfigurationError: the place cannot be used.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        with self.translated():
            try:
                return DeltaTable(self.table_url(name), storage_options=dict(self.options) or None)
            except TableNotFoundError:
                return None

    def filesystem(self, table: DeltaTable) -> FileSystem:
        """Return the file system of a table's files; paths are relative to the table."""
        import pyarrow.fs as pa_fs

        if self.local is not None:
            name = table.table_uri.rstrip("/").rpartition("/")[2]
            return pa_fs.SubTreeFileSystem(str(self.local.absolute() / name), pa_fs.LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return pa_fs.PyFileSystem(DeltaStorageHandler(table.table_uri, dict(self.options) or None))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what delta-rs raises into our errors; its messages name the place, and no option's value."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        try:
            yield
        except CommitFailedError as error:
            raise LakeConflictError(
                f"Another process has written the lake at {self.url} meanwhile ({_line(error)}); the next sync goes on."
            ) from error
        except (DeltaError, OSError) as error:
            raise ConfigurationError(
                f"The lake at {self.url} cannot be used ({_line(error)}); MARKET_DATA_LAKE_URL names the place, and "
                "MARKET_DATA_LAKE_OPTIONS holds its options."
            ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
