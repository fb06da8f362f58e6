"""The Celery tasks of offloaded handlers, and their registration with apps and workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

from celery import Celery, Task, _state
from celery._state import connect_on_app_finalize
from celery.exceptions import Reject
from celery.signals import import_modules, task_unknown, worker_process_shutdown
from celery.utils.imports import symbol_by_name

from nitro.errors import DuplicateHandler, SignatureRefused
from nitro.infrastructure.events import ANY, Emission
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.app import bind_hooks, is_queueing_app
from nitro.infrastructure.offload.broker import acquire_producer
from nitro.infrastructure.offload.conf import read_setting
from nitro.infrastructure.offload.declarations import (
    Declaration,
    argument_checker,
    declaration_hooks,
    declarations_by_name,
)
from nitro.infrastructure.offload.envelope import ENVELOPE_KEY, TRACKED_DELIVERIES, Envelope
from nitro.infrastructure.offload.options import DELIVERY_HEADER, Offload
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox import claims
from nitro.infrastructure.outbox.journal import journal
from nitro.infrastructure.worker import accepting, control, deferred_writes, modules, redis_acks, supervisor
from nitro.infrastructure.worker.attempt import current_claim, run_tracked
from nitro.infrastructure.worker.execution import execute
from nitro.infrastructure.worker.loop import unwind_on_termination
from nitro.infrastructure.worker.request import HandlerRequest, emission_id_in
from nitro.infrastructure.worker.tracebacks import StorableTracebackBackend

logger = get_logger("nitro.worker")

LATE_ACK_OPTIONS = {"acks_late": True, "reject_on_worker_lost": True, "serializer": "json"}
EXIT_FLUSH_SECONDS = 2.0
"""Seconds that an ending process of a pool waits for the broker, and again for the database."""

RETRY_DEFAULTS: dict[str, Any] = {
    "autoretry_for": (Exception,),
    "max_retries": 10,
    "retry_backoff": True,
    "retry_backoff_max": 600,
    "retry_jitter": True,
}


class HandlerTask:
    """Mixin of the app's task class for handlers: adds the codec, tracked runs, and readable monitoring."""

    declaration: Declaration
    has_custom_call: bool
    app: Celery
    request: Any
    run: Callable[..., Any]
    typing: bool

    @property
    def backend(self) -> Any:
        """The result backend of the task, which can store the traceback of any error."""
        return StorableTracebackBackend(cast(Any, super()).backend)

    @backend.setter
    def backend(self, backend: Any) -> None:
        self._backend = backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the handler: in a worker as a delivery of its message, elsewhere as Celery runs a called task."""
        celery_call: Callable[..., Any] = cast(Any, super()).__call__
        if self.request.called_directly:
            return celery_call(*args, **kwargs)
        body = partial(celery_call if self.has_custom_call else self.run, *args, **kwargs)
        envelope = self.request.nitro = Envelope.read(kwargs, self.declaration.name, args)
        if envelope is None or envelope.payload is not None:
            return body()
        return run_tracked(self, envelope, body)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publishes a message for the handler; encodes plain arguments, with the options of the first `@on`."""
        if ENVELOPE_KEY not in (kwargs or {}):
            if self.typing:
                argument_checker(self.declaration.function)(*(args or ()), **(kwargs or {}))
            options = {**self.declaration.offload.message_options, **options}
            args, kwargs = (), self._encode_call(args, kwargs)
        envelope, kwargs = self._with_signature(args or (), kwargs)
        options.setdefault("argsrepr", "()")
        options.setdefault("kwargsrepr", str(envelope))
        publish = partial(cast(Any, super()).apply_async, args, kwargs)
        if options.get("producer") or options.get("connection") or read_setting(self.app, "task_always_eager"):
            return publish(**options)
        with acquire_producer(self.app) as producer:
            return publish(**{**options, "producer": producer})

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Runs the handler in this process, through the codec as in a worker."""
        if ENVELOPE_KEY not in (kwargs or {}):
            args, kwargs = (), self._encode_call(args, kwargs)
        _, kwargs = self._with_signature(args or (), kwargs)
        return cast(Any, super()).apply(args, kwargs, **options)

    def signature(self, args: Any = None, kwargs: Any = None, options: Any = None, **more: Any) -> Any:
        """Returns a Celery signature with encoded arguments, for use in a canvas."""
        if ENVELOPE_KEY not in (kwargs or {}):
            options = {**self.declaration.offload.message_options, **(options or {})}
            args, kwargs = (), self._encode_call(args, kwargs)
        return cast(Any, super()).signature(args, kwargs, options, **more)

    subtask = signature

    def retry(self, *args: Any, exc: BaseException | None = None, **options: Any) -> Any:
        """Retries like Celery; at-most-once deliveries and messages with a refused signature fail instead."""
        if isinstance(exc, SignatureRefused):
            raise exc
        headers = self.request.headers or {}  # an eager run has them only here
        if exc is not None and "at-most-once" in (self.request.get(DELIVERY_HEADER), headers.get(DELIVERY_HEADER)):
            raise exc
        return cast(Any, super()).retry(*args, exc=exc, **options)

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """Returns the signature that Celery publishes to retry; for a tracked run one that publishes nothing."""
        run = current_claim.get()
        if run is not None and run.handler == self.declaration.name and not self.request.is_eager:
            return UnpublishedSignature()
        return cast(Any, super()).signature_from_request(request, *args, **options)

    def _with_signature(self, args: Any, kwargs: Any) -> tuple[Envelope | None, dict[str, Any]]:
        """Returns the envelope, and kwargs whose signature covers the positional arguments that a chain prepends."""
        try:
            return Envelope.read(kwargs, self.declaration.name, args), kwargs
        except SignatureRefused:
            envelope = Envelope.read(kwargs, self.declaration.name)
            assert envelope is not None
            return envelope, envelope.kwargs(self.declaration.name, args)

    def _encode_call(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """Returns the kwargs for a call of the task outside of an emit; without a sender the envelope is `bare`."""
        sender, *rest = args or (ANY,)
        call = Call(sender=sender, args=tuple(rest), kwargs=kwargs or {})
        envelope = Envelope.of(Emission.of(""), call, self.declaration.offload.entity)
        return replace(envelope, bare=not args).kwargs(self.declaration.name)


class UnpublishedSignature:
    """A signature that publishes nothing."""

    args: tuple[Any, ...] = ()
    kwargs: ClassVar[dict[str, Any]] = {}

    def apply_async(self) -> None:
        """Does nothing: the run is rescheduled in its row when it is closed."""


def register_task(app: Celery, declaration: Declaration) -> None:
    """Registers the Celery task of a handler, in place of the task of an earlier definition.

    Raises:
        DuplicateHandler: the app has another task of that name.
    """
    # Not `app.tasks`: kombu locks that property for all apps. Another thread may hold the lock while it waits for this
    # app to be finalized, which would be a deadlock.
    other = app._tasks.get(declaration.name)
    if other is not None and not isinstance(other, HandlerTask):
        if is_queueing_app(app):
            raise DuplicateHandler(declaration.name, f"a task of the app {app.main!r}", declaration.location)
        logger.warning("the app %r keeps its own task %s: no handler of that name runs there", app.main, other.name)
        return
    base: Any = declaration.offload.base or app.Task
    app._tasks.pop(declaration.name, None)
    register = Celery.task(  # not `app.task`, which a subclass of Celery may override
        app,
        name=declaration.name,
        lazy=False,
        shared=False,
        base=type("HandlerTask", (HandlerTask, base), {"abstract": True}),
        declaration=declaration,
        has_custom_call=_has_custom_call(base),
        Request=type("HandlerRequest", (HandlerRequest, symbol_by_name(base.Request)), {}),
        **_task_options(declaration.offload, base),
    )
    register(_task_body(app, declaration))


def _has_custom_call(base: type) -> bool:
    """Whether the app's own task class overrides `__call__`."""
    return any("__call__" in vars(cls) for cls in base.__mro__[: base.__mro__.index(Task)])


def _task_options(offload: Offload, base: type) -> dict[str, Any]:
    """Returns the handler's task options over Nitro's defaults; retry options of the app's task class are kept."""
    given_options = offload.task_options()
    retry_options = {
        name: value for name, value in RETRY_DEFAULTS.items() if getattr(base, name, None) == getattr(Task, name, None)
    }
    if "autoretry_for" in retry_options and "autoretry_for" not in given_options:
        given_options["dont_autoretry_for"] = (
            Reject,
            *offload.throws,
            *offload.dont_autoretry_for,
            *getattr(base, "throws", ()),
        )
    return {**LATE_ACK_OPTIONS, **retry_options, **given_options}


def _task_body(app: Celery, declaration: Declaration) -> Callable[..., Any]:
    """Returns the function of the task, with name, module and docstring of the handler."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return execute(app.tasks[declaration.name], declaration, args, kwargs)

    if declaration.function.__name__.isidentifier():  # Celery compiles a function of that name, so `<lambda>` is no use
        run.__name__, run.__qualname__ = declaration.function.__name__, declaration.function.__qualname__
    run.__doc__, run.__module__ = declaration.function.__doc__, declaration.function.__module__
    return run


def register_handlers() -> None:
    """Connects Nitro to Celery: each finalized app gets a task for every handler, and for each one declared later."""
    import_modules.connect(modules.import_handlers, weak=False)
    worker_process_shutdown.connect(unwind_on_termination, weak=False)
    worker_process_shutdown.connect(_flush_before_exit, weak=False)
    task_unknown.connect(_requeue_unknown, weak=False)
    connect_on_app_finalize(_register_all)
    control.register_commands()
    bind_hooks.add(_add_worker_steps)
    for app in _state._get_active_apps():
        _add_worker_steps(app)  # now, because the command line reads the options of a worker early
    for app in _finalized_apps():
        _register_all(app)
    declaration_hooks.add(_register_late)


def _flush_before_exit(**_signal: object) -> None:
    """Publishes the last messages of an ending pool process; otherwise they would wait for the end of their lease."""
    publisher.drain(EXIT_FLUSH_SECONDS)
    journal.flush(EXIT_FLUSH_SECONDS)


def _requeue_unknown(name: str, message: Any, **_signal: Any) -> None:
    """Requeues a tracked delivery whose message Celery drops, because the worker does not know its handler."""
    body = message.decode()
    emission = emission_id_in(body[1] if isinstance(body, list | tuple) and len(body) > 1 else None)
    if message.headers.get(DELIVERY_HEADER) in TRACKED_DELIVERIES and emission is not None:
        error = "unknown to the worker that took it: is its module among NITRO_HANDLERS?"
        deferred_writes.defer(partial(claims.requeue_unknown, emission, name, RETRY_DEFAULTS["max_retries"], error))


def _add_worker_steps(app: Celery) -> None:
    accepting.attach(app)
    supervisor.attach(app)
    redis_acks.attach(app)


def _register_all(app: Celery) -> None:
    _add_worker_steps(app)
    for declaration in list(declarations_by_name.values()):
        register_task(app, declaration)


def _register_late(declaration: Declaration) -> None:
    for app in _finalized_apps():
        register_task(app, declaration)


def _finalized_apps() -> list[Celery]:
    return [app for app in _state._get_active_apps() if app.finalized]
