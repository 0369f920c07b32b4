"""What the machine's network requires of every client in this package: its proxy, and its own certificate authority.

Each library reads these variables in its own way, so each command prepares them once, for itself and for the processes
that it starts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_THIS_MACHINE: Final = ("127.0.0.1", "localhost", "::1")
# gRPC prefers a variable of its own, where it is set.
_WITHOUT_PROXY: Final = ("no_proxy", "NO_PROXY")
_GRPC_WITHOUT_PROXY: Final = "no_grpc_proxy"
# The first that is set names the authorities; `requests` knows the first two, OpenSSL and what uses it the third.
_AUTHORITIES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def prepare_network(variables: MutableMapping[str, str] = os.environ) -> None:
    """Keep requests to this machine away from proxies, and let all libraries trust the same authorities.

    Raises:
        ConfigurationError: a variable names a file of authorities that does not exist.
    """
    listed = next((variables[name] for name in _WITHOUT_PROXY if variables.get(name)), "")
    for name in _WITHOUT_PROXY:
        variables[name] = _with_this_machine(variables.get(name) or listed)
    if variables.get(_GRPC_WITHOUT_PROXY):
        variables[_GRPC_WITHOUT_PROXY] = _with_this_machine(variables[_GRPC_WITHOUT_PROXY])
    if authorities := certificate_authorities(variables):
        for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            if not variables.get(name) and Path(authorities).is_file():
                variables[name] = authorities


def _with_this_machine(listed: str) -> str:
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    return ",".join([*hosts, *(host for host in _THIS_MACHINE if host not in hosts)]) if hosts != ["*"] else "*"


def certificate_authorities(variables: MutableMapping[str, str] = os.environ) -> str | None:
    """Return the file or folder of authorities that the environment names, None for those that come with `requests`.

    Raises:
        ConfigurationError: there is no such file or folder.
    """
    for name in _AUTHORITIES:
        if path := variables.get(name, "").strip():
            if not Path(path).exists():
                raise ConfigurationError(
                    f"{name} is {path!r}, and there is no such file or folder of certificate authorities; for example "
                    f"{name}=/etc/ssl/certs/ca-certificates.crt."
                )
            return path
    return None
