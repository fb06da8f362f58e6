"""The transport of the embedded broker: kombu's file system transport with atomic writes and reads.

kombu 5.7 writes a message under its final name. A worker that reads the file at that moment gets half of it,
and ends with the error. Here files appear and are taken by a rename, which is atomic (POSIX rename).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any, cast
from urllib.parse import quote
from uuid import uuid4

from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.json import dumps, loads

_dumps: Callable[[Any], str] = dumps
_loads: Callable[[str], Any] = loads


POLLING_SECONDS = 0.02
"""Seconds between two listings of the folder."""


def folder_url(home: Path) -> str:
    """Returns the URL of the embedded broker in the folder `home`; it needs no further options."""
    return f"folder://localhost/{quote(str(home))}"


def folder_options(home: Path) -> dict[str, str]:
    """Returns the folders of messages and of bindings below `home`, as transport options of kombu."""
    queue, control = str(home / "queue"), str(home / "control")
    return {"data_folder_in": queue, "data_folder_out": queue, "control_folder": control}


class Channel(filesystem.Channel):
    """A channel that keeps messages as files of one folder, named by time and queue as kombu names them."""

    @property
    def transport_options(self) -> dict[str, Any]:
        """The folders of the connection's URL, overridden by its transport options."""
        client = cast(Any, self).connection.client
        url_options = folder_options(Path(client.virtual_host)) if client.virtual_host else {}
        return {**url_options, **client.transport_options}

    def _put(self, queue: str, payload: Any, **_options: Any) -> None:  # type: ignore[override]  # kombu's two differ
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        try:
            _create_atomically(Path(self.data_folder_out, name), _dumps(payload))
        except OSError as error:
            raise ChannelError(f"cannot write message {name}: {error}") from error

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002  # kombu's signature
        folder, suffix = Path(self.data_folder_in), f"{queue}.msg"
        names = os.listdir(folder)  # noqa: PTH208  # many names, listed many times a second
        for name in sorted(name for name in names if name.partition(".")[2] == suffix):
            taken_file = folder / f"{name}.taken"
            try:
                (folder / name).rename(taken_file)
            except FileNotFoundError:  # another worker was first
                continue
            text = taken_file.read_text(encoding="utf-8")
            taken_file.unlink()
            return _loads(text)
        raise Empty

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        table: Path = cast(Any, self)._exchange_file(exchange)
        if not table.exists():
            self.control_folder.mkdir(exist_ok=True)
            _create_atomically(table, "[]", replace=False)
        cast(Any, super())._queue_bind(exchange, routing_key, pattern, queue)


class Transport(filesystem.Transport):
    """The embedded broker: kombu's transport with the channel above."""

    Channel = Channel
    polling_interval = POLLING_SECONDS


def _create_atomically(file: Path, text: str, *, replace: bool = True) -> None:
    """Creates a file with all of its text at once; an existing file stays unless `replace`."""
    part = file.with_name(f"{file.name}.{uuid4()}.part")
    part.write_text(text, encoding="utf-8")
    try:
        part.rename(file) if replace else os.link(part, file)
    except FileExistsError:
        pass
    finally:
        part.unlink(missing_ok=True)
