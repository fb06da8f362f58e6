"""Destinations: the queue that a message goes to, as the router foresees it and as it was published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery
from celery.exceptions import QueueNotFound
from kombu.common import Broadcast
from kombu.transport.virtual.exchange import TopicExchange

from nitro.infrastructure.events.names import check_name
from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.offload.plain import routes_alike

logger = logger_named("nitro.offload")

ROUTING = ("queue", "exchange", "routing_key")
"""Options of a message that say where it goes."""
EXCHANGE = "exchange "
"""Begin of the text that stands for a queue where a message goes to an exchange with queues that the app has not."""
LONGEST = 512
"""Characters of such a text."""

_foreseen: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()
"""The queues that a router has found for handlers whose messages say nothing of it."""
_topics: Any = TopicExchange


def is_queue(name: str) -> bool:
    """Whether it is the name of a queue that the broker can be asked about."""
    return not name.startswith(EXCHANGE)


def foreseen(app: Celery, parcels: Iterable[Parcel]) -> list[str]:
    """Returns the queue that Celery's router finds for each parcel now; a router's function may find another one later.

    Raises:
        QueueNotFound: the app has no such queue, and makes none.
        DeclarationError: it has a name that cannot be stored.
    """
    router = app.amqp.router
    known = _foreseen.setdefault(router, {}) if routes_alike(router) else None
    return [_foreseen_for(app, parcel, known) for parcel in parcels]


def _foreseen_for(app: Celery, parcel: Parcel, known: dict[str, str] | None) -> str:
    if known is None:
        return _checked(app, parcel.handler, parcel.given, parcel.kwargs)
    given = {name: parcel.options[name] for name in ROUTING if name in parcel.options}
    if given:
        return _checked(app, parcel.handler, given, {})
    queue = known.get(parcel.handler)
    if queue is None:
        queue = known[parcel.handler] = _checked(app, parcel.handler, {}, {})
    return queue


def _checked(app: Celery, handler: str, given: Mapping[str, Any], kwargs: Mapping[str, Any]) -> str:
    queue = _routed(app, handler, given, kwargs)
    check_name(f"the queue of handler {handler}", queue)
    return queue


def queue_of(app: Celery, handler: str, options: Mapping[str, Any]) -> str:
    """Returns the queue that the router finds for the messages of a handler with these options, whatever they hold."""
    return _routed(app, handler, {name: options[name] for name in ROUTING if name in options}, {})


def foreseen_anew(app: Celery, parcel: Parcel) -> str:
    """Returns the same for a parcel that another release may have made; a queue that is gone is left to the routes."""
    try:
        return foreseen(app, [parcel])[0]
    except QueueNotFound:
        named = [str(parcel.options[name]) for name in ROUTING if name in parcel.options]
        parcel.options = {name: value for name, value in parcel.options.items() if name not in ROUTING}
        found = foreseen(app, [parcel])[0]
        logger.warning("%s goes to queue %s: this app has no %s any more", parcel.handler, found, ", ".join(named))
        return found


def reached(app: Celery, exchange: Any, key: str | None) -> tuple[str, ...]:
    """Returns the queues that a message reaches by exchange and routing key; where the app has none, these two."""
    name = getattr(exchange, "name", exchange)
    if not name:
        return (str(key),)
    queues = [queue for queue in app.amqp.queues.values() if not isinstance(queue, Broadcast)]  # which is each worker's
    found = tuple(queue.name for queue in queues if any(_takes(*each, name, key or "") for each in _bindings(queue)))
    return found or (f"{EXCHANGE}{name}, key {key}"[:LONGEST],)


def _routed(app: Celery, handler: str, given: Mapping[str, Any], kwargs: Mapping[str, Any]) -> str:
    task = app.tasks.get(handler)
    own = {name: getattr(task, name) for name in ROUTING if getattr(task, name, None) is not None}
    route = app.amqp.router.route({**own, **given}, handler, (), kwargs, task)
    queue, exchange, key = (route.get(name) for name in ROUTING)
    if queue is None:
        return reached(app, exchange, key)[0]
    if queue.exchange.type == "direct" and not (exchange and key):
        return str(queue.name)
    found = reached(app, exchange or queue.exchange, key or queue.routing_key)
    return str(queue.name) if queue.name in found else found[0]


def _bindings(queue: Any) -> Iterator[tuple[Any, str]]:
    """Yields the exchange and the key of each binding of a queue."""
    if queue.exchange is not None:
        yield queue.exchange, queue.routing_key or ""
    for binding in queue.bindings or ():
        yield binding.exchange, binding.routing_key or ""


def _takes(exchange: Any, pattern: str, name: str, key: str) -> bool:
    """Whether a binding of a queue takes what goes to an exchange with a key."""
    if exchange.name != name:
        return False
    if exchange.type == "topic":
        return re.match(_topics(None).key_to_pattern(pattern), key) is not None
    return exchange.type == "fanout" or (exchange.type == "direct" and pattern == key)
