"""The payload of an emission as the emitter builds it: contract section 5."""

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from sqlmodel import Field, Relationship

from nitro.domain.entities.base_entity import Entity
from nitro.errors import EntityVanished, PayloadError
from nitro.infrastructure.events import Event, emit, emit_async, on
from nitro.infrastructure.offload import Offload
from support.broker import record_encodings

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]


class Basket(Entity, table=True):
    __tablename__ = "payload_basket"

    owner: str = ""
    total: float = 0.0
    items: list["BasketItem"] = Relationship(back_populates="basket")


class BasketItem(Entity, table=True):
    __tablename__ = "payload_basket_item"

    product: str = ""
    basket_id: str | None = Field(default=None, foreign_key="payload_basket.id")
    basket: Basket | None = Relationship(back_populates="items")


class Note(Entity):
    text: str = ""


@dataclass
class Line:
    socket: Any


def nothing(sender: Any, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mode of each serialisation of a payload."""
    return record_encodings(monkeypatch)


def test_one_serialisation_an_emission(evt: Event, app: Celery, encodings: list[str]) -> None:
    """The payload is serialised once, however many handlers there are."""
    for name in ("shop.a", "shop.b", "shop.c"):
        on(evt, offload=True, name=name)(lambda sender: None)
    emit(evt, "ada")
    assert encodings == ["snapshot"]


def test_one_more_if_handlers_mix_the_modes(evt: Event, app: Celery, encodings: list[str]) -> None:
    """Snapshot and reload are two payloads, each written once."""
    for number, mode in enumerate(("snapshot", "reload", "snapshot", "reload")):
        on(evt, offload={"entity": mode}, name=f"shop.{number}")(lambda sender: None)
    emit(evt, "ada")
    assert encodings == ["snapshot", "reload"]


def test_no_serialisation_for_a_skipped_handler(evt: Event, app: Celery, encodings: list[str]) -> None:
    """No payload is serialised if the conditions of all handlers are false."""
    on(evt, offload=True, condition=lambda sender: False, name="shop.a")(lambda sender: None)
    emit(evt, "ada")
    assert encodings == []


@pytest.mark.parametrize(
    ("sender", "args", "kwargs", "place", "kind"),
    [
        (threading.Lock(), (), {}, "sender", "lock"),
        ("ada", (1, object()), {}, "args[1]", "object"),
        ("ada", (), {"items": [1, {"file": iter(())}]}, "kwargs['items'][1]['file']", "tuple_iterator"),
        ("ada", (), {"line": Line(lambda: None)}, "kwargs['line'].socket", "function"),
    ],
)
def test_payload_error_names_handler_argument_and_type(
    evt: Event, app: Celery, sent: Sent, sender: Any, args: Any, kwargs: Any, place: str, kind: str
) -> None:
    """The error names the handler, the place of the value and its type."""
    on(evt, offload=True, name="shop.mail")(nothing)
    with pytest.raises(PayloadError, match=re.escape(place)) as caught:
        emit(evt, sender, *args, **kwargs)
    assert "shop.mail" in str(caught.value)
    assert kind in str(caught.value)
    assert sent() == []


def test_payload_error_of_emit_async_publishes_nothing(evt: Event, app: Celery, sent: Sent) -> None:
    """`emit_async` with a payload error publishes nothing."""
    on(evt, offload=True, name="shop.mail")(nothing)
    with pytest.raises(PayloadError, match=r"shop\.mail"):
        asyncio.run(emit_async(evt, object()))
    assert sent() == []


def test_inline_handlers_may_get_anything(evt: Event) -> None:
    """Inline handlers get any object, because nothing is serialised for them."""
    evt.connect(lambda sender: sender.acquire())
    assert emit(evt, threading.Lock()) == [True]


def test_snapshot_is_taken_when_the_inline_handlers_have_finished(evt: Event, app: Celery, sent: Sent) -> None:
    """The snapshot contains the changes of inline handlers, and no later change."""
    on(evt, offload=True, priority=9, name="shop.mail")(nothing)

    @on(evt)
    def inline(sender: Basket) -> None:
        sender.total = 5.0

    basket = Basket(id="b1", owner="ada", total=1.0)
    emit(evt, basket)
    basket.total = 9.0
    assert sent()[0].payload.sender.total == 5.0


def test_same_entity_in_two_places_arrives_as_one(evt: Event, app: Celery, sent: Sent) -> None:
    """Two references to one entity arrive as one object."""
    on(evt, offload=True, name="shop.mail")(nothing)
    basket = Basket(id="b1")
    emit(evt, basket, [basket], other=basket)
    payload = sent()[0].payload
    assert payload.args[0][0] is payload.sender is payload.kwargs["other"]


@pytest.mark.parametrize("loaded", [True, False])
def test_items_can_be_read_in_an_offloaded_handler(evt: Event, app: Celery, work: Work, loaded: bool) -> None:
    """A handler can read `sender.items`, whether the emitter had loaded them or not."""
    Basket(id="b1", items=[BasketItem(id="i1", product="tea"), BasketItem(id="i2", product="milk")]).save()
    basket = Basket.get("b1")
    assert basket is not None
    if loaded:
        assert len(basket.items) == 2
    on(evt, offload={"max_retries": 0}, name="shop.mail")(lambda sender: sorted(item.product for item in sender.items))
    assert work(app).only(emit(evt, basket)) == ["milk", "tea"]


def test_snapshot_needs_no_database(evt: Event, app: Celery, work: Work) -> None:
    """The handler gets the entity as it was, even if it was never stored."""
    on(evt, offload={"max_retries": 0}, name="shop.mail")(lambda sender: [sender.owner, type(sender).__name__])
    assert work(app).only(emit(evt, Basket(id="b1", owner="ada"))) == ["ada", "Basket"]


def test_save_in_a_handler_writes_only_what_it_changed(evt: Event, app: Celery, work: Work) -> None:
    """A handler's save keeps a change that was made in the meantime."""
    Basket(id="b1", owner="ada", total=1.0).save()

    @on(evt, offload={"max_retries": 0}, name="shop.price")
    def price(sender: Basket) -> None:
        sender.total = 5.0
        sender.save()

    basket = Basket.get("b1")
    emission = emit(evt, basket)
    assert basket is not None
    basket.owner = "bob"
    basket.save()
    assert work(app).only(emission) is None
    stored = Basket.get("b1")
    assert stored is not None
    assert (stored.owner, stored.total) == ("bob", 5.0)


def test_save_of_a_vanished_row_raises_in_the_handler(evt: Event, app: Celery, work: Work) -> None:
    """A handler's save does not restore a row that was deleted in the meantime."""
    Basket(id="b1").save()

    @on(evt, offload={"max_retries": 0}, name="shop.price")
    def price(sender: Basket) -> str:
        sender.total = 5.0
        try:
            sender.save()
        except EntityVanished:
            return "vanished"
        return "saved"

    basket = Basket.get("b1")
    assert basket is not None
    emission = emit(evt, basket)
    basket.delete()
    assert work(app).only(emission) == "vanished"


def test_reload_reads_the_row_in_the_worker(evt: Event, app: Celery, work: Work) -> None:
    """With `entity="reload"` the handler gets the row as it is when it runs."""
    basket = Basket(id="b1", owner="ada").save()
    seen: list[Any] = []

    @on(evt, offload={"entity": "reload", "max_retries": 0}, name="shop.mail")
    def mail(sender: Basket, *args: Basket, other: Basket) -> list[str]:
        seen.append(sender)
        return [sender.owner, args[0].owner, other.owner]

    emission = emit(evt, basket, basket, other=basket)
    basket.owner = "bob"
    basket.save()
    assert work(app).only(emission) == ["bob", "bob", "bob"]


def test_reload_sends_no_field_values(evt: Event, app: Celery, sent: Sent) -> None:
    """With `entity="reload"` the message contains the key and no other field."""
    on(evt, offload={"entity": "reload"}, name="shop.mail")(nothing)
    emit(evt, Basket(id="b1", owner="secret"))
    assert "secret" not in str(sent()[0])


def test_vanished_row_fails_the_task(evt: Event, app: Celery, work: Work) -> None:
    """A missing row fails the task by default."""
    on(evt, offload={"entity": "reload", "max_retries": 0}, name="shop.mail")(nothing)
    emission = emit(evt, Basket(id="gone"))
    worker = work(app)
    assert worker.state(emission) == "FAILURE"
    assert "Basket 'gone' has no row" in str(worker.only(emission))


def test_vanished_row_may_be_skipped(evt: Event, app: Celery, work: Work) -> None:
    """`on_missing="skip"` ends the task successfully without calling the handler."""
    called: list[Any] = []
    on(evt, offload=Offload(entity="reload", on_missing="skip"), name="shop.mail")(lambda sender: called.append(sender))
    emission = emit(evt, Basket(id="gone"))
    assert work(app).state(emission) == "SUCCESS"
    assert called == []


def test_entity_vanished_raised_by_a_handler_is_not_skipped(evt: Event, app: Celery, work: Work) -> None:
    """`on_missing` does not apply to an EntityVanished that the handler raises."""

    @on(evt, offload=Offload(entity="reload", on_missing="skip", max_retries=0), name="shop.mail")
    def mail(sender: Basket) -> None:
        raise EntityVanished("Basket", "refresh")

    assert work(app).state(emit(evt, Basket(id="b1").save())) == "FAILURE"


@pytest.mark.parametrize("place", ["sender", "args", "kwargs"])
def test_reload_of_an_entity_without_table_is_an_error_at_emit(evt: Event, app: Celery, sent: Sent, place: str) -> None:
    """`entity="reload"` of a model without table raises an error that says so."""
    on(evt, offload={"entity": "reload"}, name="shop.mail")(nothing)
    note = Note(text="hello")
    with pytest.raises(PayloadError, match=r"shop\.mail.*table"):
        emit(
            evt,
            note if place == "sender" else None,
            *([[note]] if place == "args" else []),
            **({"note": note} if place == "kwargs" else {}),
        )
    assert sent() == []


def test_payload_error_names_only_handlers_of_that_mode(evt: Event, app: Celery) -> None:
    """The error names only the handlers whose mode cannot carry the value."""
    on(evt, offload={"entity": "reload"}, name="shop.reload")(nothing)
    on(evt, offload={"entity": "snapshot"}, name="shop.snapshot")(nothing)
    with pytest.raises(PayloadError) as caught:
        emit(evt, Note(text="hello"))
    assert "shop.reload" in str(caught.value)
    assert "shop.snapshot" not in str(caught.value)
