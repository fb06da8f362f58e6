"""Template: what Celery published for a handler's first message, kept, so that later ones only fill in what differs.

Celery makes it, so routes, annotations and settings hold. A message that differs in more, or that somebody watches or
makes in a way of his own, goes through `Task.apply_async` each time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import celery
from celery import Celery, signals
from celery.app.routes import MapRoute
from kombu.serialization import dumps

from nitro.infrastructure.offload.message import is_signing
from nitro.infrastructure.offload.parcel import Parcel

FILLED_IN = ("root_id", "parent_id", "retries")
"""Options that a template fills in."""
RECKONED = ("countdown", "expires")
"""Options that Celery reckons with the time."""

ENVELOPE = ("type", "hostname", "utcoffset", "pid", "clock", "timestamp")
"""Fields of an event that Celery's dispatcher makes."""

Facts = dict[str, Any]

_OWN_CODE = (str(Path(celery.__file__).parent), str(Path(__file__).parents[2]))
_BY_TASK = ("apply_async", "shadow_name", "_get_exec_options")
_BY_APP = ("send_task", "producer_or_acquire")
_BY_AMQP = ("as_task_v2", "_create_task_sender", "send_task_message", "create_task_message")
_LEAVES_PUBLISHERS_ALONE = ("Backend.on_task_call", "RedisBackend.on_task_call")
"""Of result backends. Redis listens for the result, for as long as the publisher keeps what `apply_async` returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What the messages of a handler have in common.

    Attributes:
        task: what Celery published; another task of that name has a template of its own.
        embed: the last part of each body.
        serializer: of each body.
        headers: of each message.
        how: the other arguments of `Producer.publish`.
        sent: the event that tells monitors of each message, or None.
    """

    task: Any
    embed: Any
    serializer: str
    headers: Facts
    how: Facts
    sent: Facts | None

    @classmethod
    def of(cls, task: Any, published: Sequence[tuple[Any, Facts]], carried: Collection[str]) -> Template | None:
        """The template of what Celery published, a message and perhaps an event, if there can be one.

        Args:
            carried: names of headers that belong to this message only.
        """
        (body, how), *events = published
        headers = {name: value for name, value in how.pop("headers").items() if name not in carried}
        if not isinstance(body, tuple) or headers["eta"] or headers["expires"] or headers["stamped_headers"]:
            return None
        if all(entity.can_cache_declaration for entity in how["declare"] or ()):
            del how["declare"]  # it has been done
        serializer = how.pop("serializer")
        sent = {name: value for name, value in events[0][0].items() if name not in ENVELOPE} if events else None
        return cls(task=task, embed=body[2], serializer=serializer, headers=headers, how=how, sent=sent)

    def publish(self, app: Celery, producer: Any, parcel: Parcel, body: Body) -> None:
        """Publish the message of a parcel, and the event."""
        given, task_id = parcel.options, parcel.task_id
        causes = {"root_id": given.get("root_id") or task_id, "parent_id": given.get("parent_id")}
        facts = {**causes, "retries": given.get("retries", 0)}
        headers = {**self.headers, **facts, **parcel.carried, "id": task_id, "kwargsrepr": body.shown}
        producer.publish(
            body.data,
            content_type=body.content_type,
            content_encoding=body.encoding,
            correlation_id=task_id,
            headers=headers,
            **self.how,
        )
        if self.sent is not None:
            event = {**self.sent, **facts, "uuid": task_id, "kwargs": body.shown}
            app.amqp._event_dispatcher.publish("task-sent", event, producer, retry=False)


class Body(NamedTuple):
    """A serialised body, and what monitoring shows of it."""

    content_type: str
    encoding: str
    data: Any
    shown: str


class Templates:
    """Publishes the parcels of an app through one producer, by their templates where that comes to the same.

    Args:
        how: further options of `Task.apply_async` for all of them.
    """

    def __init__(self, app: Celery, producer: Any, how: Mapping[str, Any]) -> None:
        self._app, self._producer, self._how = app, producer, how
        self._kept: dict[Any, Template | None] = {}
        self._body_of: Any = None
        self._body = Body("", "", None, "")
        self.begin()

    def begin(self) -> None:
        """See who watches and what is set, before some are published."""
        self._watched = is_watched()
        self._signs = is_signing()
        self._sends_events = bool(self._app.conf.task_send_sent_event)

    def publish(self, parcel: Parcel) -> None:
        """Publish one message.

        Raises:
            Exception: what Celery and the transport raise.
        """
        key = None if self._watched else _key(parcel)
        if key is None:
            parcel.publish(self._app, producer=self._producer, **self._how)
            return
        template, task = self._kept.get(key), self._app.tasks.get(parcel.handler)
        if template is not None and template.task is task and (template.sent is not None) is self._sends_events:
            template.publish(self._app, self._producer, parcel, self._serialised(parcel, template))
        else:
            self._kept[key] = self._recorded(parcel, task)

    def _recorded(self, parcel: Parcel, task: Any) -> Template | None:
        """Have Celery publish it; the template of what it has published, unless others have a hand in it."""
        recorder = _Recorder(self._producer)
        parcel.publish(self._app, producer=recorder, **self._how)
        return Template.of(task, recorder.published, parcel.carried) if is_plain(self._app, task) else None

    def _serialised(self, parcel: Parcel, template: Template) -> Body:
        """Made once for all handlers of an emission."""
        body_of = (parcel.message, parcel.tracked, template.serializer, parcel.handler if self._signs else None)
        if body_of != self._body_of:
            serialised = dumps(((), parcel.kwargs, template.embed), template.serializer)  # type: ignore[no-untyped-call]  # of kombu
            self._body_of, self._body = body_of, Body._make((*serialised, str(parcel.message)))
        return self._body


class _Recorder:
    """A producer that keeps what it publishes."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.published: list[tuple[Any, Facts]] = []

    def publish(self, body: Any, *, headers: Facts, **how: Any) -> Any:
        same = {name: value for name, value in how.items() if name != "correlation_id"}
        self.published.append((body, {**same, "headers": {**headers}}))
        return self._producer.publish(body, headers=headers, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def is_watched() -> bool:
    """Whether somebody wants to know of each message."""
    senders = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    return any(signal.receivers for signal in senders)


def is_plain(app: Celery, task: Any) -> bool:
    """Whether nothing but Celery's own code makes the messages of a task, and makes them all alike."""
    if task is None or not all(isinstance(route, MapRoute) for route in app.amqp.router.routes):
        return False
    if not task.ignore_result and type(task.backend).on_task_call.__qualname__ not in _LEAVES_PUBLISHERS_ALONE:
        return False
    makers = ((task, _BY_TASK), (app, _BY_APP), (app.amqp, _BY_AMQP), (app.amqp.router, ("route",)))
    return all(_is_own(found) for owner, names in makers for name in names for found in _all_of(owner, name))


def _all_of(owner: Any, name: str) -> Iterator[Any]:
    """What an object has by that name, and each of its classes."""
    places = (owner, *type(owner).__mro__)
    return (vars(place)[name] for place in places if name in vars(place))


def _is_own(function: Any) -> bool:
    """Whether it is code of Celery or of Nitro, and nothing that somebody has put in its place."""
    function = getattr(function, "func", function)  # of a cached property
    function = getattr(function, "__func__", function)
    return type(function) is FunctionType and function.__code__.co_filename.startswith(_OWN_CODE)


def _key(parcel: Parcel) -> Any:
    """What tells its template from others; None when it must have none."""
    key: list[Any] = [parcel.handler, parcel.promise]
    for name, value in parcel.given.items():
        if name in RECKONED:
            return None
        if name not in FILLED_IN:
            key += (name, tuple(value.items()) if isinstance(value, dict) else value)
    try:
        hash(tuple(key))
    except TypeError:
        return None
    return tuple(key)
