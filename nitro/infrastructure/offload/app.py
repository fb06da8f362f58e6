"""The Celery app that Nitro uses: the bound one, else Celery's current one, else Nitro's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from celery import Celery, _state

from nitro.errors import DeclarationError
from nitro.infrastructure.database import use_engine
from nitro.infrastructure.events.ports import dispatcher
from nitro.infrastructure.hooks import Hooks, Slot
from nitro.infrastructure.offload.celery_defaults import configure_own_app, configure_users_app
from nitro.infrastructure.threads import ForkSafeLock
from nitro.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    Database = Engine | AsyncEngine | URL | str

_lock = ForkSafeLock()
bind_hooks: Hooks[Callable[[Celery], None]] = Hooks()
"""Functions that are called with each app that is bound."""

_bound_app: Slot[Celery] = Slot()
_own_app: Slot[Celery] = Slot()


def bind(app: Celery, engine: Database | None = None) -> Celery:
    """Binds Nitro to a Celery app, and to a database engine if one is given, and returns the app.

    The app's settings and its other tasks stay as they are: Nitro sets options on the tasks of handlers and on
    connections of its own. An app that names no broker gets Nitro's.

    Args:
        app: the Celery app that queues and runs offloaded handlers.
        engine: an `Engine`, a URL, or an `AsyncEngine`; for the latter Nitro makes a synchronous engine.

    Raises:
        SettingError: a `NITRO_*` variable has a value that is not allowed.
        DatabaseRefused: the engine cannot be used; says why.
    """
    Settings.load()
    dispatcher()
    if engine is not None:
        use_engine(engine)
    configure_users_app(app)
    for hook in bind_hooks:
        hook(app)
    _bound_app.value = app
    return app


def current_app() -> Celery:
    """Returns the app that queues and runs offloaded handlers.

    Raises:
        DeclarationError: the program has several apps, and this thread has no current one.
    """
    app = _bound_app.value or _current_celery_app() or _own_app.value
    if app is not None:
        return app
    with _lock:
        if _own_app.value is None:
            app = Celery("nitro", set_as_current=False)
            app.config_from_object("celeryconfig", silent=True)
            _own_app.value = configure_own_app(app, queue=True)
        return _own_app.value


def queueing_app(app: Celery) -> Celery:
    """Returns the app that queues offloaded handlers in a process that runs `app`: the bound app, else `app`."""
    return _bound_app.value or app


def is_queueing_app(app: Celery) -> bool:
    """Whether this thread queues offloaded handlers through this app."""
    if _bound_app.value is not None:
        return app is _bound_app.value
    return app is _own_app.value or app is _state._tls.current_app


def _current_celery_app() -> Celery | None:
    """Returns Celery's current app: that of the thread, the default app, or the only app of the program."""
    if _state._tls.current_app is not None:
        return _state._tls.current_app
    default = _state.default_app
    if default is not None and default.set_as_current:  # false for the fallback app that Celery makes itself
        return default
    apps = [app for app in _state._get_active_apps() if app.set_as_current]
    if len(apps) > 1:
        names = ", ".join(sorted(repr(app.main) for app in apps))
        raise DeclarationError(f"the Celery apps {names} could all be meant here; say which with bind(app)")
    return apps[0] if apps else None
