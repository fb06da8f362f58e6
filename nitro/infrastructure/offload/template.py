"""Template: what Celery published for a handler's first message, kept, so that later ones only fill in what differs.

Celery makes it, so routes, annotations and settings hold. A message that differs in more, or that somebody watches or
makes in a way of his own, goes through `Task.apply_async` each time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from celery import Celery
from kombu.serialization import dumps, registry
from kombu.utils.json import dumps as kombus_json

from nitro.infrastructure.offload.codec import quick_json
from nitro.infrastructure.offload.conf import setting
from nitro.infrastructure.offload.destinations import reached
from nitro.infrastructure.offload.message import is_signing
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.offload.plain import is_plain, is_watched
from nitro.infrastructure.offload.straight import Gathering, Way, reaching, straight

FILLED_IN = ("root_id", "parent_id", "retries")
"""Options that a template fills in."""
RECKONED = ("countdown", "expires")
"""Options that Celery reckons with the time."""

OWN = ("correlation_id", "argsrepr", "kwargsrepr")
"""Properties of one message only; the last two Celery leaves there too, beside the headers where they are read."""

OWN_HEADERS = ("id", "root_id", "parent_id", "retries", "kwargsrepr")
"""Headers that are filled in."""

ENVELOPE = ("type", "hostname", "utcoffset", "pid", "clock", "timestamp")
"""Fields of an event that Celery's dispatcher makes."""

Facts = dict[str, Any]


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
        straight: their way into the queue where kombu need not be asked for it, or None.
        queues: the queues that they go to.
    """

    task: Any
    embed: Any
    serializer: str
    headers: Facts
    how: Facts
    sent: Facts | None
    straight: Way | None
    queues: tuple[str, ...]

    @classmethod
    def of(cls, app: Celery, task: Any, recorder: Recorder, carried: Collection[str]) -> Template | None:
        """The template of what Celery published, a message and perhaps an event, if there can be one.

        Args:
            carried: names of headers that belong to this message only.
        """
        (body, how), *events = recorder.published
        headers = {name: value for name, value in how.pop("headers").items() if name not in (*carried, *OWN_HEADERS)}
        if not isinstance(body, tuple) or headers["eta"] or headers["expires"] or headers["stamped_headers"]:
            return None
        if all(entity.can_cache_declaration for entity in how["declare"] or ()):
            del how["declare"]  # it has been done
        serializer = how.pop("serializer")
        sent = {name: value for name, value in events[0][0].items() if name not in ENVELOPE} if events else None
        way = None if "declare" in how or how["compression"] else recorder.straight(headers)
        queues = reached(app, how["exchange"], how["routing_key"])
        facts = {"task": task, "embed": body[2], "serializer": serializer, "headers": headers}
        return cls(**facts, how=how, sent=sent, straight=way, queues=queues)

    def publish(self, app: Celery, producer: Any, parcel: Parcel, body: Body) -> None:
        """Publish the message of a parcel, and the event."""
        given, task_id = parcel.options, parcel.task_id
        causes = {"root_id": given.get("root_id") or task_id, "parent_id": given.get("parent_id")}
        facts = {**causes, "retries": given.get("retries", 0)}
        headers = {**facts, **parcel.carried, "id": task_id, "kwargsrepr": body.shown}
        if self.straight is not None:
            self.straight.put(body.wire, headers, task_id)
        else:
            producer.publish(
                body.data,
                content_type=body.content_type,
                content_encoding=body.encoding,
                correlation_id=task_id,
                headers={**self.headers, **headers},
                **self.how,
            )
        if self.sent is not None:
            event = {**self.sent, **facts, "uuid": task_id, "kwargs": body.shown}
            app.amqp._event_dispatcher.publish("task-sent", event, producer, retry=False)
        parcel.went_to(self.queues)


class Body(NamedTuple):
    """A serialised body, what monitoring shows of it, and what goes straight into a queue."""

    content_type: str
    encoding: str
    data: Any
    shown: str
    wire: Any = None


class Templates:
    """Publishes the parcels of an app through one producer, by their templates where that comes to the same.

    Args:
        how: further options of `Task.apply_async` for all of them.
        gathering: where messages gather until they are flushed.
    """

    def __init__(self, app: Celery, producer: Any, how: Mapping[str, Any], gathering: Gathering | None = None) -> None:
        self._app, self._producer, self._how, self._gathering = app, producer, how, gathering
        self._tasks = app.tasks
        self._kept: dict[Any, Template | None] = {}
        self._body_of: Any = None
        self._body = Body("", "", None, "")
        self.begin()

    def begin(self) -> None:
        """See who watches and what is set, before some are published."""
        self._watched = is_watched()
        self._signs = is_signing()
        self._sends_events = bool(setting(self._app, "task_send_sent_event"))

    def of(self, parcels: Iterable[Parcel]) -> list[Template] | None:
        """The template of each, if all have one, so that whoever publishes them runs no code of others."""
        self.begin()
        found = [] if self._watched else [self._template(_key(parcel), parcel) for parcel in parcels]
        return cast(list[Template], found) if found and None not in found else None

    def publish(self, parcel: Parcel, template: Template | None = None) -> None:
        """Publish one message.

        Args:
            template: its own, if that has been looked for.

        Raises:
            Exception: what Celery and the transport raise.
        """
        key = None if self._watched or template is not None else _key(parcel)
        template = template or self._template(key, parcel)
        if template is not None:
            template.publish(self._app, self._producer, parcel, self._serialised(parcel, template))
        elif key is not None:
            self._kept[key] = self._recorded(parcel)
        else:
            self._noted(parcel, Recorder(self._producer, self._gathering))

    def _template(self, key: Any, parcel: Parcel) -> Template | None:
        template = self._kept.get(key)
        fits = (
            template is not None
            and template.task is self._tasks.get(parcel.handler)
            and (template.sent is not None) is self._sends_events
        )
        return template if fits else None

    def _recorded(self, parcel: Parcel) -> Template | None:
        """Have Celery publish it; the template of what it has published, unless others have a hand in it."""
        task, recorder = self._tasks.get(parcel.handler), Recorder(self._producer, self._gathering)
        with recorder:
            self._noted(parcel, recorder)
        plain = is_plain(self._app, self._producer, task)
        return Template.of(self._app, task, recorder, parcel.carried) if plain else None

    def _noted(self, parcel: Parcel, recorder: Recorder) -> None:
        """Has Celery publish it, and notes where it went."""
        parcel.publish(self._app, producer=recorder, **self._how)
        if parcel.queue and recorder.published:  # not by a task that publishes in a way of its own
            how = recorder.published[0][1]
            parcel.went_to(reached(self._app, how.get("exchange"), how.get("routing_key")))

    def _serialised(self, parcel: Parcel, template: Template) -> Body:
        """Made once for all handlers of an emission."""
        way = template.straight
        body_of = (
            parcel.message,
            parcel.tracked,
            template.serializer,
            parcel.handler if self._signs else None,
            way is None,
        )
        if body_of != self._body_of:
            serialised = _serialised((), parcel.kwargs, template)
            wire = None if way is None else way.wire(serialised[2])
            self._body_of, self._body = body_of, Body._make((*serialised, str(parcel.message), wire))
        return self._body


class Recorder:
    """A producer that keeps what it publishes, and how that reaches a queue of a virtual transport.

    Attributes:
        published: each body, and the other arguments.
    """

    def __init__(self, producer: Any, gathering: Gathering | None) -> None:
        self._producer, self._gathering = producer, gathering
        self._reaching = reaching(producer.channel)
        self.published: list[tuple[Any, Facts]] = []

    def __enter__(self) -> None:
        self._reached = self._reaching.__enter__()

    def __exit__(self, *error: object) -> None:
        self._reaching.__exit__(None, None, None)

    def publish(self, body: Any, *, headers: Facts, **how: Any) -> Any:
        """As the producer does."""
        same = {name: value for name, value in how.items() if name not in OWN}
        self.published.append((body, {**same, "headers": {**headers}}))
        return self._producer.publish(body, headers=headers, **how)

    def straight(self, headers: Facts) -> Way | None:
        """The way of the first message, for others with these headers in common."""
        if not self._reached:
            return None
        return straight(self._producer.channel, self._reached[0], headers, self._gathering)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def _serialised(args: Any, kwargs: Facts, template: Template) -> tuple[str, str, Any]:
    """Content type, encoding and body, as kombu's `dumps`; in a third of the time where its own JSON is meant."""
    codec: Any = registry._encoders.get(template.serializer)
    if codec is not None and codec.encoder is kombus_json and not any(template.embed.values()):
        text = quick_json((args, kwargs, template.embed))
        if text is not None:
            return codec.content_type, codec.content_encoding, text
    return cast(tuple[str, str, Any], dumps((args, kwargs, template.embed), template.serializer))  # type: ignore[no-untyped-call]  # of kombu


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
