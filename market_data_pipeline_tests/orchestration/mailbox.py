"""A mail server that keeps what it is sent, as far as Apprise's mailto:// addresses need one."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage


class Mailbox(socketserver.ThreadingTCPServer):
    """Speaks enough SMTP (RFC 5321) to accept messages from anyone to anyone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.received: list[EmailMessage] = []

    def address(self) -> str:
        """Return the Apprise address of this server."""
        host, port = self.server_address[:2]
        return f"mailto://{host!s}:{port}/?mode=insecure&from=pipeline@example.org&to=operator@example.org"


class _Conversation(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self._say("220 ready")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                self._say("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                text = b"".join(line.removeprefix(b".") if line.startswith(b"..") else line for line in lines)
                self.server.received.append(message_from_bytes(text, policy=policy.default))
            self._say("221 bye" if verb == b"QUIT" else "250 done")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """Run a mail server."""
    with Mailbox() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()
