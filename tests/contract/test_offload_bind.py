"""`bind`: what it sets in an app, and what it leaves alone: contract section 2."""

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
from nitro.infrastructure.offload.broker import is_embedded

pytestmark = pytest.mark.usefixtures("offloading")

OTHERS = (
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
    """All settings of an app, and what they make of its own task."""

    @app.task(name="shop.plain", shared=False)
    def plain() -> None: ...

    attributes = {name: getattr(app.tasks["shop.plain"], name) for name in OTHERS}
    settings = {name: deepcopy(value) for name, value in dict(app.conf).items() if not name.startswith("__")}
    return {"conf": settings, "task": attributes}


def test_bind_returns_the_app(celery_app: Callable[..., Celery]) -> None:
    """`app = bind(Celery(...))` is one line."""
    app = celery_app("shop", broker="memory://")
    assert bind(app) is app


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("configure", CONFIGURED, ids=lambda function: function.__name__)
def test_bind_changes_nothing(celery_app: Callable[..., Celery], configure: Any, settings: dict[str, Any]) -> None:
    """Every setting, and what it makes of other tasks, is as it would be without `bind`."""
    before = facts_of(configure(celery_app, settings))
    assert facts_of(bind(configure(celery_app, settings))) == before


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_BROKER_READ_URL"])
def test_a_broker_of_the_environment_is_one(
    celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Celery looks there first."""
    monkeypatch.setenv(name, REDIS)
    before = facts_of(celery_app("shop"))
    assert facts_of(bind(celery_app("shop"))) == before


def test_bind_before_the_configuration_changes_nothing(celery_app: Callable[..., Celery]) -> None:
    """The order of the two lines does not matter."""
    before = facts_of(configured_by_object(celery_app, SETTINGS["list"]))
    app = bind(celery_app("shop"))
    app.config_from_object(SETTINGS["list"])
    assert facts_of(app) == before


@pytest.mark.parametrize("settings", [SETTINGS["early"], SETTINGS["late"], IN_MEMORY], ids=["early", "late", "none"])
def test_a_running_worker_changes_nothing(
    celery_app: Callable[..., Celery], evt: Event, work_for_a_while: Callable[..., Any], settings: dict[str, Any]
) -> None:
    """A worker that has run a handler leaves all settings and other tasks as one without `bind` does."""
    results = {"result_backend": "cache+memory://", "worker_hijack_root_logger": False}
    other = configured_by_object(celery_app, {**settings, **results})
    with work_for_a_while(other):
        pass
    app = bind(configured_by_object(celery_app, {**settings, **results}))
    ran = on(evt, offload={"ignore_result": False}, name="shop.handler")(lambda sender: None)
    with work_for_a_while(app) as outcomes:
        outcomes.only(emit(evt))
    assert ran.task.acks_late is True
    mine, others = facts_of(app), facts_of(other)
    for facts in (mine, others):
        del facts["conf"]["include"]  # in which a worker of Celery notes the modules of all tasks
    assert mine == others


@pytest.mark.parametrize("early", [False, None], ids=["said", "by default"])
def test_handlers_are_acknowledged_late(celery_app: Callable[..., Celery], evt: Event, early: bool | None) -> None:
    """What the promises need is set on their own tasks."""
    settings = {**IN_MEMORY, **({} if early is None else SETTINGS["early"]), "task_serializer": "yaml"}
    bind(configured_by_object(celery_app, settings))
    task = on(evt, offload=True, name="shop.handler")(lambda sender: None).task
    assert (task.acks_late, task.reject_on_worker_lost, task.serializer) == (True, True, "json")


def test_options_that_were_given_win(celery_app: Callable[..., Celery], evt: Event) -> None:
    """By the registration, and by annotations."""
    bind(configured_by_object(celery_app, {**IN_MEMORY, "task_annotations": {"*": {"reject_on_worker_lost": False}}}))
    task = on(evt, offload={"acks_late": False}, name="shop.handler")(lambda sender: None).task
    assert (task.acks_late, task.reject_on_worker_lost) == (False, False)


@pytest.mark.parametrize("configure", CONFIGURED[1:], ids=lambda function: function.__name__)
def test_an_empty_broker_is_none(celery_app: Callable[..., Celery], configure: Any) -> None:
    """`broker_url=os.environ.get("BROKER")` of a machine without it."""
    app = bind(configure(celery_app, {"broker_url": None}))
    assert is_embedded(app)


def test_app_without_a_broker_gets_the_one_of_the_settings(
    celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`NITRO_BROKER_URL` is for apps that name no broker."""
    monkeypatch.setenv("NITRO_BROKER_URL", "redis://127.0.0.1:6379/8")
    assert bind(celery_app("mine", broker="memory://")).conf.broker_url == "memory://"
    assert bind(celery_app("other")).conf.broker_url == "redis://127.0.0.1:6379/8"


def test_app_without_anything_gets_the_embedded_broker(celery_app: Callable[..., Celery], tmp_path: Path) -> None:
    """No setting and no server: a folder under `NITRO_HOME`, and results beside it."""
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
    """Also when the settings have been read before, and nothing is left of what Nitro has lent."""
    before = celery_app("shop")
    app = bind(celery_app("shop"))
    for each in (before, app):
        assert each.conf.timezone is None
        each.conf.update(settings)
    assert {name: app.conf[name] for name in UNLENT} == {name: before.conf[name] for name in UNLENT}
    assert app.connection_for_write().transport.driver_type == "memory"


UNLENT = ("broker_transport", "broker_transport_options", "result_backend", "database_engine_options")


def test_a_connection_of_the_users_own_leads_where_it_says(celery_app: Callable[..., Celery]) -> None:
    """An app that names no broker, and connects to one or another by itself."""
    app = bind(celery_app("shop"))
    assert app.connection("memory://").transport.driver_type == "memory"


def test_app_that_gets_a_broker_keeps_the_rest(celery_app: Callable[..., Celery]) -> None:
    """Only what names the broker and its results is put in."""
    before = facts_of(celery_app("shop"))
    after = facts_of(bind(celery_app("shop")))
    changed = {name for name in after["conf"] if after["conf"][name] != before["conf"].get(name)}
    assert changed == {"broker_url", "result_backend", "database_engine_options"}
    assert after["task"] == before["task"]


def test_bind_checks_the_settings(celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value is an error at start."""
    monkeypatch.setenv("NITRO_DELIVERY", "twice")
    with pytest.raises(SettingError, match="NITRO_DELIVERY"):
        bind(celery_app("shop", broker="memory://"))


def test_bind_keeps_the_task_class(celery_app: Callable[..., Celery], evt: Event) -> None:
    """Handlers are tasks of the user's own class, others are untouched."""

    class Mine(Task):
        greeting = "hello"

    app = bind(celery_app("shop", broker="memory://", task_cls=Mine))
    handler = on(evt, offload=True, name="shop.handler")(lambda sender: None)

    @app.task(name="shop.plain", shared=False)
    def untouched() -> None: ...

    assert app.task_cls is Mine
    assert isinstance(app.tasks["shop.handler"], Mine)
    assert handler.task.greeting == "hello"
    assert isinstance(app.tasks["shop.plain"], Mine)


def test_own_base_of_a_handler(celery_app: Callable[..., Celery], evt: Event) -> None:
    """`Offload(base=…)` is Celery's option for one task."""

    class Mine(Task):
        greeting = "hello"

    bind(celery_app("shop", broker="memory://"))
    assert on(evt, offload={"base": Mine}, name="shop.handler")(lambda sender: None).task.greeting == "hello"


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
    """It says what to do; its messages stay where they are."""
    app = bind(configured_by_object(celery_app, {**IN_MEMORY, "accept_content": ["yaml"]}))
    on(evt, offload={"queue": queue}, name="shop.mail")(lambda sender: None)
    with pytest.raises(SystemExit, match=r"accept_content of the app 'shop' is yaml.*shop\.mail are JSON: add 'json'"):
        app.Worker(queues=[queue], pool="solo")


@pytest.mark.parametrize(("queue", "accepted"), [("others", "yaml"), ("celery", "application/json")])
def test_a_worker_that_gets_what_it_accepts_starts(
    celery_app: Callable[..., Celery], evt: Event, queue: str, accepted: str
) -> None:
    """Of handlers nothing comes into its queues, or it takes JSON."""
    app = bind(configured_by_object(celery_app, {**IN_MEMORY, "accept_content": [accepted]}))
    on(evt, offload=True, name="shop.mail")(lambda sender: None)
    assert app.Worker(queues=[queue], pool="solo")
