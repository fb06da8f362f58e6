"""Destinations: the queue that Celery's router finds for a message, and the queues that it was published to."""

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
"""Options of a message that decide on its queue."""
EXCHANGE_PREFIX = "exchange "
"""Prefix of the text that replaces the queue name if none of the app's queues is bound to the exchange."""
MAX_DESTINATION_CHARS = 512
"""Characters of a destination after which it is cut."""

_expected_queues: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()
"""The queue of each handler without routing options, by router."""
_topic_exchange: Any = TopicExchange


def is_queue(name: str) -> bool:
    """Whether a destination is the name of a queue, and not an exchange."""
    return not name.startswith(EXCHANGE_PREFIX)


def has_static_routes(router: Any) -> bool:
    """Whether a router always finds the same queue for a task."""
    return all(isinstance(route, MapRoute) for route in router.routes)


def expected_queues(app: Celery, messages: Iterable[TaskMessage]) -> list[str]:
    """Returns the queue that Celery's router finds for each message now; a function may route it elsewhere later.

    Raises:
        QueueNotFound: the app has no such queue, and `task_create_missing_queues` is off.
        DeclarationError: the queue has a name that cannot be stored.
    """
    router = app.amqp.router
    cache = _expected_queues.setdefault(router, {}) if has_static_routes(router) else None
    return [_expected_queue(app, message, cache) for message in messages]


def _expected_queue(app: Celery, message: TaskMessage, cache: dict[str, str] | None) -> str:
    if cache is None:
        return _checked_route(app, message.handler, message.message_options, message.kwargs)
    options = {name: message.options[name] for name in ROUTING_OPTIONS if name in message.options}
    if options:
        return _checked_route(app, message.handler, options, {})
    queue = cache.get(message.handler)
    if queue is None:
        queue = cache[message.handler] = _checked_route(app, message.handler, {}, {})
    return queue


def _checked_route(app: Celery, handler: str, options: Mapping[str, Any], kwargs: Mapping[str, Any]) -> str:
    queue = _route(app, handler, options, kwargs)
    check_name(f"the queue of handler {handler}", queue)
    return queue


def expected_queue_of_handler(app: Celery, handler: str, options: Mapping[str, Any]) -> str:
    """Returns the queue that the router finds for a handler with these options, without the kwargs of a message."""
    return _route(app, handler, {name: options[name] for name in ROUTING_OPTIONS if name in options}, {})


def expected_queue_or_default(app: Celery, message: TaskMessage) -> str:
    """Returns the expected queue; if the app has lost the named queue, drops the routing options and routes again.

    Another release of the program may have made the message.
    """
    try:
        return expected_queues(app, [message])[0]
    except QueueNotFound:
        lost = [str(message.options[name]) for name in ROUTING_OPTIONS if name in message.options]
        message.options = {name: value for name, value in message.options.items() if name not in ROUTING_OPTIONS}
        queue = expected_queues(app, [message])[0]
        logger.warning("%s goes to queue %s: this app has no %s any more", message.handler, queue, ", ".join(lost))
        return queue


def matching_queues(app: Celery, exchange: Any, key: str | None) -> tuple[str, ...]:
    """Returns the app's queues that an exchange and a routing key reach; without any, a text that names these two."""
    name = getattr(exchange, "name", exchange)
    if not name:
        return (str(key),)
    # A Broadcast queue is one worker's own, and no queue of deliveries.
    queues = [queue for queue in app.amqp.queues.values() if not isinstance(queue, Broadcast)]
    matching = tuple(
        queue.name for queue in queues if any(_matches(*binding, name, key or "") for binding in _bindings(queue))
    )
    return matching or (f"{EXCHANGE_PREFIX}{name}, key {key}"[:MAX_DESTINATION_CHARS],)


def _route(app: Celery, handler: str, options: Mapping[str, Any], kwargs: Mapping[str, Any]) -> str:
    task = app.tasks.get(handler)
    task_options = {name: getattr(task, name) for name in ROUTING_OPTIONS if getattr(task, name, None) is not None}
    route = app.amqp.router.route({**task_options, **options}, handler, (), kwargs, task)
    queue, exchange, key = (route.get(name) for name in ROUTING_OPTIONS)
    if queue is None:
        return matching_queues(app, exchange, key)[0]
    if queue.exchange.type == "direct" and not (exchange and key):
        return str(queue.name)
    matching = matching_queues(app, exchange or queue.exchange, key or queue.routing_key)
    return str(queue.name) if queue.name in matching else matching[0]


def _bindings(queue: Any) -> Iterator[tuple[Any, str]]:
    """Yields the exchange and the key of each binding of a queue."""
    if queue.exchange is not None:
        yield queue.exchange, queue.routing_key or ""
    for binding in queue.bindings or ():
        yield binding.exchange, binding.routing_key or ""


def _matches(exchange: Any, pattern: str, name: str, key: str) -> bool:
    """Whether a binding of a queue matches a message to an exchange with a key."""
    if exchange.name != name:
        return False
    if exchange.type == "topic":
        return re.match(_topic_exchange(None).key_to_pattern(pattern), key) is not None
    return exchange.type == "fanout" or (exchange.type == "direct" and pattern == key)
