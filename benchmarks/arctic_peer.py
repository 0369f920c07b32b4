"""ArcticDB beside our readers: the same bars in its LMDB store, read into frames of pandas by a process of its own.

It needs pandas 2, so it has an environment of its own. Its licence is the Business Source License 1.1, which
restricts its use in production.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from benchmarks.peer_environment import environment
from benchmarks.place import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

REQUIRED: Final = ("arcticdb==6.28.2", "pandas<3", "pyarrow")


class ArcticReader:
    """The running process, which holds the bars of a Parquet file."""

    def __init__(self, process: subprocess.Popen[str], rows: int) -> None:
        self._process, self._rows = process, rows
        self._answer()

    def seconds(self, symbols: Sequence[str]) -> float:
        """Read symbols once and return the processor seconds."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        print(json.dumps(list(symbols)), file=self._process.stdin, flush=True)
        answer = self._answer()
        if len(symbols) > 1 and answer["rows"] != self._rows:
            raise AssertionError("not the same rows")
        return float(answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def arctic_reader(file: Path, folder: Path, rows: int) -> Iterator[ArcticReader]:
    """Lend a reader of the bars in a Parquet file, which has `rows` rows; its store is in `folder`."""
    python = environment("arcticdb", REQUIRED)
    script = REPOSITORY / "benchmarks" / "peer_scripts" / "arctic.py"
    command = [str(python), str(script), str(file), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield ArcticReader(process, rows)
        finally:
            process.terminate()
