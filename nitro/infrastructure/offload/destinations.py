"""Destinations: the queue that a message goes to, as the router foresees it and as it was published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery
from celery.app.routes import MapRoute
from celery.exceptions import QueueNotFound
from kombu.common import Broadcast
from kombu.transport.virtual.exchange import TopicExchange

from nitro.infrastructure.events.names import check_name
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.envelope import TaskMessage

logger = get_logger("nitro.offload")

ROUTING_OPTIONS = ("queue", "exchange", "routing_key")
"""Options of a message that say where it goes."""
EXCHANGE_PREFIX = "exchange "
"""Begin of the text that stands for a queue where a message goes to an exchange with queues that the app has not."""
MAX_DESTINATION_CHARS = 512
"""Characters of such a text."""

_expected_queues: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()
"""The queues that a router has found for handlers whose messages say nothing of it."""
_topic_exchange: Any = TopicExchange


def is_queue(name: str) -> bool:
    """Whether it is the name of a queue that the broker can be asked about."""
    return not name.startswith(EXCHANGE_PREFIX)


def has_static_routes(router: Any) -> bool:
    """Whether a router finds the same for a task each time."""
    return all(isinstance(route, MapRoute) for route in router.routes)


def expected_queues(app: Celery, messages: Iterable[TaskMessage]) -> list[str]:
    """Returns the queue that Celery's router finds for each message now; a function may route it elsewhere later.

    Raises:
        QueueNotFound: the app has no such queue, and makes none.
        DeclarationError: it has a name that cannot be stored.
    """
    router = app.amqp.router
    known = _expected_queues.setdefault(router, {}) if has_static_routes(router) else None
    return [_foreseen_for(app, message, known) for message in messages]


def _foreseen_for(app: Celery, message: TaskMessage, known: dict[str, str] | None) -> str:
    if known is None:
        return _checked(app, message.handler, message.message_options, message.kwargs)
    given = {name: message.options[name] for name in ROUTING_OPTIONS if name in message.options}
    if given:
        return _checked(app, message.handler, given, {})
    queue = known.get(message.handler)
    if queue is None:
        queue = known[message.handler] = _checked(app, message.handler, {}, {})
    return queue


def _checked(app: Celery, handler: str, given: Mapping[str, Any], kwargs: Mapping[str, Any]) -> str:
    queue = _route(app, handler, given, kwargs)
    check_name(f"the queue of handler {handler}", queue)
    return queue


def expected_queue_of_handler(app: Celery, handler: str, options: Mapping[str, Any]) -> str:
    """Returns the queue that the router finds for the messages of a handler with these options, whatever they hold."""
    return _route(app, handler, {name: options[name] for name in ROUTING_OPTIONS if name in options}, {})


def expected_queue_or_default(app: Celery, message: TaskMessage) -> str:
    """Returns the same for a message that another release may have made; a queue that is gone is left to the routes."""
    try:
        return expected_queues(app, [message])[0]
    except QueueNotFound:
        named = [str(message.options[name]) for name in ROUTING_OPTIONS if name in message.options]
        message.options = {name: value for name, value in message.options.items() if name not in ROUTING_OPTIONS}
        found = expected_queues(app, [message])[0]
        logger.warning("%s goes to queue %s: this app has no %s any more", message.handler, found, ", ".join(named))
        return found


def matching_queues(app: Celery, exchange: Any, key: str | None) -> tuple[str, ...]:
    """Returns the queues that a message reaches by exchange and routing key; where the app has none, these two."""
    name = getattr(exchange, "name", exchange)
    if not name:
        return (str(key),)
    queues = [queue for queue in app.amqp.queues.values() if not isinstance(queue, Broadcast)]  # which is each worker's
    found = tuple(queue.name for queue in queues if any(_matches(*each, name, key or "") for each in _bindings(queue)))
    return found or (f"{EXCHANGE_PREFIX}{name}, key {key}"[:MAX_DESTINATION_CHARS],)


def _route(app: Celery, handler: str, given: Mapping[str, Any], kwargs: Mapping[str, Any]) -> str:
    task = app.tasks.get(handler)
    own = {name: getattr(task, name) for name in ROUTING_OPTIONS if getattr(task, name, None) is not None}
    route = app.amqp.router.route({**own, **given}, handler, (), kwargs, task)
    queue, exchange, key = (route.get(name) for name in ROUTING_OPTIONS)
    if queue is None:
        return matching_queues(app, exchange, key)[0]
    if queue.exchange.type == "direct" and not (exchange and key):
        return str(queue.name)
    found = matching_queues(app, exchange or queue.exchange, key or queue.routing_key)
    return str(queue.name) if queue.name in found else found[0]


def _bindings(queue: Any) -> Iterator[tuple[Any, str]]:
    """Yields the exchange and the key of each binding of a queue."""
    if queue.exchange is not None:
        yield queue.exchange, queue.routing_key or ""
    for binding in queue.bindings or ():
        yield binding.exchange, binding.routing_key or ""


def _matches(exchange: Any, pattern: str, name: str, key: str) -> bool:
    """Whether a binding of a queue takes what goes to an exchange with a key."""
    if exchange.name != name:
        return False
    if exchange.type == "topic":
        return re.match(_topic_exchange(None).key_to_pattern(pattern), key) is not None
    return exchange.type == "fanout" or (exchange.type == "direct" and pattern == key)
