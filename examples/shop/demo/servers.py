"""A mail server and a webhook server on loopback; both keep the messages that they receive."""

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
    """An SMTP server that keeps accepted mails in `mails`."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=_free_port())

    @property
    def address(self) -> str:
        """The address as `host:port`."""
        return f"{self._controller.hostname}:{self._controller.port}"

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802  # aiosmtpd's name
        """Accepts a mail; aiosmtpd calls this for the SMTP command DATA."""
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"

    def __enter__(self) -> MailServer:
        self._controller.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._controller.stop()


class WebhookServer:
    """An HTTP server that keeps the JSON body and the `Idempotency-Key` of each POST in `calls`."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _request_handler(self.calls))

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


def _request_handler(calls: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class RequestHandler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            calls.append({**body, "key": self.headers["Idempotency-Key"]})
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the parent's name
            """Logs nothing: log lines would stand between the lines of the timeline."""

    return RequestHandler


def _free_port() -> int:
    """Returns a free port, because aiosmtpd cannot start with port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
