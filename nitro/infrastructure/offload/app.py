"""Which Celery app: the bound one, else Celery's current one, else Nitro's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from celery import Celery, _state

from nitro.errors import DeclarationError
from nitro.infrastructure.database import use_engine
from nitro.infrastructure.events.ports import dispatcher
from nitro.infrastructure.offload.celery_defaults import configure_own_app, configure_users_app
from nitro.infrastructure.threads import ForkSafeLock
from nitro.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    Database = Engine | AsyncEngine | URL | str

_lock = ForkSafeLock()
bind_hooks: list[Callable[[Celery], None]] = []
"""Who equips each app that is bound."""

_bound_app: list[Celery] = []
_own_app: list[Celery] = []


def bind(app: Celery, engine: Database | None = None) -> Celery:
    """Use this Celery app, and this database engine, for offloaded handlers; returns the app.

    Its settings and its other tasks stay as they are: what handlers need is set on their own tasks, and on
    connections of Nitro's own. An app that names no broker in any way gets Nitro's.

    Args:
        engine: an `Engine`, an `AsyncEngine`, for whose database Nitro makes a synchronous one, or a URL.

    Raises:
        SettingError: a `NITRO_*` variable has a value that is not allowed.
        DatabaseRefused: the engine cannot be used; says why.
    """
    Settings.load()
    dispatcher()
    if engine is not None:
        use_engine(engine)
    configure_users_app(app)
    for tell in bind_hooks:
        tell(app)
    _bound_app[:] = [app]
    return app


def current_app() -> Celery:
    """The app that queues and runs offloaded handlers.

    Raises:
        DeclarationError: the program has several apps, and which is meant cannot be told from this thread.
    """
    if _bound_app:
        return _bound_app[0]
    app = _current_celery_app()
    if app is not None:
        return app
    with _lock:
        if not _own_app:
            app = Celery("nitro", set_as_current=False)
            app.config_from_object("celeryconfig", silent=True)
            _own_app.append(configure_own_app(app, queue=True))
    return _own_app[0]


def queueing_app(app: Celery) -> Celery:
    """The app that queues offloaded handlers in a process that runs this one: the bound app, else this."""
    return _bound_app[0] if _bound_app else app


def is_queueing_app(app: Celery) -> bool:
    """Whether offloaded handlers are queued through this app, as far as can be told from this thread."""
    return app in (_bound_app or _own_app) or (not _bound_app and app is _state._tls.current_app)


def _current_celery_app() -> Celery | None:
    """The app that Celery calls current: of this thread, the default one, or the one that the program has made."""
    if _state._tls.current_app is not None:
        return _state._tls.current_app
    default = _state.default_app
    if default is not None and default.set_as_current:  # else Celery has made it for want of any
        return default
    made = [app for app in _state._get_active_apps() if app.set_as_current]
    if len(made) > 1:
        names = ", ".join(sorted(repr(app.main) for app in made))
        raise DeclarationError(f"the Celery apps {names} could all be meant here; say which with bind(app)")
    return made[0] if made else None
