"""`bind`: settings that it adds to an app, and settings that it leaves alone: contract section 2."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task

from nitro.errors import SettingError
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from support.app import has_embedded_broker

pytestmark = pytest.mark.usefixtures("offloading")

TASK_ATTRIBUTES = (
    "acks_late",
    "reject_on_worker_lost",
    "serializer",
    "ignore_result",
    "rate_limit",
    "track_started",
    "max_retries",
)
"""Attributes of a task that settings decide."""

REDIS = "redis://127.0.0.1:6379/4"
IN_MEMORY = {"broker_url": "memory://"}
SETTINGS: dict[str, dict[str, Any]] = {
    "url": IN_MEMORY,
    "redis": {"broker_url": REDIS, "broker_transport_options": {"visibility_timeout": 10}},
    "list": {"broker_url": ["redis://127.0.0.1:1/0", REDIS]},
    "text with several": {"broker_url": f"redis://127.0.0.1:1/0;{REDIS}"},
    "one to read and one to write": {"broker_read_url": REDIS, "broker_write_url": REDIS},
    "one to write": {"broker_write_url": REDIS},
    "host": {"broker_host": "127.0.0.1", "broker_port": 6379, "broker_vhost": "4", "broker_transport": "redis"},
    "transport": {"broker_transport": "memory"},
    "rabbitmq": {"broker_url": "amqp://guest:guest@127.0.0.1:5672//"},
    "annotations for all": {**IN_MEMORY, "task_annotations": {"*": {"rate_limit": "10/s", "acks_late": False}}},
    "early": {**IN_MEMORY, "task_acks_late": False, "task_reject_on_worker_lost": False},
    "late": {**IN_MEMORY, "task_acks_late": True},
    "old names": {"BROKER_URL": "memory://", "CELERYD_PREFETCH_MULTIPLIER": 8},
    "its own values": {
        **IN_MEMORY,
        "worker_prefetch_multiplier": 8,
        "task_serializer": "yaml",
        "accept_content": ["json", "yaml"],
        "result_backend": "db+sqlite:///mine.db",
        "broker_connection_max_retries": 7,
    },
}


def configured_by_constructor(make: Callable[..., Celery], settings: dict[str, Any]) -> Celery:
    return make("shop", changes=dict(settings))


def configured_by_conf(make: Callable[..., Celery], settings: dict[str, Any]) -> Celery:
    app = make("shop")
    app.conf.update(settings)
    return app


def configured_by_object(make: Callable[..., Celery], settings: dict[str, Any]) -> Celery:
    app = make("shop")
    app.config_from_object(settings)
    return app


def configured_by_namespace(make: Callable[..., Celery], settings: dict[str, Any]) -> Celery:
    app = make("shop")
    if "BROKER_URL" in settings:
        pytest.skip("an old name has no namespace")
    values = SimpleNamespace(**{f"CELERY_{name.upper()}": value for name, value in settings.items()})
    app.config_from_object(values, namespace="CELERY")
    return app


CONFIGURED = [configured_by_constructor, configured_by_conf, configured_by_object, configured_by_namespace]


def facts_of(app: Celery) -> dict[str, Any]:
    """Returns all settings of an app, and their effect on its own task."""

    @app.task(name="shop.plain", shared=False)
    def plain() -> None: ...

    attributes = {name: getattr(app.tasks["shop.plain"], name) for name in TASK_ATTRIBUTES}
    settings = {name: deepcopy(value) for name, value in dict(app.conf).items() if not name.startswith("__")}
    return {"conf": settings, "task": attributes}


def test_bind_returns_the_app(celery_app: Callable[..., Celery]) -> None:
    """`bind` returns its app, so that `app = bind(Celery(...))` is one line."""
    app = celery_app("shop", broker="memory://")
    assert bind(app) is app


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("configure", CONFIGURED, ids=lambda function: function.__name__)
def test_bind_changes_nothing(celery_app: Callable[..., Celery], configure: Any, settings: dict[str, Any]) -> None:
    """All settings, and the attributes of other tasks, are the same with and without `bind`."""
    before = facts_of(configure(celery_app, settings))
    assert facts_of(bind(configure(celery_app, settings))) == before


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_BROKER_READ_URL"])
def test_a_broker_of_the_environment_is_one(
    celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A broker in Celery's environment variables is used, as without `bind`."""
    monkeypatch.setenv(name, REDIS)
    before = facts_of(celery_app("shop"))
    assert facts_of(bind(celery_app("shop"))) == before


def test_bind_before_the_configuration_changes_nothing(celery_app: Callable[..., Celery]) -> None:
    """`bind` before the configuration has the same result as after it."""
    before = facts_of(configured_by_object(celery_app, SETTINGS["list"]))
    app = bind(celery_app("shop"))
    app.config_from_object(SETTINGS["list"])
    assert facts_of(app) == before


@pytest.mark.parametrize("settings", [SETTINGS["early"], SETTINGS["late"], IN_MEMORY], ids=["early", "late", "none"])
def test_a_running_worker_changes_nothing(
    celery_app: Callable[..., Celery], evt: Event, work_for_a_while: Callable[..., Any], settings: dict[str, Any]
) -> None:
    """A worker that has run a handler has the same settings and other tasks as a worker without `bind`."""
    results = {"result_backend": "cache+memory://", "worker_hijack_root_logger": False}
    other = configured_by_object(celery_app, {**settings, **results})
    with work_for_a_while(other):
        pass
    app = bind(configured_by_object(celery_app, {**settings, **results}))
    handler = on(evt, offload={"ignore_result": False}, name="shop.handler")(lambda sender: None)
    with work_for_a_while(app) as outcomes:
        outcomes.only(emit(evt))
    assert handler.task.acks_late is True
    bound_facts, other_facts = facts_of(app), facts_of(other)
    for facts in (bound_facts, other_facts):
        del facts["conf"]["include"]  # Celery's worker adds the modules of all tasks
    assert bound_facts == other_facts


@pytest.mark.parametrize("early", [False, None], ids=["said", "by default"])
def test_handlers_are_acknowledged_late(celery_app: Callable[..., Celery], evt: Event, early: bool | None) -> None:
    """Tasks of handlers are acknowledged late and sent as JSON, whatever the settings of the app."""
    settings = {**IN_MEMORY, **({} if early is None else SETTINGS["early"]), "task_serializer": "yaml"}
    bind(configured_by_object(celery_app, settings))
    task = on(evt, offload=True, name="shop.handler")(lambda sender: None).task
    assert (task.acks_late, task.reject_on_worker_lost, task.serializer) == (True, True, "json")


def test_options_that_were_given_win(celery_app: Callable[..., Celery], evt: Event) -> None:
    """Options of the registration and annotations win over Nitro's defaults."""
    bind(configured_by_object(celery_app, {**IN_MEMORY, "task_annotations": {"*": {"reject_on_worker_lost": False}}}))
    task = on(evt, offload={"acks_late": False}, name="shop.handler")(lambda sender: None).task
    assert (task.acks_late, task.reject_on_worker_lost) == (False, False)


@pytest.mark.parametrize("configure", CONFIGURED[1:], ids=lambda function: function.__name__)
def test_an_empty_broker_is_none(celery_app: Callable[..., Celery], configure: Any) -> None:
    """A `broker_url` of None, as of a missing environment variable, counts as no broker."""
    app = bind(configure(celery_app, {"broker_url": None}))
    assert has_embedded_broker(app)


def test_app_without_a_broker_gets_the_one_of_the_settings(
    celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`NITRO_BROKER_URL` is for apps that name no broker."""
    monkeypatch.setenv("NITRO_BROKER_URL", "redis://127.0.0.1:6379/8")
    assert bind(celery_app("mine", broker="memory://")).conf.broker_url == "memory://"
    assert bind(celery_app("other")).conf.broker_url == "redis://127.0.0.1:6379/8"


def test_app_without_anything_gets_the_embedded_broker(celery_app: Callable[..., Celery], tmp_path: Path) -> None:
    """Without a setting and a server the broker is a folder under `NITRO_HOME`, with results beside it."""
    app = bind(celery_app("shop"))
    app.send_task("shop.plain")
    assert len(list((tmp_path / "home/queue").iterdir())) == 1
    assert str(tmp_path / "home" / "results.db") in app.conf.result_backend


LATER: dict[str, dict[str, Any]] = {
    "url": {"broker_url": IN_MEMORY["broker_url"]},
    "one to read and one to write": {"broker_read_url": "memory://", "broker_write_url": "memory://"},
}


@pytest.mark.parametrize("settings", LATER.values(), ids=LATER)
def test_a_broker_that_is_named_later_is_the_one(celery_app: Callable[..., Celery], settings: dict[str, Any]) -> None:
    """A broker that the app names later replaces Nitro's, with all settings that belong to it."""
    before = celery_app("shop")
    app = bind(celery_app("shop"))
    for each in (before, app):
        assert each.conf.timezone is None
        each.conf.update(settings)
    assert {name: app.conf[name] for name in BROKER_SETTINGS} == {name: before.conf[name] for name in BROKER_SETTINGS}
    assert app.connection_for_write().transport.driver_type == "memory"


BROKER_SETTINGS = ("broker_transport", "broker_transport_options", "result_backend", "database_engine_options")


def test_a_connection_of_the_users_own_leads_where_it_says(celery_app: Callable[..., Celery]) -> None:
    """`app.connection(url)` leads to that URL, although the app names no broker."""
    app = bind(celery_app("shop"))
    assert app.connection("memory://").transport.driver_type == "memory"


def test_app_that_gets_a_broker_keeps_the_rest(celery_app: Callable[..., Celery]) -> None:
    """Nitro adds the settings of broker and results to an app without a broker, and no others."""
    before = facts_of(celery_app("shop"))
    after = facts_of(bind(celery_app("shop")))
    changed = {name for name in after["conf"] if after["conf"][name] != before["conf"].get(name)}
    assert changed == {"broker_url", "result_backend", "database_engine_options"}
    assert after["task"] == before["task"]


def test_bind_checks_the_settings(celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong setting of Nitro's raises at `bind`."""
    monkeypatch.setenv("NITRO_DELIVERY", "twice")
    with pytest.raises(SettingError, match="NITRO_DELIVERY"):
        bind(celery_app("shop", broker="memory://"))


def test_bind_keeps_the_task_class(celery_app: Callable[..., Celery], evt: Event) -> None:
    """Handlers and other tasks are instances of the app's task class."""

    class OwnTask(Task):
        greeting = "hello"

    app = bind(celery_app("shop", broker="memory://", task_cls=OwnTask))
    handler = on(evt, offload=True, name="shop.handler")(lambda sender: None)

    @app.task(name="shop.plain", shared=False)
    def untouched() -> None: ...

    assert app.task_cls is OwnTask
    assert isinstance(app.tasks["shop.handler"], OwnTask)
    assert handler.task.greeting == "hello"
    assert isinstance(app.tasks["shop.plain"], OwnTask)


def test_own_base_of_a_handler(celery_app: Callable[..., Celery], evt: Event) -> None:
    """`Offload(base=…)` sets the task class of one handler, as in Celery."""

    class OwnTask(Task):
        greeting = "hello"

    bind(celery_app("shop", broker="memory://"))
    assert on(evt, offload={"base": OwnTask}, name="shop.handler")(lambda sender: None).task.greeting == "hello"


def test_bind_takes_an_engine(celery_app: Callable[..., Celery], tmp_path: Path) -> None:
    """`bind(app, engine)` is the whole set-up of an application that has its own engine."""
    from sqlalchemy import create_engine

    from nitro.infrastructure import database

    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    bind(celery_app("shop", broker="memory://"), engine)
    assert database.engine() is engine
    engine.dispose()


@pytest.mark.parametrize("queue", ["celery", "mail"])
def test_a_worker_that_would_refuse_handlers_does_not_start(
    celery_app: Callable[..., Celery], evt: Event, queue: str
) -> None:
    """A worker that does not accept JSON exits with instructions before it takes messages of handlers."""
    app = bind(configured_by_object(celery_app, {**IN_MEMORY, "accept_content": ["yaml"]}))
    on(evt, offload={"queue": queue}, name="shop.mail")(lambda sender: None)
    with pytest.raises(SystemExit, match=r"accept_content of the app 'shop' is yaml.*shop\.mail are JSON: add 'json'"):
        app.Worker(queues=[queue], pool="solo")


@pytest.mark.parametrize(("queue", "accepted"), [("others", "yaml"), ("celery", "application/json")])
def test_a_worker_that_gets_what_it_accepts_starts(
    celery_app: Callable[..., Celery], evt: Event, queue: str, accepted: str
) -> None:
    """A worker starts if it accepts JSON, or if its queues hold no handlers."""
    app = bind(configured_by_object(celery_app, {**IN_MEMORY, "accept_content": [accepted]}))
    on(evt, offload=True, name="shop.mail")(lambda sender: None)
    assert app.Worker(queues=[queue], pool="solo")
