"""The Celery app that queues handlers where none is bound: contract section 2."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from celery import Celery
from kombu.transport import memory

from nitro.errors import DeclarationError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, emit, emit_async, on
from nitro.infrastructure.offload import bind
from support.app import current_app, has_embedded_broker

pytestmark = pytest.mark.usefixtures("offloading")


def queued_by(emitted: Event) -> int:
    """Emits, and returns the number of messages in the queues of the memory broker."""
    emit(emitted)
    return sum(queue.qsize() for queue in memory.Channel.queues.values())


def test_bound_app_wins_over_the_current_one(celery_app: Callable[..., Celery], evt: Event) -> None:
    """A bound app wins over Celery's current one."""
    bound = bind(celery_app("bound", broker="memory://", set_as_current=False))
    celery_app("current", broker="memory://")
    assert current_app() is bound


def test_current_app_needs_no_line(celery_app: Callable[..., Celery], evt: Event) -> None:
    """The app that Celery calls current queues handlers, and has their tasks."""
    app = celery_app("current", broker="memory://")
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    assert queued_by(evt) == 1
    assert app.tasks["shop.handler"].acks_late is True


def test_current_app_stays_as_it_is(celery_app: Callable[..., Celery], evt: Event) -> None:
    """Without `bind` an app keeps all its settings, Celery's defaults included."""
    app = celery_app("current", broker="memory://")
    before = dict(app.conf)
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    assert queued_by(evt) == 1
    assert dict(app.conf) == before


def test_current_app_may_come_after_the_handlers(celery_app: Callable[..., Celery], evt: Event) -> None:
    """Handlers may be imported before the app is made."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    app = celery_app("current", broker="memory://")
    assert queued_by(evt) == 1
    assert "shop.handler" in app.tasks


def test_current_app_is_found_in_another_thread(celery_app: Callable[..., Celery], evt: Event) -> None:
    """A web server's threads use the app that the main thread has made."""
    app = celery_app("current", broker="memory://")
    found_apps: list[Celery] = []
    thread = threading.Thread(target=lambda: found_apps.append(current_app()))
    thread.start()
    thread.join()
    assert found_apps == [app]


def test_default_app_is_found_in_another_thread_among_several(celery_app: Callable[..., Celery]) -> None:
    """The default app is used in another thread, as in a worker with threads, and no other app."""
    worker_app = celery_app("worker", broker="memory://")
    celery_app("other", broker="memory://")
    worker_app.set_default()
    found_apps: list[Celery] = []
    thread = threading.Thread(target=lambda: found_apps.append(current_app()))
    thread.start()
    thread.join()
    assert found_apps == [worker_app]


def test_own_app_otherwise(tmp_path: Path) -> None:
    """Without an app of the user's Nitro makes one from its settings, always the same."""
    app = current_app()
    assert app is current_app()
    assert has_embedded_broker(app)
    assert app.conf.task_default_queue == "nitro"


def test_own_app_is_not_made_current() -> None:
    """Nitro's own app does not become Celery's current app."""
    from celery import _state

    current_app()
    assert _state._tls.current_app is None


def test_own_app_reads_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker and results of Nitro's own app come from `NITRO_*`."""
    monkeypatch.setenv("NITRO_BROKER_URL", "memory://")
    monkeypatch.setenv("NITRO_RESULT_BACKEND", "cache+memory://")
    app = current_app()
    assert (app.conf.broker_url, app.conf.result_backend) == ("memory://", "cache+memory://")


def test_one_own_app_for_all_threads() -> None:
    """Threads that first emit at the same time share Nitro's own app."""
    ready, found_apps = threading.Barrier(4), []

    def look() -> None:
        ready.wait()
        found_apps.append(current_app())

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found_apps))) == 1


def test_rabbitmq_of_the_own_app_is_a_quorum_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nitro's own app uses a replicated queue on RabbitMQ, with an exchange that supports countdowns."""
    monkeypatch.setenv("NITRO_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//")
    conf = current_app().conf
    assert (conf.task_default_queue_type, conf.task_default_exchange_type) == ("quorum", "topic")


def queues_in_use() -> set[str]:
    """Returns the queues of the memory broker that hold a message."""
    return {name for name, queue in memory.Channel.queues.items() if queue.qsize()}


@pytest.fixture
def two_apps(celery_app: Callable[..., Celery], evt: Event) -> list[Celery]:
    """A library's app and then the shop's, which is the current one here; each has a queue of its own name."""
    created = []
    for name in ("library", "shop"):
        app = celery_app(name, broker="memory://")
        app.conf.task_default_queue = name
        created.append(app)
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    return created


def test_emit_async_queues_through_the_current_app(two_apps: list[Celery], evt: Event) -> None:
    """The app is chosen on the thread that emits, not on the thread that publishes."""
    asyncio.run(emit_async(evt))
    assert queues_in_use() == {"shop"}


def test_commit_on_a_loop_queues_through_the_current_app(two_apps: list[Celery], evt: Event) -> None:
    """The app stays the emitter's when a commit publishes the messages."""

    async def main() -> None:
        with transaction():
            emit(evt)

    asyncio.run(main())
    assert queues_in_use() == {"shop"}


def test_app_that_changes_before_the_commit_is_not_used(two_apps: list[Celery], evt: Event) -> None:
    """Messages are published through the app that was current at the emit."""
    with transaction():
        emit(evt)
        two_apps[0].set_current()
    assert queues_in_use() == {"shop"}


def test_several_apps_and_none_current_is_an_error(two_apps: list[Celery], evt: Event) -> None:
    """With several apps and none current the error names the apps and `bind(app)`."""
    with ThreadPoolExecutor(1) as thread, pytest.raises(DeclarationError, match=r"'library', 'shop'.*bind\(app\)"):
        thread.submit(emit, evt).result()
    assert queues_in_use() == set()
