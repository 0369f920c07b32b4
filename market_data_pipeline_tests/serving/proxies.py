"""Real reverse proxies, Debian's nginx and Caddy, in front of servers that a test runs.

Where one is not installed, its tests are skipped with that reason.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from market_data_pipeline_tests.serving.waiting import wait_until

_PROGRAMS = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
# What a packaged nginx has in folders that only root may write to.
_NGINX = """
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{http}
}}
"""


@contextmanager
def nginx(folder: Path, http: str, port: int) -> Iterator[None]:
    """Run nginx with `http`, the inside of its http block, until the end of the block; it listens on `port`."""
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, http=http))
    command = [program("nginx"), "-p", str(folder), "-c", str(configuration), "-g", "daemon off;"]
    with _running(command, folder, port):
        yield


@contextmanager
def caddy(folder: Path, caddyfile: str, port: int) -> Iterator[None]:
    """Run Caddy with a Caddyfile until the end of the block; it listens on `port`."""
    configuration = folder / "Caddyfile"
    configuration.write_text("{\n  admin off\n  auto_https disable_redirects\n}\n" + caddyfile)
    command = [program("caddy"), "run", "--config", str(configuration), "--adapter", "caddyfile"]
    with _running(command, folder, port):
        yield


def program(name: str) -> str:
    """Return the path of a proxy; skip the test where there is none."""
    found = shutil.which(name, path=_PROGRAMS)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian, Ubuntu: apt install {name})")
    return found


@contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    environment = {"PATH": _PROGRAMS, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    log = folder / "proxy.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
