"""How this process takes memory from the system and gives it back."""

from __future__ import annotations

import ctypes
from typing import Final

# glibc's <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# An answer of 500 records is 300 kB, and is copied several times on its way. A block above the first bound is a fresh
# mapping, whose pages the kernel zeroes: 0.16 ms each time here. Below it one that was freed is used again.
_LARGE_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 8 << 20  # of free memory at an arena's end, for the next answer
_ARENAS: Final = 2


def return_memory() -> None:
    """Give the memory of a large answer back once it is sent, and do not let every thread hoard its own.

    By itself glibc stops to give blocks back of a size that was freed once: 20 MB more here after a minute of answers
    of 300 kB. Where the C library is another one, it is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
