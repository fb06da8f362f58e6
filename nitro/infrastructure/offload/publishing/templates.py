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
from nitro.infrastructure.offload.conf import read_setting
from nitro.infrastructure.offload.destinations import matching_queues
from nitro.infrastructure.offload.envelope import TaskMessage, is_signing
from nitro.infrastructure.offload.publishing.direct import Gathering, Way, capture_messages, direct_writer
from nitro.infrastructure.offload.publishing.unmodified import has_publish_receivers, is_unmodified

PER_MESSAGE_OPTIONS = ("root_id", "parent_id", "retries")
"""Options that a template fills in."""
TIME_DEPENDENT_OPTIONS = ("countdown", "expires")
"""Options that Celery reckons with the time."""

PER_MESSAGE_PROPERTIES = ("correlation_id", "argsrepr", "kwargsrepr")
"""Properties of one message only; the last two Celery leaves there too, beside the headers where they are read."""

PER_MESSAGE_HEADERS = ("id", "root_id", "parent_id", "retries", "kwargsrepr")
"""Headers that are filled in."""

EVENT_METADATA_FIELDS = ("type", "hostname", "utcoffset", "pid", "clock", "timestamp")
"""Fields of an event that Celery's dispatcher makes."""

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTemplate:
    """What the messages of a handler have in common.

    Attributes:
        task: what Celery published; another task of that name has a template of its own.
        embed: the last part of each body.
        serializer: of each body.
        headers: of each message.
        publish_options: the other arguments of `Producer.publish`.
        sent_event: the event that tells monitors of each message, or None.
        direct_writer: their way into the queue where kombu need not be asked for it, or None.
        queues: the queues that they go to.
    """

    task: Any
    embed: Any
    serializer: str
    headers: Fields
    publish_options: Fields
    sent_event: Fields | None
    direct_writer: Way | None
    queues: tuple[str, ...]

    @classmethod
    def of(
        cls, app: Celery, task: Any, recorder: RecordingProducer, carried: Collection[str]
    ) -> MessageTemplate | None:
        """The template of what Celery published, a message and perhaps an event, if there can be one.

        Args:
            carried: names of headers that belong to this message only.
        """
        (body, how), *events = recorder.published
        headers = {
            name: value for name, value in how.pop("headers").items() if name not in (*carried, *PER_MESSAGE_HEADERS)
        }
        if not isinstance(body, tuple) or headers["eta"] or headers["expires"] or headers["stamped_headers"]:
            return None
        if all(entity.can_cache_declaration for entity in how["declare"] or ()):
            del how["declare"]  # it has been done
        serializer = how.pop("serializer")
        sent = (
            {name: value for name, value in events[0][0].items() if name not in EVENT_METADATA_FIELDS}
            if events
            else None
        )
        writer = None if "declare" in how or how["compression"] else recorder.direct_writer(headers)
        queues = matching_queues(app, how["exchange"], how["routing_key"])
        facts = {"task": task, "embed": body[2], "serializer": serializer, "headers": headers}
        return cls(**facts, publish_options=how, sent_event=sent, direct_writer=writer, queues=queues)

    def publish(self, app: Celery, producer: Any, message: TaskMessage, body: SerializedBody) -> None:
        """Publish a message, and the event."""
        given, task_id = message.options, message.task_id
        causes = {"root_id": given.get("root_id") or task_id, "parent_id": given.get("parent_id")}
        facts = {**causes, "retries": given.get("retries", 0)}
        headers = {**facts, **message.propagated_headers, "id": task_id, "kwargsrepr": body.description}
        if self.direct_writer is not None:
            self.direct_writer.write(body.wire_text, headers, task_id)
        else:
            producer.publish(
                body.data,
                content_type=body.content_type,
                content_encoding=body.encoding,
                correlation_id=task_id,
                headers={**self.headers, **headers},
                **self.publish_options,
            )
        if self.sent_event is not None:
            event = {**self.sent_event, **facts, "uuid": task_id, "kwargs": body.description}
            app.amqp._event_dispatcher.publish("task-sent", event, producer, retry=False)
        message.record_queues(self.queues)


class SerializedBody(NamedTuple):
    """A serialised body, what monitoring shows of it, and what goes straight into a queue."""

    content_type: str
    encoding: str
    data: Any
    description: str
    wire_text: Any = None


class TemplatePublisher:
    """Publishes the messages of an app through one producer, by their templates where that comes to the same.

    Args:
        how: further options of `Task.apply_async` for all of them.
        gathering: where messages gather until they are flushed.
    """

    def __init__(self, app: Celery, producer: Any, how: Mapping[str, Any], gathering: Gathering | None = None) -> None:
        self._app, self._producer, self._task_options, self._gathering = app, producer, how, gathering
        self._tasks = app.tasks
        self._templates_by_key: dict[Any, MessageTemplate | None] = {}
        self._body_key: Any = None
        self._body = SerializedBody("", "", None, "")
        self.refresh()

    def refresh(self) -> None:
        """See who watches and what is set, before some are published."""
        self._has_receivers = has_publish_receivers()
        self._is_signing = is_signing()
        self._sends_events = bool(read_setting(self._app, "task_send_sent_event"))

    def find_all(self, messages: Iterable[TaskMessage]) -> list[MessageTemplate] | None:
        """The template of each, if all have one, so that whoever publishes them runs no code of others."""
        self.refresh()
        found = (
            []
            if self._has_receivers
            else [self._find_template(_template_key(message), message) for message in messages]
        )
        return cast(list[MessageTemplate], found) if found and None not in found else None

    def publish(self, message: TaskMessage, template: MessageTemplate | None = None) -> None:
        """Publish one message.

        Args:
            template: its own, if that has been looked for.

        Raises:
            Exception: what Celery and the transport raise.
        """
        key = None if self._has_receivers or template is not None else _template_key(message)
        template = template or self._find_template(key, message)
        if template is not None:
            template.publish(self._app, self._producer, message, self._body_for(message, template))
        elif key is not None:
            self._templates_by_key[key] = self._publish_recorded(message)
        else:
            self._publish_through(message, RecordingProducer(self._producer, self._gathering))

    def _find_template(self, key: Any, message: TaskMessage) -> MessageTemplate | None:
        template = self._templates_by_key.get(key)
        fits = (
            template is not None
            and template.task is self._tasks.get(message.handler)
            and (template.sent_event is not None) is self._sends_events
        )
        return template if fits else None

    def _publish_recorded(self, message: TaskMessage) -> MessageTemplate | None:
        """Have Celery publish it; the template of what it has published, unless others have a hand in it."""
        task, recorder = self._tasks.get(message.handler), RecordingProducer(self._producer, self._gathering)
        with recorder:
            self._publish_through(message, recorder)
        plain = is_unmodified(self._app, self._producer, task)
        return MessageTemplate.of(self._app, task, recorder, message.propagated_headers) if plain else None

    def _publish_through(self, message: TaskMessage, recorder: RecordingProducer) -> None:
        """Has Celery publish it, and notes where it went."""
        message.publish(self._app, producer=recorder, **self._task_options)
        if message.queue and recorder.published:  # not by a task that publishes in a way of its own
            how = recorder.published[0][1]
            message.record_queues(matching_queues(self._app, how.get("exchange"), how.get("routing_key")))

    def _body_for(self, message: TaskMessage, template: MessageTemplate) -> SerializedBody:
        """Made once for all handlers of an emission."""
        writer = template.direct_writer
        body_of = (
            message.envelope,
            message.is_tracked,
            template.serializer,
            message.handler if self._is_signing else None,
            writer is None,
        )
        if body_of != self._body_key:
            serialised = _serialize_body((), message.kwargs, template)
            wire = None if writer is None else writer.wire_text(serialised[2])
            self._body_key, self._body = body_of, SerializedBody._make((*serialised, str(message.envelope), wire))
        return self._body


class RecordingProducer:
    """A producer that keeps what it publishes, and how that reaches a queue of a virtual transport.

    Attributes:
        published: each body, and the other arguments.
    """

    def __init__(self, producer: Any, gathering: Gathering | None) -> None:
        self._producer, self._gathering = producer, gathering
        self._capture = capture_messages(producer.channel)
        self.published: list[tuple[Any, Fields]] = []

    def __enter__(self) -> None:
        self._captured = self._capture.__enter__()

    def __exit__(self, *error: object) -> None:
        self._capture.__exit__(None, None, None)

    def publish(self, body: Any, *, headers: Fields, **how: Any) -> Any:
        """As the producer does."""
        same = {name: value for name, value in how.items() if name not in PER_MESSAGE_PROPERTIES}
        self.published.append((body, {**same, "headers": {**headers}}))
        return self._producer.publish(body, headers=headers, **how)

    def direct_writer(self, headers: Fields) -> Way | None:
        """The way of the first message, for others with these headers in common."""
        if not self._captured:
            return None
        return direct_writer(self._producer.channel, self._captured[0], headers, self._gathering)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def _serialize_body(args: Any, kwargs: Fields, template: MessageTemplate) -> tuple[str, str, Any]:
    """Content type, encoding and body, as kombu's `dumps`; in a third of the time where its own JSON is meant."""
    codec: Any = registry._encoders.get(template.serializer)
    if codec is not None and codec.encoder is kombus_json and not any(template.embed.values()):
        text = quick_json((args, kwargs, template.embed))
        if text is not None:
            return codec.content_type, codec.content_encoding, text
    return cast(tuple[str, str, Any], dumps((args, kwargs, template.embed), template.serializer))  # type: ignore[no-untyped-call]  # of kombu


def _template_key(message: TaskMessage) -> Any:
    """What tells its template from others; None when it must have none."""
    key: list[Any] = [message.handler, message.delivery]
    for name, value in message.message_options.items():
        if name in TIME_DEPENDENT_OPTIONS:
            return None
        if name not in PER_MESSAGE_OPTIONS:
            key += (name, tuple(value.items()) if isinstance(value, dict) else value)
    try:
        hash(tuple(key))
    except TypeError:
        return None
    return tuple(key)
