"""`Offload`: its options, their allowed values, and the place that each option is passed to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Task
from pydantic import ValidationError

from nitro.errors import DeclarationError, UnknownOption
from nitro.infrastructure.offload.options import MessageOptions, Offload, TaskOptions


@pytest.mark.parametrize("offload", [True, {}, Offload()])
def test_true_an_empty_dict_and_offload_are_equal(offload: Any) -> None:
    """`True`, `{}` and `Offload()` mean the same."""
    assert Offload.of(offload) == Offload()


def test_dict_and_offload_are_equal() -> None:
    """A dict holds the same options by the same names."""
    assert Offload.of({"queue": "mail", "max_retries": 3}) == Offload(queue="mail", max_retries=3)


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("quue", "queue"), ("max_retry", "max_retries"), ("retry_back_off", "retry_backoff"), ("onmissing", "on_missing")],
)
def test_unknown_option_suggests_the_nearest(option: str, nearest: str) -> None:
    """The error suggests the nearest option."""
    with pytest.raises(UnknownOption, match=f"{option!r}; did you mean {nearest!r}"):
        Offload.of({option: 1})


def test_unknown_option_without_a_near_one_suggests_nothing() -> None:
    """The error suggests no option if none is near."""
    with pytest.raises(UnknownOption) as caught:
        Offload.of({"zzz": 1})
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("countdown", -1),
        ("countdown", "5"),
        ("max_retries", "3"),
        ("max_retries", -1),
        ("priority", 256),
        ("priority", "high"),
        ("delivery", "maybe"),
        ("entity", "copy"),
        ("on_missing", "ignore"),
        ("broker_down", "wait"),
        ("serializer", "pickle"),
        ("autoretry_for", "ValueError"),
        ("throws", int),
        ("ignore_result", "yes"),
        ("headers", ["a"]),
        ("expires", "tomorrow"),
        ("expires", timedelta(hours=1)),
        ("expires", float("inf")),
        ("expires", float("nan")),
        ("countdown", float("inf")),
        ("countdown", 1e300),
        ("base", "Task"),
    ],
)
def test_wrong_value_is_an_error_that_names_it(option: str, value: Any) -> None:
    """The error names the option and the value."""
    with pytest.raises(DeclarationError) as caught:
        Offload(**{option: value})
    assert f"{option}=" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_soft_limit_is_not_later_than_the_hard_one() -> None:
    """A soft limit after the hard limit is an error."""
    with pytest.raises(DeclarationError, match="soft_time_limit"):
        Offload(soft_time_limit=20, time_limit=10)
    Offload(soft_time_limit=10, time_limit=20)


@pytest.mark.parametrize("errors", [ValueError, (ValueError,), [ValueError], {ValueError}])
def test_exceptions_are_given_alone_or_as_a_collection(errors: Any) -> None:
    """A single exception class needs no tuple."""
    assert Offload(throws=errors).throws == (ValueError,)


def test_options_are_frozen() -> None:
    """Options cannot be set after the check."""
    with pytest.raises(ValidationError):
        Offload(queue="mail").queue = "other"  # type: ignore[misc]  # the misuse under test


def test_given_options_only_are_passed_on() -> None:
    """An option that is not given is left to Celery and to the app."""
    offload = Offload(queue="mail", rate_limit="5/m")
    assert offload.message_options == {"queue": "mail"}
    assert offload.task_options() == {"rate_limit": "5/m"}


def test_a_given_none_is_passed_on() -> None:
    """`max_retries=None` is passed on, because it means no limit in Celery."""
    assert Offload(max_retries=None).task_options() == {"max_retries": None}


def test_at_most_once_tells_the_worker() -> None:
    """A header tells the worker's main process to acknowledge early; the user's headers stay."""
    headers = Offload(delivery="at-most-once", headers={"tenant": "t1"}).message_options["headers"]
    assert headers == {"tenant": "t1", "nitro_delivery": "at-most-once"}


@pytest.mark.parametrize("value", [60, 60.5, datetime(2030, 1, 1, tzinfo=UTC)])
def test_expires_is_seconds_or_a_time(value: Any) -> None:
    """`expires` takes seconds or a time, as in Celery."""
    assert Offload(expires=value).message_options == {"expires": value}


def test_a_time_without_an_offset_is_utc() -> None:
    """A time without an offset is UTC in every time zone, as in Celery."""
    assert Offload(expires=datetime(2030, 1, 1)).message_options == {"expires": datetime(2030, 1, 1, tzinfo=UTC)}


def test_task_options_are_attributes_of_celerys_task() -> None:
    """Task options have Celery's own names."""
    of_retries = {"autoretry_for", "dont_autoretry_for", "retry_kwargs"}
    of_retries |= {"retry_backoff", "retry_backoff_max", "retry_jitter"}
    from_settings = {name for name, _ in Task.from_config}
    unknown = {name for name in TaskOptions.model_fields if not hasattr(Task, name)}
    assert unknown <= of_retries | from_settings


def test_every_option_of_a_celery_task_is_there() -> None:
    """Celery's documented task options are there, except options that Nitro decides and hooks of a class."""
    documented = {
        "acks_late",
        "acks_on_failure_or_timeout",
        "autoretry_for",
        "default_retry_delay",
        "dont_autoretry_for",
        "ignore_result",
        "max_retries",
        "rate_limit",
        "reject_on_worker_lost",
        "retry_backoff",
        "retry_backoff_max",
        "retry_jitter",
        "retry_kwargs",
        "send_events",
        "serializer",
        "soft_time_limit",
        "store_errors_even_if_ignored",
        "throws",
        "time_limit",
        "track_started",
        "typing",
    }
    assert documented <= set(TaskOptions.model_fields)
    assert {"queue", "countdown", "expires", "priority", "headers", "routing_key", "exchange"} <= set(
        MessageOptions.model_fields
    )


def test_message_and_task_options_are_disjoint() -> None:
    """An option belongs to the registration or to the task, never to both."""
    assert not set(MessageOptions.model_fields) & set(TaskOptions.model_fields)


def test_differs_names_options_of_the_task_only() -> None:
    """`differs` ignores message options, because they may differ between two events."""
    first = Offload(queue="a", countdown=1, delivery="broker", entity="reload", max_retries=1, rate_limit="1/m")
    second = Offload(queue="b", max_retries=2, on_missing="skip", rate_limit="1/m")
    assert first.conflicting_options(second) == {"max_retries", "on_missing"}
