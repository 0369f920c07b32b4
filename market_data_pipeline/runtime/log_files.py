"""Log files of bounded size, although the processes that write them never close them.

A process inherits its log as its output, and appends. So the oldest part of the file is removed under it: Linux can cut
blocks off the beginning of a file (fallocate(2), FALLOC_FL_COLLAPSE_RANGE; ext4, XFS), and nothing that is appended
meanwhile is lost. Elsewhere the newest part is written again after the file was emptied.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

LARGEST: Final = 16 << 20  # bytes: a day of a daemon in trouble; the newest half is kept
_COLLAPSE_RANGE: Final = 0x08  # linux/falloc.h


def private_logs(state: Path) -> Path:
    """Return the folder for logs in a state folder, made or changed so that only its owner can enter it."""
    folder = state / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # the state folder itself may be passed through: a root's PostgreSQL runs as another user
    return folder


def bound_logs(folder: Path, largest: int = LARGEST) -> None:
    """Remove the oldest half of each log in a folder that has grown beyond `largest` bytes."""
    for log in folder.glob("*.log"):
        with suppress(OSError):  # removed meanwhile, or of another user
            if log.stat().st_size > largest:
                _drop_oldest(log, largest // 2)


def _drop_oldest(log: Path, kept: int) -> None:
    with log.open("r+b", buffering=0) as file:
        block = os.fstatvfs(file.fileno()).f_bsize
        dropped = (os.fstat(file.fileno()).st_size - kept) // block * block
        if dropped <= 0 or _collapse(file.fileno(), dropped):
            return
        file.seek(dropped)
        newest = file.read()
        file.truncate(0)
    with log.open("ab") as file:
        file.write(newest)


def _collapse(descriptor: int, length: int) -> bool:
    """Cut `length` bytes, whole blocks, off the beginning of a file; return False where that is not possible."""
    fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
    if fallocate is None:
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(descriptor, _COLLAPSE_RANGE, 0, length) == 0)
