"""`bind`: what it sets in an app, and what it leaves alone: contract section 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task

from nitro.errors import SettingError
from nitro.infrastructure.events import Event, on
from nitro.infrastructure.offload import bind

pytestmark = pytest.mark.usefixtures("offloading")

SAFE = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    "task_serializer": "json",
    "accept_content": ["json"],
}
UNSAFE = {
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    "worker_prefetch_multiplier": 4,
    "task_serializer": "yaml",
    "accept_content": ["json", "yaml"],
}


def conf_of(app: Celery, names: Any) -> dict[str, Any]:
    return {name: app.conf[name] for name in names}


def test_bind_returns_the_app(celery_app: Callable[..., Celery]) -> None:
    """`app = bind(Celery(...))` is one line."""
    app = celery_app("shop", broker="memory://")
    assert bind(app) is app


def test_bind_sets_safe_values_where_the_app_has_none(celery_app: Callable[..., Celery]) -> None:
    """A fresh app loses no task and speaks JSON only."""
    app = bind(celery_app("shop", broker="memory://"))
    assert conf_of(app, SAFE) == SAFE


def configured_by_constructor(make: Callable[..., Celery]) -> Celery:
    return make("shop", broker="memory://", changes=dict(UNSAFE))


def configured_by_conf(make: Callable[..., Celery]) -> Celery:
    app = make("shop", broker="memory://")
    app.conf.update(UNSAFE)
    return app


def configured_by_object(make: Callable[..., Celery]) -> Celery:
    app = make("shop")
    app.config_from_object({"broker_url": "memory://", **UNSAFE})
    return app


def configured_by_namespace(make: Callable[..., Celery]) -> Celery:
    app = make("shop")
    values = {"broker_url": "memory://", **UNSAFE}
    app.config_from_object(SimpleNamespace(**{f"CELERY_{k.upper()}": v for k, v in values.items()}), namespace="CELERY")
    return app


def configured_by_old_names(make: Callable[..., Celery]) -> Celery:
    app = make("shop")
    app.config_from_object(
        {
            "BROKER_URL": "memory://",
            "CELERY_ACKS_LATE": False,
            "CELERY_REJECT_ON_WORKER_LOST": False,
            "CELERYD_PREFETCH_MULTIPLIER": 4,
            "CELERY_TASK_SERIALIZER": "yaml",
            "CELERY_ACCEPT_CONTENT": ["json", "yaml"],
        }
    )
    return app


CONFIGURED = [
    configured_by_constructor,
    configured_by_conf,
    configured_by_object,
    configured_by_namespace,
    configured_by_old_names,
]


@pytest.mark.parametrize("configure", CONFIGURED, ids=lambda function: function.__name__)
def test_bind_keeps_what_the_app_has_set(celery_app: Callable[..., Celery], configure: Any) -> None:
    """However the user configured the app, their values stay."""
    app = bind(configure(celery_app))
    assert conf_of(app, UNSAFE) == UNSAFE
    assert app.conf.broker_url == "memory://"


def test_configuration_after_bind_wins(celery_app: Callable[..., Celery]) -> None:
    """The order of the two lines does not matter."""
    app = bind(celery_app("shop"))
    app.config_from_object({"broker_url": "memory://", "worker_prefetch_multiplier": 4})
    assert (app.conf.worker_prefetch_multiplier, app.conf.broker_url) == (4, "memory://")
    assert app.conf.task_acks_late is True


def test_bind_twice_changes_nothing(celery_app: Callable[..., Celery]) -> None:
    """A second module may bind the same app."""
    app = bind(bind(celery_app("shop", broker="memory://")))
    assert conf_of(app, SAFE) == SAFE


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
    assert app.conf.broker_url.startswith("filesystem://")
    assert app.conf.broker_transport_options["data_folder_in"].startswith(str(tmp_path / "home"))
    assert str(tmp_path / "home" / "results.db") in app.conf.result_backend


def test_own_transport_options_stay(celery_app: Callable[..., Celery]) -> None:
    """Options that the user gave are not replaced by ours."""
    options = {"visibility_timeout": 10}
    app = bind(celery_app("shop", broker="redis://127.0.0.1/8", changes={"broker_transport_options": options}))
    assert app.conf.broker_transport_options == options


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
