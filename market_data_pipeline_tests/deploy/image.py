"""A container without an engine: the steps of a Containerfile, and processes in what they leave, in namespaces.

The steps run as they are written, at the paths that they name, in a mount namespace in which those folders are empty
ones of the test's own and the base image's Python is this one. Everything else of the machine can be seen there, and is
read-only once the image is built. Processes of a container run in a network of their own, where the names of
the services lead to this machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from market_data_pipeline_tests.conftest import REPOSITORY

# Of the base image. This Python may look for its library where it was installed: a folder that others cannot enter.
_BASE: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": "/usr/local/lib"}
_STOP_SECONDS: Final = 120  # until an engine kills a container, as compose.yaml says
_OWN: Final = ("/opt", "/srv")  # what an image may write to; what the machine has there stays visible


class Step(NamedTuple):
    """An instruction of a Containerfile and the rest of its line."""

    instruction: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments of one in exec form, a JSON list; else the words."""
        return [str(each) for each in json.loads(self.text)] if self.text[:1] == "[" else shlex.split(self.text)


def steps(containerfile: Path) -> list[Step]:
    """Return the instructions of a Containerfile."""
    lines = [line for line in containerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


@dataclass
class Image:
    """The image that a Containerfile describes, below `root`, once `build` has run."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: int = 0
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def __enter__(self) -> Image:
        for own in _OWN:
            folder = self.root / own[1:]
            for each in Path(own).iterdir():
                (folder / each.name).mkdir(parents=True)
            folder.mkdir(parents=True, exist_ok=True)
        binds = [f"mount --bind {each} {self.root}{each}" for own in _OWN for each in sorted(Path(own).iterdir())] + [
            f"mount --bind {self.root}{own} {own}" for own in _OWN
        ]
        prefix = shlex.quote(sys.base_prefix)
        script = "\n".join(["set -e", *binds, f"mount --bind {prefix} /usr/local", "echo ready", "exec sleep infinity"])
        self._holder = _held(["unshare", "--mount", "--propagation", "private", "sh", "-c", script])
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait()

    def build(self, containerfile: Path, **arguments: str) -> None:
        """Carry out every step; a failing one raises with what it printed."""
        values, stages = dict(arguments), 0
        for step in steps(containerfile):
            match step.instruction:
                case "FROM":
                    stages += 1
                    self.environment, self.folder = dict(_BASE), "/"
                case "ARG":
                    name, _, default = step.text.partition("=")
                    values.setdefault(name, default)
                case "ENV":
                    self.environment |= dict(word.split("=", 1) for word in step.words)
                case "WORKDIR":
                    self.folder = step.text
                    self._run("mkdir", "-p", step.text, folder="/")
                case "COPY":
                    self._copy([re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], word) for word in step.words])
                case "RUN":
                    self._run("sh", "-c", step.text)
                case "USER":
                    self.user = int(step.text.partition(":")[0])
                case "ENTRYPOINT":
                    self.entrypoint = step.words
                case "CMD":
                    self.command = step.words
                case "LABEL" | "EXPOSE" | "HEALTHCHECK":
                    pass
                case other:
                    raise AssertionError(f"the test does not know {other}")
        assert stages == 2

    def _copy(self, words: list[str]) -> None:
        *sources, target = words
        if sources[0].startswith("--from="):  # all stages share one root
            assert sources[1:] == [target]
            return
        into = self.root / f"{target if target[0] == '/' else f'{self.folder}/{target}'}".lstrip("/")
        for source in sources:
            found = REPOSITORY / source
            if found.is_dir():
                shutil.copytree(found, into, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (into if target.endswith("/") else into.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, into / found.name if target.endswith("/") else into)

    def _run(self, *command: str, folder: str = "") -> None:
        inside = ["nsenter", f"--target={self._holder.pid}", "--mount", "env", "-C", folder or self.folder, *command]
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            inside, env={**outside, **self.environment}, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])

    def host(self, names: list[str], secrets: Path) -> Host:
        """Return a network of its own in which `names` are this machine, with secrets where containers find them."""
        hosts = self.root / "hosts"
        hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *names)))
        script = "\n".join(
            [
                "set -e",
                "ip link set lo up",
                f"mount --bind {hosts} /etc/hosts",
                "mount -t tmpfs none /run",
                "mkdir /run/secrets",
                # Each by itself, as engines do: the folder itself keeps others out.
                f"for each in {secrets}/*; do to=/run/secrets/${{each##*/}}; touch $to; mount --bind $each $to; done",
                "mount --bind /srv/market-data/.market-data /srv/market-data/.market-data",
                "for each in / /opt /srv; do mount -o remount,ro,bind $each; done",
                "mount -t tmpfs -o mode=1777 none /tmp",
                "echo ready",
                "exec sleep infinity",
            ]
        )
        inside = ["nsenter", f"--target={self._holder.pid}", "--mount"]
        return Host(
            self, _held([*inside, "unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script])
        )


@dataclass
class Host:
    """Where containers of an image run."""

    image: Image
    _holder: subprocess.Popen[bytes]
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        for each in reversed(self._started):
            each.terminate()
            try:
                each.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
        self._holder.kill()
        self._holder.wait()

    def start(self, service: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
        """Start a service's container; what it prints is in `log`."""
        return self.process([*self.image.entrypoint, *service["command"]], service["environment"], log)

    def process(
        self, command: list[str], environment: dict[str, str], log: Path, *, user: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process that is no container of the image."""
        with log.open("wb") as output:
            child = subprocess.Popen(
                self._inside(command, environment, user),
                env={}, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started.append(child)
        return child

    def run(
        self, command: list[str], environment: dict[str, str], *, user: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as `exec` does in a container of this environment."""
        return subprocess.run(
            self._inside(command, environment, user), env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def _inside(self, command: list[str], environment: dict[str, str], user: int | None) -> list[str]:
        image = self.image
        number = image.user if user is None else user
        variables = [f"{name}={value}" for name, value in {**image.environment, **environment}.items()]
        enter = ["/usr/bin/nsenter", f"--target={self._holder.pid}", "--mount", "--net"]
        become = ["/usr/bin/setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups"]
        limits = ["--no-new-privs", "--bounding-set=-all"]
        return [*enter, *become, *limits, "/usr/bin/env", "-i", "-C", image.folder, *variables, *command]


def _held(command: list[str]) -> subprocess.Popen[bytes]:
    """Start what holds a namespace and wait until it is set up."""
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    return holder


def interpolated(text: str, variables: dict[str, str]) -> str:
    """Return the text of a compose file with `${NAME:-default}` replaced."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1], found[2]), text)


def names_in(text: str) -> Iterator[str]:
    """Yield the names that a compose file lets the caller set."""
    yield from re.findall(r"\$\{(\w+)", text)
