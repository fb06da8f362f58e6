"""Message templates: the parts of a handler's first message that Celery publishes, reused for its later messages.

Celery makes the first message, so routes, annotations and settings hold. `Task.apply_async` makes every message if a
signal has receivers, if a method of Celery is overridden, or if messages differ in more than a template fills in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from celery import Celery
from kombu.serialization import dumps, registry
from kombu.utils.json import dumps as kombu_json

from nitro.infrastructure.offload.codec import quick_json
from nitro.infrastructure.offload.conf import read_setting
from nitro.infrastructure.offload.destinations import matching_queues
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.publishing.direct import MessageBuffer, MessageWriter, capture_messages, direct_writer
from nitro.infrastructure.offload.publishing.unmodified import has_publish_receivers, is_unmodified
from nitro.infrastructure.signing import is_signing

PER_MESSAGE_OPTIONS = ("root_id", "parent_id", "retries")
"""Options of `apply_async` that a template fills in for each message."""
TIME_DEPENDENT_OPTIONS = ("countdown", "expires")
"""Options from which Celery computes a time."""

PER_MESSAGE_PROPERTIES = ("correlation_id", "argsrepr", "kwargsrepr")
"""Properties of one message only. Celery writes `argsrepr` and `kwargsrepr` here too; workers read the headers."""

PER_MESSAGE_HEADERS = ("id", "root_id", "parent_id", "retries", "kwargsrepr")
"""Headers that a template fills in for each message."""

EVENT_METADATA_FIELDS = ("type", "hostname", "utcoffset", "pid", "clock", "timestamp")
"""Fields that Celery's event dispatcher adds to each monitoring event."""

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTemplate:
    """The parts that the messages of a handler have in common.

    Attributes:
        task: the Celery task; a later task with this name gets a template of its own.
        embed: the last part of each body (Celery's message protocol 2).
        serializer: the serializer of each body.
        headers: the headers of each message.
        publish_options: the other arguments of `Producer.publish`.
        sent_event: the `task-sent` event of each message, or None.
        direct_writer: the writer into the queue, or None where kombu must publish each message.
        queues: the queues that each message goes to.
    """

    task: Any
    embed: Any
    serializer: str
    headers: Fields
    publish_options: Fields
    sent_event: Fields | None
    direct_writer: MessageWriter | None
    queues: tuple[str, ...]

    @classmethod
    def of(
        cls, app: Celery, task: Any, recorder: RecordingProducer, own_headers: Collection[str]
    ) -> MessageTemplate | None:
        """Returns the template of a recorded message, or None if later messages may differ in more.

        Args:
            recorder: the producer that has published the message, and perhaps its `task-sent` event.
            own_headers: names of headers that belong to this message only.
        """
        (body, options), *events = recorder.published
        excluded = (*own_headers, *PER_MESSAGE_HEADERS)
        headers = {name: value for name, value in options.pop("headers").items() if name not in excluded}
        if not isinstance(body, tuple) or headers["eta"] or headers["expires"] or headers["stamped_headers"]:
            return None
        if all(entity.can_cache_declaration for entity in options["declare"] or ()):
            del options["declare"]  # kombu has declared them with the first message
        serializer = options.pop("serializer")
        sent_event = (
            {name: value for name, value in events[0][0].items() if name not in EVENT_METADATA_FIELDS}
            if events
            else None
        )
        writer = None if "declare" in options or options["compression"] else recorder.direct_writer(headers)
        queues = matching_queues(app, options["exchange"], options["routing_key"])
        facts = {"task": task, "embed": body[2], "serializer": serializer, "headers": headers}
        return cls(**facts, publish_options=options, sent_event=sent_event, direct_writer=writer, queues=queues)

    def publish(self, app: Celery, producer: Any, message: TaskMessage, body: SerializedBody) -> None:
        """Publishes a message, and its `task-sent` event if monitors get one."""
        options, task_id = message.options, message.task_id
        causes = {"root_id": options.get("root_id") or task_id, "parent_id": options.get("parent_id")}
        facts = {**causes, "retries": options.get("retries", 0)}
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
    """A serialised body: `description` is its text for monitoring, `wire_text` its form for a direct writer."""

    content_type: str
    encoding: str
    data: Any
    description: str
    wire_text: Any = None


class TemplatePublisher:
    """Publishes the messages of an app through one producer, by templates where the messages come out the same.

    Args:
        options: further options of `Task.apply_async` for all messages.
        buffer: the buffer of the producer's channel, or None.
    """

    def __init__(
        self, app: Celery, producer: Any, options: Mapping[str, Any], buffer: MessageBuffer | None = None
    ) -> None:
        self._app, self._producer, self._publish_options, self._buffer = app, producer, options, buffer
        self._tasks = app.tasks
        self._templates_by_key: dict[Any, MessageTemplate | None] = {}
        self._body_key: Any = None
        self._body = SerializedBody("", "", None, "")
        self.refresh()

    def refresh(self) -> None:
        """Reads signal receivers and settings anew; called before each batch."""
        self._has_receivers = has_publish_receivers()
        self._is_signing = is_signing()
        self._sends_events = bool(read_setting(self._app, "task_send_sent_event"))

    def find_all(self, messages: Iterable[TaskMessage]) -> list[MessageTemplate] | None:
        """Returns the template of each message if all have one, so that publishing runs no user code; else None."""
        self.refresh()
        if self._has_receivers:
            return None
        templates = [self._find_template(_template_key(message), message) for message in messages]
        return cast(list[MessageTemplate], templates) if templates and None not in templates else None

    def publish(self, message: TaskMessage, template: MessageTemplate | None = None) -> None:
        """Publishes one message.

        Args:
            template: the template of the message, if `find_all` has found it.

        Raises:
            Exception: the error of Celery or of the transport.
        """
        key = None if self._has_receivers or template is not None else _template_key(message)
        template = template or self._find_template(key, message)
        if template is not None:
            template.publish(self._app, self._producer, message, self._body_for(message, template))
        elif key is not None:
            self._templates_by_key[key] = self._publish_recorded(message)
        else:
            self._publish_through(message, RecordingProducer(self._producer, self._buffer))

    def _find_template(self, key: Any, message: TaskMessage) -> MessageTemplate | None:
        template = self._templates_by_key.get(key)
        fits = (
            template is not None
            and template.task is self._tasks.get(message.handler)
            and (template.sent_event is not None) is self._sends_events
        )
        return template if fits else None

    def _publish_recorded(self, message: TaskMessage) -> MessageTemplate | None:
        """Lets Celery publish a message; returns its template unless user code takes part in making messages."""
        task, recorder = self._tasks.get(message.handler), RecordingProducer(self._producer, self._buffer)
        with recorder:
            self._publish_through(message, recorder)
        if not is_unmodified(self._app, self._producer, task):
            return None
        return MessageTemplate.of(self._app, task, recorder, message.propagated_headers)

    def _publish_through(self, message: TaskMessage, recorder: RecordingProducer) -> None:
        """Lets Celery publish a message, and records its queues."""
        message.publish(self._app, producer=recorder, **self._publish_options)
        if message.queue and recorder.published:  # a task may override apply_async and publish elsewhere
            options = recorder.published[0][1]
            message.record_queues(matching_queues(self._app, options.get("exchange"), options.get("routing_key")))

    def _body_for(self, message: TaskMessage, template: MessageTemplate) -> SerializedBody:
        """Returns the serialised body; it is made once for all handlers of an emission that share it."""
        writer = template.direct_writer
        body_key = (
            message.envelope,
            message.is_tracked,
            template.serializer,
            message.handler if self._is_signing else None,
            writer is None,
        )
        if body_key != self._body_key:
            serialised = _serialize_body((), message.kwargs, template)
            wire_text = None if writer is None else writer.wire_text(serialised[2])
            self._body_key, self._body = body_key, SerializedBody(*serialised, str(message.envelope), wire_text)
        return self._body


class RecordingProducer:
    """A producer that records the messages that it publishes, and their form at the channel.

    Attributes:
        published: the body and the other arguments of each `publish`.
    """

    def __init__(self, producer: Any, buffer: MessageBuffer | None) -> None:
        self._producer, self._buffer = producer, buffer
        self._capture = capture_messages(producer.channel)
        self.published: list[tuple[Any, Fields]] = []

    def __enter__(self) -> None:
        self._captured = self._capture.__enter__()

    def __exit__(self, *error: object) -> None:
        self._capture.__exit__(None, None, None)

    def publish(self, body: Any, *, headers: Fields, **options: Any) -> Any:
        """Publishes a message through the producer, and records it."""
        common = {name: value for name, value in options.items() if name not in PER_MESSAGE_PROPERTIES}
        self.published.append((body, {**common, "headers": {**headers}}))
        return self._producer.publish(body, headers=headers, **options)

    def direct_writer(self, headers: Fields) -> MessageWriter | None:
        """Returns a writer for later messages like the first one, with these headers in common, or None."""
        if not self._captured:
            return None
        return direct_writer(self._producer.channel, self._captured[0], headers, self._buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def _serialize_body(args: Any, kwargs: Fields, template: MessageTemplate) -> tuple[str, str, Any]:
    """Returns content type, encoding and body as kombu's `dumps` does, in a third of the time for kombu's own JSON."""
    codec: Any = registry._encoders.get(template.serializer)
    if codec is not None and codec.encoder is kombu_json and not any(template.embed.values()):
        text = quick_json((args, kwargs, template.embed))
        if text is not None:
            return codec.content_type, codec.content_encoding, text
    return cast(tuple[str, str, Any], dumps((args, kwargs, template.embed), template.serializer))  # type: ignore[no-untyped-call]  # of kombu


def _template_key(message: TaskMessage) -> Any:
    """Returns the key of a message's template; None if the message must not have one."""
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
