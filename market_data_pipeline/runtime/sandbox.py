"""The sandbox server as a process of its own: started on demand, shared by all processes of a project, and stopped.

`state_dir/sandbox.json` describes the running one: `pid`, `started` (as `process_identity.start_time`), `base_url` and
`parameters`. It exits after `IDLE` without a request.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from market_data_pipeline.domain.errors import ConfigurationError, TransientError
from market_data_pipeline.ingest.source import Vendor, check_source, named_vendor
from market_data_pipeline.priority import give_way, session_gives_way
from market_data_pipeline.process_identity import process_started, start_time
from market_data_pipeline.runtime.log_files import private_logs
from market_data_pipeline.runtime.processes import end_trees
from market_data_pipeline.settings import FETCHING_VARIABLES
from market_data_pipeline.settings.sandbox import HOST, PORT, SANDBOX_KEY, STATUS_PATH, parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from market_data_pipeline.settings import Settings


IDLE: Final = timedelta(minutes=30)  # twice the shortest cadence of a tier
START_WITHIN: Final = timedelta(seconds=60)  # it takes one second; a machine under load may need more
STOP_WITHIN: Final = timedelta(seconds=10)
_ANSWER_SECONDS: Final = 30.0  # it gives way to everything else; one that has ended refuses at once
_POLL: Final = 0.02  # seconds between checks of a starting or stopping process
_started: Final[list[subprocess.Popen[bytes]]] = []  # ours to reap; Python warns when a running one is dropped


def vendor_access(settings: Settings) -> Vendor:
    """Return the vendor's address and the key for it; the sandbox, if that is the vendor, is started on demand.

    Raises:
        ConfigurationError: there is no key for an address on another machine, the database holds bars of another
            source, or the sandbox cannot start.
        DatabaseUnavailableError: the database cannot be reached.
        TransientError: the sandbox did not start in time.
    """
    check_source(settings)
    return Vendor(ensure_sandbox(settings), SANDBOX_KEY) if settings.uses_sandbox else named_vendor(settings)


def ensure_sandbox(settings: Settings) -> str:
    """Return the base URL of a running sandbox with these settings, started now unless there is one.

    One that runs with other settings is stopped first. Any number of processes may call this at once: one starts it.

    Raises:
        ConfigurationError: the settings prevent it from starting, for example a folder without recorded bars.
        TransientError: it did not start in time.
    """
    if url := running_sandbox(settings):
        return url
    with _lock(settings.state_dir):
        if url := running_sandbox(settings):
            return url
        _stop(settings.state_dir)
        return _start(settings.state_dir, _parameters(settings))


def running_sandbox(settings: Settings) -> str | None:
    """Return the base URL of the sandbox that `ensure_sandbox` would not have to start, None if there is none."""
    expected, record = _parameters(settings), _record(settings.state_dir)
    if record is None or record["parameters"] != expected or start_time(record["pid"]) != record["started"]:
        return None
    url: str = record["base_url"]
    status = _status(url)
    return url if status is not None and status.get("parameters") == expected else None


def _parameters(settings: Settings) -> dict[str, Any]:
    return parameters(settings.as_of, settings.plan, settings.calls_per_minute, settings.sandbox_replay)


def sandbox_process(settings: Settings) -> psutil.Process | None:
    """Return the process of the sandbox that `ensure_sandbox` started; None when there is none."""
    record = _record(settings.state_dir)
    return None if record is None else process_started(record["pid"], record["started"])


def stop_sandbox(settings: Settings) -> bool:
    """Stop the sandbox that `ensure_sandbox` started; return False when there was none."""
    return stop_sandbox_in(settings.state_dir)


def stop_sandbox_in(state: Path) -> bool:
    """Stop the sandbox of the project with this state folder; return False when there was none."""
    if not state.is_dir():
        return False
    with _lock(state):
        return _stop(state)


def _start(state: Path, chosen: dict[str, Any]) -> str:
    log = private_logs(state) / "sandbox.log"
    with _listening() as listening, log.open("ab") as output:
        begun = output.tell()
        host, port = listening.getsockname()
        process = subprocess.Popen(  # noqa: S603 - our own module; the settings' values are single arguments
            _command(chosen, listening.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(listening.fileno(),),
            start_new_session=True,  # so that Ctrl-C in the terminal of the command that started it does not end it
            cwd=Path(__file__).resolve().parents[2],
            env={name: value for name, value in os.environ.items() if name not in FETCHING_VARIABLES},
        )
    try:
        give_way(process.pid)
        session_gives_way(process.pid)
        url = f"http://{host}:{port}"
        _wait_until_it_answers(process, url, log, begun)
        record = {"pid": process.pid, "started": start_time(process.pid), "base_url": url, "parameters": chosen}
        draft = _record_file(state).with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        draft.replace(_record_file(state))
    except BaseException:  # Ctrl-C too: nobody would find a server that is not recorded
        process.kill()
        process.wait()
        raise
    _started.append(process)
    return url


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path, begun: int) -> None:
    """Wait for a server that was just started, whose messages are in `log` from the byte `begun` on."""
    deadline = time.monotonic() + START_WITHIN.total_seconds()
    while _status(url) is None:
        if process.poll() is not None:
            lines = log.read_bytes()[begun:].decode(errors="replace").strip().splitlines()
            raise ConfigurationError(lines[-1] if lines else f"The sandbox server ended immediately; see {log}.")
        if time.monotonic() > deadline:
            raise TransientError(f"The sandbox server did not answer within {START_WITHIN}; see {log}.")
        time.sleep(_POLL)


def _command(chosen: dict[str, Any], descriptor: int) -> list[str]:
    options = {
        "--fd": descriptor,
        "--idle-minutes": IDLE.total_seconds() / 60,
        "--plan": chosen["plan"],
        "--calls-per-minute": chosen["calls_per_minute"],
        "--as-of": chosen["as_of"],
        "--replay": chosen["replay"],
    }
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    return [sys.executable, "-m", "market_data_pipeline.sandbox.server", *given]


def _listening() -> socket.socket:
    """Return a listening socket on the usual port, on a free one when that is taken; the server inherits it."""
    try:
        return socket.create_server((HOST, PORT))
    except OSError:
        return socket.create_server((HOST, 0))


def _stop(state: Path) -> bool:
    record = _record(state)
    _record_file(state).unlink(missing_ok=True)
    process = None if record is None else process_started(record["pid"], record["started"])
    if process is None:
        return False
    end_trees([process], STOP_WITHIN.total_seconds())
    _started[:] = [process for process in _started if process.poll() is None]
    return True


def _status(url: str) -> dict[str, Any] | None:
    """Return the status page of the server at `url`, None when there is none; no proxy is used."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", STATUS_PATH)
        status = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return status if isinstance(status, dict) else None


def _record(state: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(_record_file(state).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = {"pid", "started", "base_url", "parameters"}
    return record if isinstance(record, dict) and names <= record.keys() else None


def _record_file(state: Path) -> Path:
    return state / "sandbox.json"


@contextlib.contextmanager
def _lock(state: Path) -> Iterator[None]:
    """Hold the lock under which sandboxes are started and stopped; it is released when the process ends."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state / "sandbox.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
