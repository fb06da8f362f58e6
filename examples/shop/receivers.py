"""Where the shop's mails and webhooks land: two real servers on loopback that keep what they receive."""

from __future__ import annotations

import json
import socket
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any

from aiosmtpd.controller import Controller


class MailServer:
    """An SMTP server; its `mails` are those that it accepted."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=_free_port())

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self._controller.hostname}:{self._controller.port}"

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802  # aiosmtpd's name
        """Accept a mail, the answer to SMTP's command DATA."""
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"

    def __enter__(self) -> MailServer:
        self._controller.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._controller.stop()


class WebhookServer:
    """An HTTP server; its `calls` are the JSON bodies and `Idempotency-Key`s that were posted to it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _keeping(self.calls))

    @property
    def address(self) -> str:
        """The URL to post to."""
        return f"http://127.0.0.1:{self._server.server_port}/orders"

    def __enter__(self) -> WebhookServer:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


def _keeping(calls: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Keep(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            calls.append({**body, "key": self.headers["Idempotency-Key"]})
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the parent's name
            """Stay silent: the timeline is what is printed."""

    return Keep


def _free_port() -> int:
    """A port that was free a moment ago; aiosmtpd cannot be started with port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
