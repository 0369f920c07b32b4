"""Whose program is at the other end of a connection from this machine, as Linux knows it.

Nothing that a client sends can change it: the kernel notes for every socket which user opened it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Address

_SOCKETS: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))  # proc(5)
_OWN, _PEERS, _UID = 1, 2, 7  # columns


def user_of_peer(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """Return the id of the user whose program opened the connection from `client` to `server`.

    None where that is not known: on other systems, and for a connection that is no longer open.
    """
    # In the client's own entry the two ends are the other way round than in the server's.
    ports = f":{client[1]:04X}", f":{server[1]:04X}"
    ends = _plain(client[0]), _plain(server[0])
    for table in _SOCKETS:
        with suppress(OSError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                columns = line.split()
                own, peers = columns[_OWN], columns[_PEERS]
                if (own[-5:], peers[-5:]) == ports and (_address(own), _address(peers)) == ends:
                    return int(columns[_UID])
    return None


def _address(column: str) -> IPv4Address | IPv6Address:
    """Return the address of an entry: hexadecimal words of four bytes, each in the machine's byte order."""
    raw = bytes.fromhex(column.partition(":")[0])
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return _mapped(ip_address(raw))


def _plain(text: str) -> IPv4Address | IPv6Address | None:
    with suppress(ValueError):
        return _mapped(ip_address(text))
    return None


def _mapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
