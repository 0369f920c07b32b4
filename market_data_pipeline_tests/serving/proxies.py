"""Real reverse proxies, Debian's nginx and Caddy, in front of servers that a test runs.

Where one is not installed, its tests are skipped with that reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from market_data_pipeline_tests.waiting import PATIENCE, is_open, until

RECIPES = Path(__file__).parents[2] / "docs" / "proxies.md"
_PROGRAMS = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
# Of the least cost: the usual one takes a processor for a second, for each password.
_HASH_OF_SECRET = "$2b$04$Yl7fJ2mQeWc8oT5rNzXvKuosvRPEuf06UD7k8LzlUl.8xp2/6bBSC"
# What a packaged nginx has in folders that only root may write to. Its workers are the user who runs the tests, unless
# a test names another: that one may not enter the folder, so no answer may be too large for the workers' memory.
_NGINX = """
{user}
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
def nginx(folder: Path, http: str, port: int, user: str = "root") -> Iterator[None]:
    """Run nginx with `http`, the inside of its http block, until the end of the block; it listens on `port`.

    Its workers run as `user` where root runs the tests.
    """
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(user=f"user {user};" if os.getuid() == 0 else "", folder=folder, http=http))
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
        until(lambda: process.poll() is not None or is_open(port))
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


@dataclass(frozen=True)
class Recipes:
    """The proxies' configurations of `docs/proxies.md`, for this machine."""

    nginx: str
    caddy: str


def documented(folder: Path, *, listens_on: int, ui: int, api: int) -> Recipes:
    """Return the documented configurations with ports, a certificate and a password (operator, secret) of the test."""
    text = RECIPES.read_text()
    certificate, key = _certificate(folder)
    password = subprocess.run([program("openssl"), "passwd", "-apr1", "secret"], capture_output=True, text=True).stdout
    (folder / "htpasswd").write_text(f"operator:{password}")
    common = {"127.0.0.1:8000": f"127.0.0.1:{api}", "127.0.0.1:3000": f"127.0.0.1:{ui}"}
    for_nginx = {
        "listen 443 ssl;": f"listen 127.0.0.1:{listens_on} ssl;",
        "server_name example.org;": "server_name localhost;",
        "/etc/ssl/certs/example.org.pem": str(certificate),
        "/etc/ssl/private/example.org.key": str(key),
        "/etc/nginx/dagster.htpasswd": str(folder / "htpasswd"),
    }
    for_caddy = {
        "example.org {\n": f"https://localhost:{listens_on} {{\n  tls {certificate} {key}\n",
        "$2a$14$replace-this-with-the-hash-of-a-password": _HASH_OF_SECRET,
    }
    return Recipes(
        _replaced(_block(text, "nginx"), {**common, **for_nginx}),
        _replaced(_block(text, "caddyfile"), {**common, **for_caddy}),
    )


def _block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def _replaced(text: str, values: dict[str, str]) -> str:
    for old, new in values.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        program("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key
