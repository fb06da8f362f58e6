"""Celery's options, routes, annotations and signals for an offloaded handler: contract section 3."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.signals import after_task_publish, before_task_publish

from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload, bind

Sent = Callable[..., list[Any]]


def offloaded(evt: Event, *names: str, **options: Any) -> None:
    """Connects an offloaded handler of each name."""
    for name in names:
        on(evt, offload=options or True, name=name)(_named(name))


def _named(name: str) -> Any:
    def handler(sender: Any, *args: Any, **kwargs: Any) -> None: ...

    handler.__qualname__ = name
    return handler


def test_typing_false_skips_the_check_of_arguments(evt: Event, app: Celery, sent: Sent) -> None:
    """With Celery's `typing=False` an emit does not check the arguments."""
    on(evt, offload={"typing": False}, name="shop.lenient")(lambda sender: None)
    emit(evt, "ada", amount=3)
    assert len(sent()) == 1


def test_queue_of_the_registration(evt: Event, app: Celery, sent: Sent) -> None:
    """Each handler may go to a queue of its own."""
    on(evt, offload={"queue": "mail"}, name="shop.mail")(_named("shop.mail"))
    offloaded(evt, "shop.other")
    emit(evt)
    assert [message.name for message in sent("mail")] == ["shop.mail"]
    assert [message.name for message in sent()] == ["shop.other"]


def test_message_options_pass_through(evt: Event, app: Celery, sent: Sent) -> None:
    """Priority, countdown, expiry and headers have Celery's meaning."""
    offload = Offload(priority=3, countdown=60, expires=120, headers={"tenant": "t1"}, delivery="broker")
    on(evt, offload=offload, name="shop.a")(_named("shop.a"))
    before = datetime.now(UTC)
    emit(evt)
    message = sent()[0]
    assert message.properties["priority"] == 3
    assert message.headers["tenant"] == "t1"
    waits = [datetime.fromisoformat(message.headers[name]) - before for name in ("eta", "expires")]
    assert [round(wait / timedelta(seconds=60)) for wait in waits] == [1, 2]


def test_task_options_pass_through(evt: Event, app: Celery) -> None:
    """The task has all of Celery's task options that the registration gives."""
    options = {
        "rate_limit": "5/m",
        "time_limit": 50,
        "soft_time_limit": 40,
        "max_retries": 3,
        "retry_backoff": 5,
        "retry_jitter": False,
        "ignore_result": True,
        "track_started": True,
        "store_errors_even_if_ignored": True,
        "default_retry_delay": 7,
        "throws": (KeyError,),
        "acks_on_failure_or_timeout": False,
    }
    task = on(evt, offload=options, name="shop.a")(_named("shop.a")).task
    assert {name: getattr(task, name) for name in options} == options


def test_publish_signals_name_the_handler(evt: Event, app: Celery, sent: Sent) -> None:
    """OpenTelemetry and Sentry see each handler's task as if it were sent by hand."""
    offloaded(evt, "shop.a", "shop.b")
    seen = []

    def before(sender: Any, headers: Any, routing_key: Any, **_signal: Any) -> None:
        headers["trace"] = f"trace of {sender}"
        seen.append(("before", sender, headers["task"], routing_key))

    def after(sender: Any, headers: Any, routing_key: Any, **_signal: Any) -> None:
        seen.append(("after", sender, headers["task"], routing_key))

    before_task_publish.connect(before)
    after_task_publish.connect(after)
    try:
        emit(evt)
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)
    names = ("shop.a", "shop.b")
    assert seen == [(when, name, name, "celery") for name in names for when in ("before", "after")]
    assert [message.headers["trace"] for message in sent()] == ["trace of shop.a", "trace of shop.b"]


def test_task_routes_are_honoured(evt: Event, make_app: Any) -> None:
    """The user's routes decide where a handler without a queue of its own goes."""
    app = bind(make_app(task_routes={"shop.mail.*": {"queue": "mail"}}))
    offloaded(evt, "shop.mail.send", "shop.other")
    emit(evt)
    with app.connection_for_read() as connection:
        sizes = {name: connection.default_channel._size(name) for name in ("mail", "celery")}
    assert sizes == {"mail": 1, "celery": 1}


def test_task_annotations_are_honoured(evt: Event, make_app: Any) -> None:
    """The user's annotations reach handlers by their names."""
    app = bind(make_app(task_annotations={"shop.a": {"rate_limit": "7/m"}}))
    offloaded(evt, "shop.a", "shop.b")
    assert (app.tasks["shop.a"].rate_limit, app.tasks["shop.b"].rate_limit) == ("7/m", None)


@pytest.mark.parametrize("enabled", [True, False])
def test_task_sent_event_is_honoured(evt: Event, make_app: Any, enabled: bool) -> None:
    """With `task_send_sent_event` Flower sees a handler from the moment it is queued."""
    app = bind(make_app(task_send_sent_event=enabled))
    offloaded(evt, "shop.a")
    with app.connection_for_read() as connection:
        queue = app.events.Receiver(connection).queue(connection.default_channel)
        queue.declare()
        emission = emit(evt)
        message = queue.get(no_ack=True)
    seen = [(message.payload["type"], message.payload["name"], message.payload["uuid"])] if message else []
    assert seen == ([("task-sent", *item) for item in emission.offloaded.items()] if enabled else [])
