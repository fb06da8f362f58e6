"""The options of an offloaded handler, checked when its module is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from nitro.errors import DeclarationError, UnknownOption
from nitro.infrastructure.events.names import check_name

DeliveryGuarantee = Literal["at-most-once", "broker", "at-least-once", "exactly-once"]
EntityMode = Literal["snapshot", "reload"]
OnMissing = Literal["fail", "skip"]
BrokerDown = Literal["store", "raise"]

TaskHook = Callable[..., Any] | None
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None
"""Seconds, up to about 3,000 years, so that Python and the database can store the resulting time."""


def in_utc(moment: datetime) -> datetime:
    """Returns a moment with its offset; one without an offset is UTC, as Celery reads `expires` and `eta`."""
    return moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment


Moment = Annotated[datetime, AfterValidator(in_utc)]


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, type) else tuple(value) if isinstance(value, list | set) else value


ErrorTypes = Annotated[tuple[type[BaseException], ...], BeforeValidator(_as_tuple)]


DELIVERY_HEADER = "nitro_delivery"
"""Message header from which a worker's main process reads `delivery=`."""


class MessageOptions(BaseModel):
    """Celery's options of a message (`Task.apply_async`); they belong to one `@on`."""

    compression: str | None = None
    """Compression of the message body, by its name in kombu, such as `"zlib"`."""
    countdown: Seconds = None
    """Seconds from the emit until the handler may start; a tracked delivery waits in its row."""
    delivery_mode: int | str | None = None
    """`2` or `"persistent"` has the broker write the message to disk, `1` or `"transient"` does not."""
    exchange: Any = None
    """Exchange that the message is sent to, by name or as a kombu `Exchange`."""
    expires: Seconds | Moment = None
    """Seconds, or a time, after which the handler does not start any more; a time without an offset is UTC."""
    headers: dict[str, Any] | None = None
    """Headers of the message, in addition to those of Celery and Nitro."""
    priority: Annotated[int, Field(ge=0, le=255)] | None = None
    """Priority of the message, 0 to 255, where the broker has priorities; not the priority of a handler."""
    queue: Any = None
    """Queue that the message is sent to, by name or as a kombu `Queue`; without it the app's routes decide."""
    retry: bool | None = None
    """Whether Celery tries again to publish a message when the connection to the broker is lost."""
    retry_policy: dict[str, Any] | None = None
    """Number and intervals of tries to publish: `max_retries`, `interval_start`, `interval_step`, `interval_max`."""
    routing_key: str | None = None
    """Routing key of the message, for an exchange that routes by it."""


class TaskOptions(BaseModel):
    """Celery's options of a task (attributes of `Task`); a function has one set of them for all its events."""

    acks_late: bool | None = None
    """Whether a message is acknowledged after its handler has run. A tracked delivery does not depend on it."""
    acks_on_failure: bool | None = None
    """Whether a late acknowledgement is also made for a run that raised."""
    acks_on_failure_or_timeout: bool | None = None
    """Both `acks_on_failure` and `acks_on_timeout`; Celery keeps it for older code."""
    acks_on_timeout: bool | None = None
    """Whether a late acknowledgement is also made for a run that its time limit ended."""
    after_return: TaskHook = None
    """Method of the task that Celery calls after each run: `(self, status, retval, task_id, args, kwargs, einfo)`."""
    autoretry_for: ErrorTypes = ()
    """Exceptions after which the handler runs again; a tuple, a list or a single class."""
    before_start: TaskHook = None
    """Method of the task that Celery calls before each run: `(self, task_id, args, kwargs)`."""
    default_retry_delay: Seconds = None
    """Seconds until the next try where `retry_backoff` is off."""
    dont_autoretry_for: ErrorTypes = ()
    """Exceptions that end the delivery at once although `autoretry_for` names a base class of them."""
    ignore_result: bool | None = None
    """`True` leaves state and return value out of the result backend."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """Tries after the first one; after the last of them a tracked delivery is a dead letter."""
    on_failure: TaskHook = None
    """Method of the task that Celery calls when a run has failed: `(self, exc, task_id, args, kwargs, einfo)`."""
    on_retry: TaskHook = None
    """Method of the task that Celery calls before a retry: `(self, exc, task_id, args, kwargs, einfo)`."""
    on_success: TaskHook = None
    """Method of the task that Celery calls when a run has succeeded: `(self, retval, task_id, args, kwargs)`."""
    rate_limit: str | int | float | None = None
    """Maximum of runs that each worker starts: `"10/s"`, `"100/m"`, `"1000/h"`, or a number per second."""
    reject_on_worker_lost: bool | None = None
    """Whether a message goes back to its queue when the process that runs it dies."""
    resultrepr_maxsize: int | None = None
    """Maximum of characters of the result in logs and Flower."""
    retry_backoff: bool | int | float | None = None
    """`True` doubles the wait at each retry, from 1 s on; a number is the first wait in seconds; `False` is off."""
    retry_backoff_max: Seconds = None
    """Maximum of seconds between two tries with `retry_backoff`."""
    retry_jitter: bool | None = None
    """Whether each wait of `retry_backoff` is shortened at random, so that retries do not come all at once."""
    retry_kwargs: dict[str, Any] | None = None
    """Arguments of Celery's `Task.retry` for automatic retries, such as `{"max_retries": 3}`."""
    retry_on_worker_lost: bool | None = None
    """Whether Celery counts the death of the process as a retry of the task."""
    send_events: bool | None = None
    """Whether workers send events about the task, which Flower shows."""
    serializer: Literal["json"] | None = None
    """Format of the message; JSON is the only one."""
    soft_time_limit: Seconds = None
    """Seconds after which `SoftTimeLimitExceeded` is raised in the handler, where the pool enforces it."""
    store_eager_result: bool | None = None
    """Whether the result is stored too when `task_always_eager` runs the handler at once."""
    store_errors_even_if_ignored: bool | None = None
    """Whether errors are stored although `ignore_result` is set."""
    throws: ErrorTypes = ()
    """Exceptions that are expected: no retry, and a log line without a traceback."""
    time_limit: Seconds = None
    """Seconds after which the worker kills the process that runs the handler, where the pool enforces it."""
    track_started: bool | None = None
    """Whether the result backend has the state `STARTED` while the handler runs."""
    trail: bool | None = None
    """Whether a result lists the tasks that the handler has started."""
    typing: bool | None = None
    """Whether `.delay` and `.apply_async` check their arguments; the app's `strict_typing` unless given."""


class Offload(MessageOptions, TaskOptions):
    """Options of an offloaded handler.

    Celery's options have Celery's names and meaning (Celery user guide: Tasks, Calling Tasks). An option that is
    not given is left to Celery and to the app's task class, except for retries: by default every exception outside
    of `throws` is retried up to 10 times, after 1 to 600 s that grow exponentially with jitter.

    Args:
        delivery: delivery guarantee, see the page Delivery; `NITRO_DELIVERY` when not given.
        entity: `"snapshot"` sends entities as they are at the emit, `"reload"` reads their rows in the worker.
        on_missing: effect of a missing row with `entity="reload"`: the task fails, or is skipped.
        broker_down: effect of a broker that is down: store the message and send it later, or raise.
        base: task class of this handler instead of the app's.

    Raises:
        UnknownOption: an option does not exist; suggests the nearest.
        DeclarationError: the option does not allow the value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    delivery: DeliveryGuarantee | None = None
    entity: EntityMode = "snapshot"
    on_missing: OnMissing = "fail"
    broker_down: BrokerDown = "store"
    base: type | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, validate: ModelWrapValidatorHandler[Offload]) -> Offload:
        for option in values if isinstance(values, dict) else ():
            if option not in cls.model_fields:
                raise UnknownOption(option, get_close_matches(str(option), cls.model_fields, n=1))
        try:
            offload = validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise DeclarationError(f"offload option {first['loc'][0]}={first['input']!r}: {first['msg']}") from error
        for option in ("queue", "exchange", "routing_key"):
            value = getattr(offload, option)
            check_name(f"offload option {option}", str(getattr(value, "name", value)))
        soft, hard = offload.soft_time_limit, offload.time_limit
        if soft and hard and soft > hard:
            raise DeclarationError(f"offload option soft_time_limit={soft} is later than time_limit={hard}")
        return offload

    @classmethod
    def of(cls, offload: object) -> Offload:
        """Returns the options of a handler's `offload=`, which is True, an `Offload` or a dict.

        Raises:
            DeclarationError: it is none of these, or an option is wrong.
        """
        if offload is True:
            return cls()
        if isinstance(offload, Offload):
            return offload
        if isinstance(offload, dict):
            return cls.model_validate(offload)
        raise DeclarationError(f"offload={offload!r} is neither True, Offload(...) nor a dict of options")

    @cached_property
    def message_options(self) -> Mapping[str, Any]:
        """The options of `apply_async` that are set; with a header for the worker's main process if at-most-once."""
        options = {name: getattr(self, name) for name in self.model_fields_set & _MESSAGE_OPTIONS}
        if self.delivery == "at-most-once":
            options["headers"] = {**(self.headers or {}), DELIVERY_HEADER: self.delivery}
        return options

    def task_options(self) -> dict[str, Any]:
        """Returns the options of the Celery task that are set."""
        return {name: getattr(self, name) for name in self.model_fields_set & _TASK_OPTIONS}

    def conflicting_options(self, other: Offload) -> set[str]:
        """Returns the names of task options in which two registrations of one function differ."""
        names = {*TaskOptions.model_fields, "on_missing", "base"}
        return {name for name in names if getattr(self, name) != getattr(other, name)}


_MESSAGE_OPTIONS = frozenset(MessageOptions.model_fields)
_TASK_OPTIONS = frozenset(TaskOptions.model_fields)
