"""Folder: kombu's file system transport, with whole messages only and one reader for each.

kombu 5.7 writes a message under its final name, where a worker that looks at that moment reads half of
it and ends with the error. Here files appear and are taken by renaming, which is atomic (POSIX rename).
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
"""Seconds between two looks into the folder."""


def folder_url(home: Path) -> str:
    """The URL of the embedded broker under that folder, which says all that there is to say of it."""
    return f"folder://localhost/{quote(str(home))}"


def folder_options(home: Path) -> dict[str, str]:
    """The folders of messages and of bindings under that folder, as transport options of kombu."""
    queue, control = str(home / "queue"), str(home / "control")
    return {"data_folder_in": queue, "data_folder_out": queue, "control_folder": control}


class Channel(filesystem.Channel):
    """Messages as files of one folder, named by time and queue, as kombu names them."""

    @property
    def transport_options(self) -> dict[str, Any]:
        """Those of the connection over the folders that its URL means."""
        client = cast(Any, self).connection.client
        of_url = folder_options(Path(client.virtual_host)) if client.virtual_host else {}
        return {**of_url, **client.transport_options}

    def _put(self, queue: str, payload: Any, **_options: Any) -> None:  # type: ignore[override]  # kombu's two differ
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        try:
            _create_atomically(Path(self.data_folder_out, name), _dumps(payload))
        except OSError as error:
            raise ChannelError(f"cannot write message {name}: {error}") from error

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002  # kombu's signature
        folder, ending = Path(self.data_folder_in), f"{queue}.msg"
        names = os.listdir(folder)  # noqa: PTH208  # many names, looked at many times a second
        for name in sorted(name for name in names if name.partition(".")[2] == ending):
            taken = folder / f"{name}.taken"
            try:
                (folder / name).rename(taken)
            except FileNotFoundError:  # another worker was first
                continue
            text = taken.read_text(encoding="utf-8")
            taken.unlink()
            return _loads(text)
        raise Empty

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        table: Path = cast(Any, self)._exchange_file(exchange)
        if not table.exists():
            self.control_folder.mkdir(exist_ok=True)
            _create_atomically(table, "[]", replace=False)
        cast(Any, super())._queue_bind(exchange, routing_key, pattern, queue)


class Transport(filesystem.Transport):
    """The embedded broker: kombu's transport with this channel."""

    Channel = Channel
    polling_interval = POLLING_SECONDS


def _create_atomically(file: Path, text: str, *, replace: bool = True) -> None:
    """Have a file appear with all of its text at once; one that is there already stays unless `replace`."""
    part = file.with_name(f"{file.name}.{uuid4()}.part")
    part.write_text(text, encoding="utf-8")
    try:
        part.rename(file) if replace else os.link(part, file)
    except FileExistsError:
        pass
    finally:
        part.unlink(missing_ok=True)
