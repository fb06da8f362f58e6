"""A text that a database cannot store is refused as name or id, and escaped as free text: contract section 15."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DataError

from nitro.domain.entities.base_entity import Entity
from nitro.errors import DeclarationError, PayloadError
from nitro.infrastructure.database import create_tables, engine, reset
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload import Offload, bind
from support import outbox
from support.databases import KINDS, on_database
from support.journals import recorded
from support.waiting import until

EMOJI = "\U0001f600"
UNSTORABLE = ["a\0b", "a\ud800b", "a\udc80", "x" * 513]
SHOWN = ["NUL", "high surrogate", "low surrogate", "long"]
SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432"
ENCODINGS = {"LATIN1": "caf\xe9", "EUC_JP": "\u65e5\u672c", "WIN1251": "\u0416", "KOI8R": "\u0416", "SQL_ASCII": EMOJI}
"""A text for each encoding."""


class Texted(Entity, table=True):
    """An entity with an id of the user, that shows a note."""

    __tablename__ = "texted"
    __nitro_show__ = ("note",)

    note: str = ""


@pytest.fixture(scope="module", params=ENCODINGS)
def foreign_server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The URL of a database with another encoding, and a text of that encoding."""
    request.getfixturevalue("database_server")
    name = f"nitro_text_{request.param.lower()}_{os.getpid()}"
    server = create_engine(f"{SERVER}/postgres", isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        statement = f"CREATE DATABASE {name} ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        connection.execute(text(statement))
    yield f"{SERVER}/{name}?client_encoding=utf8", ENCODINGS[request.param]
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def native(app: Celery, foreign_server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A text of the encoding of this process's database; only SQL_ASCII can store an emoji."""
    monkeypatch.setenv("NITRO_DB_URL", foreign_server[0])
    reset()
    create_tables()
    with engine().begin() as connection:
        connection.exec_driver_sql("TRUNCATE nitro_delivery, nitro_emission, nitro_worker")
    yield foreign_server[1]
    reset()


def only(state: str) -> outbox.DeliveryRecord:
    """Waits until a delivery is in a state, and returns it."""
    record = until(lambda: next((each for each in outbox.deliveries() if each.state == state), None))
    assert record is not None, [(each.state, each.error) for each in outbox.deliveries()]
    return record


@pytest.mark.parametrize("name", UNSTORABLE, ids=SHOWN)
@pytest.mark.parametrize(
    "declare",
    [
        lambda name: Namespace().event(name),
        lambda name: Event(name),
        lambda name: Namespace().event(f"{name}*"),
        lambda name: on(Namespace().event("e"), name=name)(lambda sender: None),
        lambda name: on(Namespace().event("e"), offload=True, name=name)(lambda sender: None),
        lambda name: Offload(queue=name),
        lambda name: Offload(routing_key=name),
        lambda name: on(Namespace().event("e"), offload={"queue": name}, name="shop.a")(lambda sender: None),
    ],
    ids=["event", "Event", "glob", "inline handler", "offloaded handler", "queue", "routing key", "queue in a dict"],
)
def test_a_name_that_cannot_be_stored_is_refused_at_import(
    app: Celery, declare: Callable[[str], object], name: str
) -> None:
    """A name that no database can store is refused when it is declared."""
    with pytest.raises(DeclarationError, match="give it another name") as refused:
        declare(name)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200


def test_the_longest_names_are_taken(evt: Event, app: Celery) -> None:
    """Names of 512 characters are accepted."""
    name = "\xe9" * 512
    on(Namespace().event(name), offload={"queue": name}, name=name)(lambda sender: None)


@pytest.mark.parametrize("name", UNSTORABLE, ids=SHOWN)
def test_a_queue_that_routes_find_is_refused_at_emit(evt: Event, app: Celery, name: str) -> None:
    """A queue name that only the routes know is refused at the emit."""
    app.conf.task_routes = (lambda *_args, **_options: {"queue": name},)
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    with pytest.raises(DeclarationError, match=r"queue of handler shop\.a"):
        emit(evt)
    assert outbox.deliveries() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["snapshot", "reload"])
@pytest.mark.parametrize("identity", UNSTORABLE, ids=SHOWN)
def test_an_id_that_cannot_be_stored_is_refused_at_emit(
    evt: Event,
    app: Celery,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    mode: str,
    identity: str,
) -> None:
    """An id that cannot be stored is refused at the emit, for a sender and for an argument."""
    on_database(request, monkeypatch, kind)
    on(evt, offload={"entity": mode}, name="shop.a")(lambda sender, **kwargs: None)
    for act in (partial(emit, evt, Texted(id=identity)), partial(emit, evt, "ada", items=[Texted(id=identity)])):
        with pytest.raises(PayloadError, match=r"Texted.*shop\.a: its id"):
            act()
    assert outbox.deliveries() == []


@pytest.mark.server
def test_an_id_outside_the_encoding_is_refused_at_emit(evt: Event, app: Celery, native: str) -> None:
    """An id inside the database's encoding is stored; an id outside of it is refused."""
    on(evt, offload=True, name="shop.a")(lambda sender, **kwargs: None)
    emit(evt, Texted(id=native))
    assert outbox.deliveries()[0].sender.startswith(f"Texted:{native}")
    if native != EMOJI:
        with pytest.raises(PayloadError, match="cannot store its id"):
            emit(evt, Texted(id=EMOJI))


@pytest.mark.server
def test_a_name_outside_the_encoding_is_refused_at_emit(app: Celery, native: str) -> None:
    """A name outside the database's encoding is refused at the emit, because it is unknown at import."""
    for number, names in enumerate([("e", "shop.\u2603"), ("\u2603", "shop.b")]):
        evt = Namespace().event(names[0])
        on(evt, offload={"queue": f"q{number}"}, name=names[1])(lambda sender: None)
        if native == EMOJI:
            emit(evt)
        else:
            with pytest.raises(DeclarationError, match="cannot store the name"):
                emit(evt)


@pytest.mark.server
@pytest.mark.parametrize("retried", [False, True])
def test_an_error_outside_the_encoding_is_kept(evt: Event, app: Celery, work: Any, native: str, retried: bool) -> None:
    """An error text is stored with the characters outside of the encoding escaped."""
    options = {"max_retries": int(retried), "retry_backoff": False, "default_retry_delay": 0}

    def fail(sender: str) -> None:
        raise ValueError(f"{native} {EMOJI} \0 \ud800")

    on(evt, offload=options, name="shop.a")(fail)
    work(app)
    emit(evt, "ada")
    dead = only("dead")
    emoji = EMOJI if native == EMOJI else "\\U0001f600"
    assert f"ValueError: {native} {emoji} \\0 \\ud800" in str(dead.error)
    assert dead.attempts == 1 + retried
    assert len(dead.history) == int(retried)


def test_an_error_that_the_result_backend_cannot_store_leaves_the_worker_alive(
    evt: Event, make_app: Callable[..., Celery], work: Any, tmp_path: Path
) -> None:
    """A traceback that the result backend cannot store is escaped, and the worker goes on."""
    app = bind(make_app(result_backend=f"db+sqlite:///{tmp_path / 'results.db'}"))

    def fail(sender: str) -> None:
        raise FileNotFoundError(f"{sender}\udce9")

    on(evt, offload={"max_retries": 0, "ignore_result": False}, name="shop.a")(fail)
    outcomes = work(app)
    for sender in ("first", "second"):
        (task_id,) = emit(evt, sender).offloaded.values()
        assert isinstance(outcomes.of(task_id), FileNotFoundError)
        assert f"{sender}\\udce9" in app.AsyncResult(task_id).traceback


@pytest.mark.server
def test_payload_sender_and_results_outside_the_encoding(evt: Event, app: Celery, work: Any, native: str) -> None:
    """Payloads arrive equal, shown senders are escaped, and results outside the encoding cause no failure."""
    seen: list[object] = []

    def take(sender: Texted, note: str) -> Iterator[str]:
        seen.extend([sender.note, note])
        yield EMOJI

    on(evt, offload=True, name="shop.a")(take)
    work(app)
    emission = emit(evt, Texted(id="t1", note=EMOJI), note=EMOJI)
    done = only("done")
    assert seen == [EMOJI, EMOJI]
    assert done.sender.startswith("Texted:t1 note=")
    assert [tree.id for tree in outbox.emission_trees(emission.id)] == [emission.id]


@pytest.mark.server
def test_the_journal_keeps_what_is_outside_the_encoding(app: Celery, native: str, journal_on: object) -> None:
    """An emission outside the encoding does not keep other emissions out of the journal."""
    first = emit(Namespace().event(f"e.{EMOJI}"), Texted(id="t1", note=f"{EMOJI}\0"))
    second = emit(Namespace().event("plain"), "ada")
    assert {each.id for each in recorded(2)} == {first.id, second.id}


@pytest.mark.server
def test_workers_and_searches_of_any_name(app: Celery, native: str) -> None:
    """Worker names and searches with characters outside the encoding cause no failure."""
    outbox.record_worker(f"worker@{EMOJI}\0")
    for odd in (EMOJI, "a\0b", "\ud800"):
        assert outbox.deliveries_with_id(odd) == []
        assert outbox.deliveries_of(event=odd, handler=odd) == []
        assert outbox.emission_trees(odd) == []
        assert outbox.emissions_by(odd, limit=5) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_names_an_odd_emission_is_parked(
    app: Celery, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A message with an emission id that cannot be stored becomes a dead letter."""
    on_database(request, monkeypatch, kind)
    facts = {"event": "e\0" * 600, "sender": "\ud800", "root": "r" * 99, "parent": "\0"}
    for odd in ("x" * 99, "a\0b", "\ud800"):
        assert outbox.refused_state(odd, "shop.a") is None
        outbox.park(odd, "shop.a", "t" * 99, facts, f"why {EMOJI}\0")
    assert [each.state for each in outbox.deliveries()] == ["dead"] * 3


class RefusingDatabase:
    """Raises an error for so many statements that close a run."""

    def __init__(self, times: int, error: Callable[[], Exception]) -> None:
        self.times, self.error = times, error

    def __call__(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        closes = statement.startswith("UPDATE") and "SET state" in statement and "worker" in statement
        if closes and "attempts=" not in statement and self.times:
            self.times -= 1
            raise self.error()


def data_error() -> Exception:
    return DataError("UPDATE", {}, Exception("untranslatable"))


@pytest.fixture
def refusing(app: Celery) -> Iterator[Callable[[int, Callable[[], Exception]], None]]:
    listeners: list[RefusingDatabase] = []

    def refuse(times: int, error: Callable[[], Exception]) -> None:
        listeners.append(RefusingDatabase(times, error))
        event.listen(engine(), "before_cursor_execute", listeners[-1])

    yield refuse
    for each in listeners:
        event.remove(engine(), "before_cursor_execute", each)


@pytest.mark.parametrize(
    ("retries", "state", "line"), [(0, "dead", "ValueError: no \\u2603 today"), (3, "waiting", "ValueError: no")]
)
def test_a_text_that_is_refused_all_the_same_is_written_in_ascii(
    evt: Event, app: Celery, work: Any, refusing: Any, retries: int, state: str, line: str
) -> None:
    """An error text that the database refuses is stored in ASCII, with the same outcome."""

    def fail(sender: str) -> None:
        raise ValueError("no \u2603 today")

    on(evt, offload={"max_retries": retries, "default_retry_delay": 600, "retry_backoff": False}, name="shop.a")(fail)
    refusing(1, data_error)
    work(app)
    emit(evt, "ada")
    assert line in str(only(state).error)


def test_an_error_while_a_run_is_closed_is_the_error_of_its_dead_letter(
    evt: Event, app: Celery, work: Any, refusing: Any
) -> None:
    """A run that cannot be closed becomes a dead letter with the error, and does not run again."""
    ran: list[str] = []
    on(evt, offload=True, name="shop.a")(lambda sender: ran.append(sender))
    refusing(1, partial(RuntimeError, "a trigger of the database"))
    work(app)
    emit(evt, "ada")
    dead = only("dead")
    assert "could not be closed" in str(dead.error)
    assert "RuntimeError: a trigger of the database" in str(dead.error)
    assert ran == ["ada"]
