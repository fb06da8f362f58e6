"""`nitro tail` over a longer time: each step between two looks is shown once, however many there are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time
from typing import Any, ClassVar

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from sqlalchemy import delete, insert, select, update

from nitro import cli
from nitro.cli import tail as tails
from nitro.cli.tail import Tail
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database import reset, transaction, write_connection
from nitro.infrastructure.events import Emission, Event, Namespace, emit, on
from nitro.infrastructure.events.observers import active_observers
from nitro.infrastructure.outbox import claims, operations, pending
from nitro.infrastructure.outbox.journal import journal
from nitro.infrastructure.outbox.schema import deliveries, emissions, min_id_at

ROOT = Path(__file__).parents[2]
TRACE = 'Traceback (most recent call last):\n  File "m.py", line 3\nOSError: no mail\nmore'
EMITTER = """
import sys
from celery import Celery
from nitro import emit, on
from nitro.infrastructure.offload import bind
bind(Celery("shop", broker="memory://"))
on("order.placed", offload=True, name="shop.mail")(lambda sender: None)
for event in sys.argv[1:]:
    on(event, offload=True, name=f"shop.{event}")(lambda sender: None)
    emit(event, "ada")
"""


class Pram(Entity):
    """The entity that is the sender, with a field in its name."""

    __nitro_show__: ClassVar[tuple[str, ...]] = ("status",)

    status: str = "open"


@pytest.fixture
def placed(app: Celery) -> Event:
    """An event with a tracked handler."""
    event = Namespace().event("order.placed")
    on(event, offload=True, name="shop.mail")(lambda sender: None)
    return event


@pytest.fixture
def journaled(app: Celery) -> Iterator[Event]:
    """An event without offloaded handlers, with the journal on."""
    with active_observers.replaced(*active_observers, journal.watch):
        yield Namespace().event("order.seen")
    assert journal.flush(20)


def tail(*arguments: str, colour: bool = False) -> Result:
    """Runs `nitro tail` for the last hour; an unexpected error is raised."""
    arguments = ("tail", "--once", "--since", "1h", *arguments)
    return CliRunner().invoke(cli.nitro, arguments, catch_exceptions=False, color=colour)


def told(*arguments: str) -> list[dict[str, Any]]:
    """Returns the last hour's lines that `tail --json` prints."""
    return [json.loads(line) for line in tail("--json", *arguments).stdout.splitlines()]


def begun(emission: Emission) -> claims.Claim:
    """Starts a run of the emission's delivery."""
    pending.take_due(10)
    started = claims.claim(emission.id, "shop.mail", "boot/1")
    assert isinstance(started, claims.Claim)
    return started


def states(tail: Tail) -> list[str]:
    """Returns the states that the next look shows."""
    return [line.state for line in tail.new_lines()]


def test_a_run_is_shown_once_although_it_goes_into_the_history(placed: Event) -> None:
    """The history keeps times with fewer digits than the row on SQLite; the run is not shown twice."""
    tail = Tail(datetime.now(UTC))
    run = begun(emit(placed, "ada"))
    with write_connection() as connection:
        connection.execute(update(deliveries).values(started_at=time() // 1 + 2.123_456_7))
    assert states(tail) == ["emitted", "queued", "running"]
    claims.reschedule(run, 600, "OSError: away")
    assert states(tail) == ["retried", "waiting"]
    assert states(tail) == []


def test_a_death_is_shown_once_although_a_replay_puts_it_into_the_history(placed: Event) -> None:
    """The death is shown once, and the steps after the replay are shown too."""
    tail = Tail(datetime.now(UTC))
    run = begun(emit(placed, "ada"))
    claims.dead_letter(run, "OSError: away")
    assert states(tail) == ["emitted", "queued", "running", "dead"]
    operations.replay(operations.has_id_in([run.emission]))
    assert states(tail) == ["replayed", "waiting"]


@pytest.mark.parametrize("end", ["done", "dead"])
def test_a_replay_of_what_was_emitted_long_ago_is_shown(placed: Event, end: str) -> None:
    """The replay and its further steps are shown; the steps before the replay are not."""
    emission = emit(placed, "ada")
    claims.dead_letter(begun(emission), "OSError: away")
    tail = Tail(datetime.now(UTC))
    assert states(tail) == []
    operations.replay(operations.has_id_in([emission.id]))
    assert states(tail) == ["replayed", "waiting"]
    run = begun(emission)
    claims.finish(run) if end == "done" else claims.dead_letter(run, "OSError: away")
    assert states(tail) == ["queued", "running", end]
    operations.replay(operations.has_id_in([emission.id]))
    claims.finish(begun(emission))
    assert states(tail)[-1] == "done"


def test_what_is_not_committed_yet_is_shown_when_it_is(placed: Event) -> None:
    """The first look after the commit shows the emission once, even if later emissions were shown before."""
    tail = Tail(datetime.now(UTC))
    with transaction():
        late = emit(placed, "late")
        assert tail.new_lines() == []
    early = emit(placed, "early")
    assert [line.emission for line in tail.new_lines() if line.state == "emitted"] == [late.id, early.id]
    assert tail.new_lines() == []


def test_an_open_delivery_is_followed_to_its_end(placed: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open delivery is followed, even if its emission is older than the window of late commits."""
    monkeypatch.setattr(tails, "LATE_COMMIT_WINDOW", timedelta(0))
    tail = Tail(datetime.now(UTC))
    emission = emit(placed, "ada")
    assert states(tail) == ["emitted", "queued"]
    assert states(tail) == []
    claims.finish(begun(emission))
    assert states(tail) == ["running", "done"]
    assert states(tail) == []


def test_it_does_not_remember_more_and_more(placed: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number of open emissions is remembered, and each emission is shown once."""
    monkeypatch.setattr(tails, "LATE_COMMIT_WINDOW", timedelta(0))
    monkeypatch.setattr(tails, "MAX_REMEMBERED_EMISSIONS", 3)
    tail, shown = Tail(datetime.now(UTC)), []
    for _ in range(5):
        latest = [emit(placed, "ada") for _ in range(2)]
        shown += [line.emission for line in tail.new_lines() if line.state == "emitted"]
        assert shown[-2:] == [emission.id for emission in latest]
        assert len(tail._shown_keys) <= 3
    assert len(shown) == len(set(shown)) == 10
    assert not tail.is_truncated


def test_it_says_when_there_is_more_than_it_shows(placed: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest lines are shown, and stderr says that there are more."""
    monkeypatch.setattr(tails, "MAX_ROWS", 2)
    emissions = [emit(placed, "ada") for _ in range(2)]
    assert tail("--state", "emitted").stderr == ""
    emissions.append(emit(placed, "ada"))
    shown = tail("--state", "emitted", "--json")
    assert [json.loads(line)["emission"] for line in shown.stdout.splitlines()] == [each.id for each in emissions[1:]]
    assert shown.stderr == "only the latest 2 are shown; give a later --since, or a filter\n"


def older(emission: Emission, days: int = 3) -> str:
    """Moves the emission and its queued delivery some days into the past; returns its new id."""
    identity = f"{min_id_at(datetime.now(UTC) - timedelta(days=days))}{emission.id[13:]}"
    times = {name: deliveries.c[name] - days * 86400 for name in ("due_since", "published_at")}
    with write_connection() as connection:
        row = connection.execute(select(emissions).where(emissions.c.id == emission.id)).one()
        connection.execute(insert(emissions).values({**row._mapping, "id": identity, "story": None}))
        mine = update(deliveries).where(deliveries.c.emission == emission.id)
        connection.execute(mine.values(times | {"emission": identity}))
        connection.execute(delete(emissions).where(emissions.c.id == emission.id))
    return identity


def ended(identity: str, state: str) -> None:
    """Brings the delivery of an emission into this state now."""
    if state == "cancelled":
        operations.cancel(identity)
        return
    run = claims.claim(identity, "shop.mail", "boot/1")
    assert isinstance(run, claims.Claim)
    if state == "retried":
        claims.reschedule(run, 600, "OSError: away")
    elif state in ("dead", "replayed"):
        claims.dead_letter(run, "OSError: away")
    elif state == "done":
        claims.finish(run)
    if state == "replayed":
        operations.replay(operations.has_id_in([identity]))


@pytest.mark.parametrize("state", ["running", "retried", "dead", "replayed", "done", "cancelled"])
def test_it_goes_by_when_something_happened(placed: Event, state: str) -> None:
    """A recent step of an old emission is shown, and the emission's old steps are not."""
    identity = older(emit(placed, "ada"))
    assert told() == []
    ended(identity, state)
    assert [(line["state"], line["emission"]) for line in told("--state", state)] == [(state, identity)]
    every = [line["state"] for line in told()]
    assert state in every
    assert not {"emitted", "queued"} & set(every)  # that was three days ago


@pytest.mark.parametrize("state", ["running", "retried", "dead", "replayed", "done", "cancelled"])
def test_what_becomes_of_an_old_emission_is_followed(placed: Event, state: str) -> None:
    """A running `tail` shows new steps of emissions from before its start."""
    identity = older(emit(placed, "ada"))
    tail = Tail(datetime.now(UTC))
    assert tail.new_lines() == []
    ended(identity, state)
    assert state in {line.state for line in tail.new_lines()}
    assert tail.new_lines() == []


@pytest.mark.parametrize(
    "filters",
    [
        ("--state", "dead"),
        ("--state", "dead", "--handler", "shop.mail"),
        ("--state", "dead", "--event", "order.placed"),
        ("--sender", "Pram:p1", "--state", "dead"),
    ],
)
def test_a_limit_counts_what_is_asked_for(
    placed: Event, monkeypatch: pytest.MonkeyPatch, filters: tuple[str, ...]
) -> None:
    """The limit counts lines that match the filters: a few dead letters are found among many done ones."""
    monkeypatch.setattr(tails, "MAX_ROWS", 4)
    monkeypatch.setattr(tails, "READ_BATCH", 2)
    wanted = [emit(placed, Pram(id="p1")) for _ in range(3)]
    for emission in wanted:
        claims.dead_letter(begun(emission), "OSError: away")
    for _ in range(9):
        claims.finish(begun(emit(placed, "bob")))
    shown = tail("--json", *filters)
    assert [json.loads(line)["emission"] for line in shown.stdout.splitlines()] == [each.id for each in wanted]
    assert shown.stderr == ""


def test_what_the_journal_tells_is_found_among_much_else(
    placed: Event, journaled: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of the journal are found by handler and by outcome."""
    monkeypatch.setattr(tails, "MAX_ROWS", 3)
    on(journaled, name="shop.gäte")(lambda sender: False)
    emit(journaled, "ada")
    assert journal.flush(20)
    for _ in range(6):
        emit(placed, "bob")
    assert [line["state"] for line in told("--handler", "shop.gäte")] == ["cancelled"]
    assert [line["handler"] for line in told("--state", "cancelled")] == ["shop.gäte"]


def test_lines_of_several_emissions_come_in_the_order_of_time(placed: Event) -> None:
    """Lines of different emissions are merged by time."""
    first = emit(placed, "ada")
    second = emit(placed, "bob")
    claims.finish(begun(first))
    lines = told()
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert [line["state"] for line in lines if line["emission"] == first.id][-1] == "done"
    assert lines[-1]["emission"] == first.id
    assert second.id in {line["emission"] for line in lines[:-2]}


@pytest.mark.parametrize(("sender", "found"), [("Pram:p1", ["p1", "p1"]), ("Pram:p10", ["p10"]), ("Pram:p", [])])
def test_an_entity_that_shows_fields_is_found_by_its_id(placed: Event, sender: str, found: list[str]) -> None:
    """The id matches, with any values of the shown fields."""
    for pram in (Pram(id="p1"), Pram(id="p10"), Pram(id="p1", status="sold")):
        emit(placed, pram)
    lines = told("--sender", sender, "--state", "emitted")
    assert [re.match(r"Pram:(\w+) ", line["sender"])[1] for line in lines] == found  # type: ignore[index]  # it does


def test_filters_must_all_be_met(placed: Event) -> None:
    """Different filters must all match; of several states one must match."""
    emit(placed, Pram(id="p1"))
    both = ("--state", "queued", "--state", "emitted", "--sender", "Pram:p1")
    assert [line["state"] for line in told(*both)] == ["emitted", "queued"]
    assert [line["state"] for line in told(*both, "--handler", "shop.mail")] == ["queued"]
    assert told(*both, "--handler", "shop.mail", "--event", "order.paid") == []


def test_an_unknown_state_is_a_usage_error(placed: Event) -> None:
    """The error lists the known states."""
    refused = tail("--state", "lost")
    assert refused.exit_code == 2
    assert "'retried'" in refused.stderr


def test_what_queued_nothing_is_shown_with_the_journal_on(journaled: Event) -> None:
    """A raised error or a cancellation is shown with its handler and its reason."""

    @on(journaled, name="shop.alert", on_error="log", priority=2)
    def alert(sender: str) -> None:
        raise OSError("no bell")

    @on(journaled, name="shop.gate")
    def gate(sender: str) -> bool:
        if sender == "eve":
            raise LookupError("no such customer")
        return False

    with pytest.raises(LookupError):
        emit(journaled, "eve")
    emit(journaled, "ada")
    assert journal.flush(20)
    assert [(line["state"], line["handler"], line["note"]) for line in told()] == [
        ("emitted", None, "raised LookupError: no such customer"),
        ("failed", "shop.alert", "OSError: no bell"),
        ("raised", "shop.gate", "LookupError: no such customer"),
        ("emitted", None, ""),
        ("failed", "shop.alert", "OSError: no bell"),
        ("cancelled", "shop.gate", ""),
    ]


def test_what_an_emission_caused_names_it(placed: Event, journaled: Event) -> None:
    """A line of an emission that a handler made names its parent."""
    on(journaled, name="shop.cause")(lambda sender: emit(placed, sender) and None)
    parent = emit(journaled, "ada")
    assert journal.flush(20)
    notes = {line["event"]: line["note"] for line in told("--state", "emitted")}
    assert notes == {"order.seen": "", "order.placed": f"below {parent.id}"}


@pytest.mark.parametrize("state", ["dead", "cancelled"])
def test_the_end_of_a_delivery_is_shown(placed: Event, state: str) -> None:
    """A dead letter is shown with the last line of its error."""
    emission = emit(placed, "ada")
    if state == "dead":
        claims.dead_letter(
            begun(emission), 'Traceback (most recent call last):\n  File "m.py", line 3\nOSError: no mail\nmore'
        )
    else:
        assert operations.cancel(emission.id) == 1
    (line,) = told("--state", state)
    assert line["note"] == ("OSError: no mail" if state == "dead" else "")


def test_a_line_is_for_people(placed: Event) -> None:
    """A line has time, state, emission, event, sender and handler; colours are for a terminal only."""
    emission = emit(placed, Pram(id="p1"))
    shown = tail("--handler", "shop.mail").stdout
    facts = f"{emission.id}  order.placed  Pram:p1 status='open'  shop.mail"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d\.\d{{3}}  queued     {facts}\n", shown)
    assert f"\x1b[33mqueued   \x1b[0m  {facts}" in tail("--handler", "shop.mail", colour=True).stdout


def test_a_database_that_is_away_is_one_line(placed: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one line with the address, and the exit code is 1."""
    monkeypatch.setenv("NITRO_DB_URL", "postgresql://postgres@127.0.0.1:9/away")
    reset()
    failed = tail()
    assert (failed.exit_code, failed.stdout, len(failed.stderr.splitlines())) == (1, "", 1)
    assert failed.stderr.startswith("Error: postgresql+psycopg://postgres@127.0.0.1:9/away: ")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[..., None]]]:
    """A running `nitro tail --json`, and a function that emits events in another process."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("NITRO_")},
        "PYTHONPATH": str(ROOT),
        "NITRO_HOME": str(tmp_path / "home"),
        "NITRO_DB_URL": f"sqlite:///{tmp_path / 'nitro.db'}",
    }

    def emitted(*events: str) -> None:
        command = [sys.executable, "-c", EMITTER, *events]
        subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=60)

    emitted("first")
    command = [sys.executable, "-m", "celery", "-A", "tasks", "nitro", "tail", "--since", "1h", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process, emitted
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_happens_is_shown_while_it_runs(live: tuple[Any, Callable[..., None]], number: signal.Signals) -> None:
    """New steps are printed into a pipe without delay, and a signal ends the process without an error."""
    process, emitted = live
    seen = [json.loads(process.stdout.readline())]
    while seen[-1]["state"] != "queued":
        seen.append(json.loads(process.stdout.readline()))
    assert {line["event"] for line in seen} == {"first"}
    emitted("second", "third")
    seen = [json.loads(process.stdout.readline()) for _ in range(4)]
    assert [line["event"] for line in seen if line["state"] == "emitted"] == ["second", "third"]
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")
