"""`NITRO_SIGNING_KEY`: messages are signed, and a worker refuses all others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from nitro.infrastructure.events import Event, emit, on
from support.broker import ENVELOPE_KEY

Work = Callable[..., Any]
Sent = Callable[..., list[Any]]


@pytest.fixture
def key(app: Celery, monkeypatch: pytest.MonkeyPatch) -> str:
    """A key that this process signs with."""
    monkeypatch.setenv("NITRO_SIGNING_KEY", "correct horse")
    return "correct horse"


@pytest.fixture
def calls(evt: Event, key: str) -> list[Any]:
    """Senders that the handlers were called with."""
    calls: list[Any] = []
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: calls.append(sender))
    on(evt, offload=True, name="shop.other")(lambda sender, **kwargs: calls.append(("other", sender)))
    return calls


def refused(app: Celery, work: Work, name: str, args: Any = (), kwargs: Any = None) -> bool:
    """Whether a worker refuses a message that is put into the broker as it is, without asking the task."""
    task_id = app.send_task(name, args, kwargs or {}, task_type=None).id
    return type(work(app).of(task_id)).__name__ == "SignatureRefused"


def test_signed_message_is_accepted(evt: Event, app: Celery, work: Work, calls: list[Any]) -> None:
    """A worker accepts messages that are signed with its own key."""
    emission = emit(evt, "ada")
    worker = work(app)
    for task_id in emission.offloaded.values():
        worker.of(task_id)
    assert sorted(map(str, calls)) == ["('other', 'ada')", "ada"]


def test_signed_message_is_accepted_at_its_retry(evt: Event, app: Celery, work: Work, key: str) -> None:
    """A retry keeps the signature of its message."""
    runs: list[str] = []

    @on(evt, offload={"retry_backoff": False, "default_retry_delay": 0}, name="shop.flaky")
    def flaky(sender: str) -> str:
        runs.append(sender)
        if len(runs) == 1:
            raise ValueError("again")
        return "done"

    assert work(app).only(emit(evt, "ada")) == "done"
    assert runs == ["ada", "ada"]


def test_delay_chain_and_eager_apply_are_signed(evt: Event, app: Celery, work: Work, key: str) -> None:
    """Direct calls of the task are signed, also with a chain's result before their arguments."""

    @on(evt, offload=True, name="shop.handler")
    def handler(*args: str) -> list[str]:
        return list(args)

    worker = work(app)
    assert worker.of(handler.task.delay("ada").id) == ["ada"]
    assert worker.of((handler.task.s("ada") | handler.task.s("bob")).delay().id) == [["ada"], "bob"]


def test_eager_apply_needs_no_signature(evt: Event, app: Celery, key: str) -> None:
    """`.task.apply()` runs without a broker and needs no signature."""
    handler = on(evt, offload=True, name="shop.handler")(lambda sender: sender)
    assert handler.task.apply(("ada",)).get() == "ada"


def test_unsigned_emission_is_refused(evt: Event, app: Celery, work: Work, calls: list[Any], sent: Sent) -> None:
    """A message without a signature does not reach the handler."""
    emit(evt, "ada")
    envelope = sent()[0].kwargs[ENVELOPE_KEY]
    del envelope["signature"]
    assert refused(app, work, "shop.handler", kwargs={ENVELOPE_KEY: envelope})
    assert calls == []


def test_plain_arguments_are_refused(app: Celery, work: Work, calls: list[Any]) -> None:
    """A message without an emission counts as unsigned, and a retry does not sign it."""
    assert refused(app, work, "shop.handler", args=("mallory",))
    assert calls == []


@pytest.mark.parametrize(
    ("fact", "value"),
    [("payload", '{"nitro":1}'), ("emission", "0"), ("event", "x"), ("bare", True), ("root", "0"), ("signature", "ü")],
)
def test_tampered_message_is_refused(
    evt: Event, app: Celery, work: Work, calls: list[Any], sent: Sent, fact: str, value: Any
) -> None:
    """Each fact of a message is covered by its signature."""
    emit(evt, "ada")
    envelope = sent()[0].kwargs[ENVELOPE_KEY] | {fact: value}
    assert refused(app, work, "shop.handler", kwargs={ENVELOPE_KEY: envelope})
    assert calls == []


def test_added_arguments_are_refused(evt: Event, app: Celery, work: Work, calls: list[Any], sent: Sent) -> None:
    """A sender that is added before the signed one is refused."""
    emit(evt, "ada")
    message = sent()[0]
    assert refused(app, work, "shop.handler", args=("mallory",), kwargs=message.kwargs)
    assert calls == []


def test_message_for_another_handler_is_refused(
    evt: Event, app: Celery, work: Work, calls: list[Any], sent: Sent
) -> None:
    """A signed body cannot be sent to another handler."""
    emit(evt, "ada")
    bodies = {message.name: message.kwargs for message in sent()}
    assert refused(app, work, "shop.handler", kwargs=bodies["shop.other"])
    assert calls == []


def test_message_signed_with_another_key_is_refused(
    evt: Event, app: Celery, work: Work, calls: list[Any], sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is signed with another key is refused."""
    monkeypatch.setenv("NITRO_SIGNING_KEY", "battery staple")
    emit(evt, "ada")
    message = sent()[0]
    monkeypatch.setenv("NITRO_SIGNING_KEY", "correct horse")
    assert refused(app, work, "shop.handler", kwargs=message.kwargs)
    assert calls == []


def test_refusal_is_final(app: Celery, work: Work, calls: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """A forged message fails at once and is not retried."""
    with caplog.at_level(logging.INFO, "celery.app.trace"):
        assert refused(app, work, "shop.handler", args=("mallory",))
    assert not [record for record in caplog.records if "retry" in record.getMessage().lower()]


def test_without_a_key_messages_carry_no_signature(evt: Event, app: Celery, sent: Sent) -> None:
    """Without a key messages have no signature."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    emit(evt, "ada")
    assert "signature" not in sent()[0].kwargs[ENVELOPE_KEY]
