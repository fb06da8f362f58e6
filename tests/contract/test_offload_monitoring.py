"""Facts about a handler in Flower, `celery events` and `inspect`: contract section 5."""

import ast
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from celery import Celery
from celery.worker import state

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.events import Emission, Event, emit, on

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]


class Secretive(Entity):
    email: str = ""


class Showing(Entity):
    __nitro_show__: ClassVar[tuple[str, ...]] = ("status",)

    status: str = ""
    email: str = ""


@pytest.fixture
def handler(evt: Event, app: Celery) -> Any:
    """An offloaded handler."""
    return on(evt, offload=True, name="shop.handler")(lambda sender, *args, **kwargs: None)


def shown(emission: Emission, sent: Sent) -> dict[str, str]:
    """Returns the readable arguments of the one message, as Flower parses them."""
    (message,) = sent()
    assert message.headers["argsrepr"] == "()"
    parsed: dict[str, str] = ast.literal_eval(message.headers["kwargsrepr"])
    return parsed


def test_arguments_are_a_dict_literal_of_facts(evt: Event, handler: Any, sent: Sent) -> None:
    """Flower can search for event, sender and emission."""
    emission = emit(evt, Secretive(id="s1"))
    assert shown(emission, sent) == {"event": evt.name, "sender": "Secretive:s1", "emission": emission.id}


def test_field_values_stay_hidden(evt: Event, handler: Any, sent: Sent) -> None:
    """Readable arguments show class and id of the sender, and no value."""
    emission = emit(evt, Secretive(id="s1", email="secret"), "secret", card="secret", other=Secretive(email="secret"))
    assert "secret" not in str(shown(emission, sent))


def test_class_may_show_fields(evt: Event, handler: Any, sent: Sent) -> None:
    """`__nitro_show__` opts in, field by field."""
    emission = emit(evt, Showing(id="s1", status="paid", email="secret"))
    facts = shown(emission, sent)
    assert (facts["sender"], facts["fields"]) == ("Showing:s1", "status='paid'")


@pytest.mark.parametrize("key", ["s1", "a b", "a=b", "é 1"])
def test_a_sender_that_shows_fields_is_found_by_its_id(evt: Event, handler: Any, sent: Sent, key: str) -> None:
    """Flower's search finds a sender by its id and by the fields that it shows."""
    search = importlib.import_module("flower.utils.search").TaskSearchEngine()
    emit(evt, Showing(id=key, status="paid x=1"))
    (message,) = sent()
    search.upsert(SimpleNamespace(uuid="t1", kwargs=message.headers["kwargsrepr"]))
    assert search.matching_ids(f'kwargs:"sender=Showing:{key}"') == {"t1"}
    assert search.matching_ids("kwargs:paid") == {"t1"}


def test_a_field_that_cannot_be_shown_fails_no_emit(evt: Event, handler: Any, sent: Sent) -> None:
    """A field that cannot be shown is replaced by the class of its error."""
    sender = Showing(id="s1", status="paid")
    del sender.__dict__["status"]
    assert shown(emit(evt, sender), sent)["fields"] == "status=<AttributeError>"


@pytest.mark.parametrize(("sender", "text"), [("secret", "str"), (None, "NoneType"), ({"a": "secret"}, "dict")])
def test_other_senders_are_shown_by_their_class(evt: Event, handler: Any, sent: Sent, sender: Any, text: str) -> None:
    """A sender that is no entity is shown by its class, because its value may be a password."""
    assert shown(emit(evt, sender), sent)["sender"] == text


def test_no_sender_is_shown_as_any(evt: Event, handler: Any, sent: Sent) -> None:
    """An emission without a sender is shown with `ANY`, the name that users know."""
    assert shown(emit(evt), sent)["sender"] == "ANY"


def test_direct_call_is_readable_too(evt: Event, handler: Any, sent: Sent) -> None:
    """`.task.delay` hides field values in the same way."""
    handler.task.delay(Secretive(id="s1", email="secret"), card="secret")
    headers = sent()[0].headers
    assert ast.literal_eval(headers["kwargsrepr"])["sender"] == "Secretive:s1"
    assert "secret" not in headers["argsrepr"] + headers["kwargsrepr"]


def test_it_stays_readable_on_retries(evt: Event, app: Celery, work: Work) -> None:
    """The second attempt shows the same readable arguments as the first."""
    seen: list[tuple[str, str]] = []

    @on(evt, offload={"retry_backoff": False, "default_retry_delay": 0}, name="shop.flaky")
    def flaky(sender: Any, card: str) -> None:
        (request,) = state.active_requests
        seen.append((request.argsrepr, request.kwargsrepr))
        if len(seen) == 1:
            raise ValueError("again")

    emission = emit(evt, Secretive(id="s1"), card="secret")
    work(app, pool="threads").only(emission)
    facts = {"event": evt.name, "sender": "Secretive:s1", "emission": emission.id}
    assert [ast.literal_eval(text) for _, text in seen] == [facts, facts]
    assert seen[0] == seen[1]


def test_inspect_shows_no_payload(evt: Event, app: Celery, work: Work) -> None:
    """`celery inspect active` answers with the readable arguments."""
    answers: list[str] = []

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any, card: str) -> None:
        (request,) = state.active_requests
        answers.append(str(request.info()))

    emission = emit(evt, Secretive(id="s1"), card="secret")
    work(app, pool="threads").only(emission)
    assert "Secretive:s1" in answers[0]
    assert "secret" not in answers[0]


def test_canvas_shows_no_payload(evt: Event, app: Celery, handler: Any, sent: Sent) -> None:
    """A signature that is sent in a chain is readable as well."""
    (handler.task.s(Secretive(id="s1", email="secret")) | handler.task.si("ada")).delay()
    headers = sent()[0].headers
    assert "secret" not in headers["argsrepr"] + headers["kwargsrepr"]
