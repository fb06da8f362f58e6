"""Offload: the options of an offloaded handler, checked where they are written."""

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

Delivery = Literal["at-most-once", "broker", "at-least-once", "exactly-once"]
Entities = Literal["snapshot", "reload"]
OnMissing = Literal["fail", "skip"]
BrokerDown = Literal["store", "raise"]

Hook = Callable[..., Any] | None
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None
"""Up to some 3,000 years, so that a time so far ahead is one that Python and a database know."""


def in_utc(moment: datetime) -> datetime:
    """Returns a moment with its offset; one without an offset is UTC, as Celery reads `expires` and `eta`."""
    return moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment


Moment = Annotated[datetime, AfterValidator(in_utc)]


def _tuple(value: object) -> object:
    return (value,) if isinstance(value, type) else tuple(value) if isinstance(value, list | set) else value


Errors = Annotated[tuple[type[BaseException], ...], BeforeValidator(_tuple)]


DELIVERY_HEADER = "nitro_delivery"
"""Message header that tells a worker's main process the promise of a delivery."""


class MessageOptions(BaseModel):
    """Celery's options of a message (`Task.apply_async`); they belong to one `@on`."""

    compression: str | None = None
    countdown: Seconds = None
    delivery_mode: int | str | None = None
    exchange: Any = None
    expires: Seconds | Moment = None
    headers: dict[str, Any] | None = None
    priority: Annotated[int, Field(ge=0, le=255)] | None = None
    queue: Any = None
    retry: bool | None = None
    retry_policy: dict[str, Any] | None = None
    routing_key: str | None = None


class TaskOptions(BaseModel):
    """Celery's options of a task (attributes of `Task`); one function has them once, whatever it hears."""

    acks_late: bool | None = None
    acks_on_failure: bool | None = None
    acks_on_failure_or_timeout: bool | None = None
    acks_on_timeout: bool | None = None
    after_return: Hook = None
    autoretry_for: Errors = ()
    before_start: Hook = None
    default_retry_delay: Seconds = None
    dont_autoretry_for: Errors = ()
    ignore_result: bool | None = None
    max_retries: Annotated[int, Field(ge=0)] | None = None
    on_failure: Hook = None
    on_retry: Hook = None
    on_success: Hook = None
    rate_limit: str | int | float | None = None
    reject_on_worker_lost: bool | None = None
    resultrepr_maxsize: int | None = None
    retry_backoff: bool | int | float | None = None
    retry_backoff_max: Seconds = None
    retry_jitter: bool | None = None
    retry_kwargs: dict[str, Any] | None = None
    retry_on_worker_lost: bool | None = None
    send_events: bool | None = None
    serializer: Literal["json"] | None = None
    soft_time_limit: Seconds = None
    store_eager_result: bool | None = None
    store_errors_even_if_ignored: bool | None = None
    throws: Errors = ()
    time_limit: Seconds = None
    track_started: bool | None = None
    trail: bool | None = None
    typing: bool | None = None


class Offload(MessageOptions, TaskOptions):
    """How an offloaded handler travels and runs.

    Celery's options have Celery's names and meaning (Celery user guide: Tasks, Calling Tasks). What is
    not given is left to Celery and to the app's own task class, but for retries: every exception is
    retried up to 10 times, after 1 to 600 s that grow exponentially with jitter, except those that
    `throws` expects.

    Args:
        delivery: the promise; `NITRO_DELIVERY` when not given.
        entity: `"snapshot"`, entities as they were; `"reload"`, read from their rows in the worker.
        on_missing: what a vanished row means with `entity="reload"`: the task fails, or is skipped.
        broker_down: what an unreachable broker means: store and send later, or raise.
        base: task class of this handler instead of the app's.

    Raises:
        UnknownOption: an option that does not exist; suggests the nearest.
        DeclarationError: a value that the option does not allow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    delivery: Delivery | None = None
    entity: Entities = "snapshot"
    on_missing: OnMissing = "fail"
    broker_down: BrokerDown = "store"
    base: type | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, given: Any, check: ModelWrapValidatorHandler[Offload]) -> Offload:
        for option in given if isinstance(given, dict) else ():
            if option not in cls.model_fields:
                raise UnknownOption(option, get_close_matches(str(option), cls.model_fields, n=1))
        try:
            offload = check(given)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise DeclarationError(f"offload option {wrong['loc'][0]}={wrong['input']!r}: {wrong['msg']}") from error
        for option in ("queue", "exchange", "routing_key"):
            value = getattr(offload, option)
            check_name(f"offload option {option}", str(getattr(value, "name", value)))
        soft, hard = offload.soft_time_limit, offload.time_limit
        if soft and hard and soft > hard:
            raise DeclarationError(f"offload option soft_time_limit={soft} is later than time_limit={hard}")
        return offload

    @classmethod
    def of(cls, offload: object) -> Offload:
        """The options that `offload=` of a handler means: True, an `Offload` or a dict.

        Raises:
            DeclarationError: it is none of these, or an option of it is wrong.
        """
        if offload is True:
            return cls()
        if isinstance(offload, Offload):
            return offload
        if isinstance(offload, dict):
            return cls.model_validate(offload)
        raise DeclarationError(f"offload={offload!r} is neither True, Offload(...) nor a dict of options")

    @cached_property
    def message(self) -> Mapping[str, Any]:
        """The given options of `apply_async`, and the promise where the worker's main process must know it."""
        given = {name: getattr(self, name) for name in self.model_fields_set & _OF_MESSAGE}
        if self.delivery == "at-most-once":
            given["headers"] = {**(self.headers or {}), DELIVERY_HEADER: self.delivery}
        return given

    def task(self) -> dict[str, Any]:
        """The given options of the Celery task."""
        return {name: getattr(self, name) for name in self.model_fields_set & _OF_TASK}

    def differs(self, other: Offload) -> set[str]:
        """Options that one task cannot have both of."""
        names = {*TaskOptions.model_fields, "on_missing", "base"}
        return {name for name in names if getattr(self, name) != getattr(other, name)}


_OF_MESSAGE = frozenset(MessageOptions.model_fields)
_OF_TASK = frozenset(TaskOptions.model_fields)
