"""Which addresses and names are this machine's own."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address


def is_loopback(host: str) -> bool:
    """Return whether an address of either kind, such as `127.0.0.1` or `::ffff:127.0.0.1`, is a loopback one."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def names_this_machine(host: str) -> bool:
    """Return whether a host's name or address always means the machine on which it is used."""
    return host.lower() == "localhost" or is_loopback(host)


def host_of(authority: str) -> str:
    """Return the host of an authority such as `[::1]:8000`, which the Host header holds, without brackets and port."""
    if authority.startswith("[") and "]" in authority:
        return authority[1 : authority.index("]")].lower()
    return authority.partition(":")[0].lower()


def local_url(listens_on: str, port: int, prefix: str = "") -> str:
    """Return the address by which programs on this machine reach a server that listens on an address and port."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listens_on, listens_on)  # noqa: S104 - compared, not listened on
    return f"http://[{host}]:{port}{prefix}" if ":" in host else f"http://{host}:{port}{prefix}"
