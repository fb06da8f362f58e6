"""The Emission that an emit returns: contract section 4."""

from __future__ import annotations

import copy
import pickle
import threading
import uuid
from contextlib import suppress
from typing import Any

import pytest

from nitro.infrastructure.events import Emission, Event, emit, on


def seen(sender: object) -> str:
    """A handler that another process can import, too."""
    return "seen"


def test_emission_starts_empty(evt: Event) -> None:
    """An emit without handlers returns an empty emission."""
    emission = emit(evt)
    assert isinstance(emission, Emission)
    assert isinstance(emission, list)
    assert emission == []
    assert (emission.event, emission.parent, emission.root, emission.cancelled_by) == ("order.placed", None, None, None)
    assert emission.skipped == emission.failed == emission.offloaded == {}


def test_emission_id_is_a_uuid7_that_stays(evt: Event) -> None:
    """The id is text, ordered by time, its own for each emission and always the same."""
    first, second = emit(evt), emit(evt)
    assert uuid.UUID(first.id).version == 7
    assert str(uuid.UUID(first.id)) == first.id == first.id
    assert first.id < second.id


def test_emission_travels_between_processes(evt: Event) -> None:
    """An emission can be pickled, as for a pool of processes: the first of an event and a later one."""
    on(evt)(seen)
    for emission in (emit(evt), emit(evt)):
        copied = pickle.loads(pickle.dumps(emission))
        assert (type(copied), copied, copied.id) == (Emission, ["seen"], emission.id)


def test_emission_travels_without_the_functions_of_its_plan(evt: Event) -> None:
    """An emission can be pickled and copied although its handler is a lambda."""
    on(evt, on_error="log")(lambda sender: 1)
    emission = emit(evt)
    assert pickle.loads(pickle.dumps(emission)) == copy.deepcopy(emission) == [1]


@pytest.mark.parametrize("options", [{}, {"on_error": "log"}, {"condition": lambda sender: True}])
def test_emission_is_of_its_class(evt: Event, options: dict[str, Any]) -> None:
    """An emission is an Emission whatever the handler's options, also when another emission has caused it."""
    inner: list[type] = []
    on(evt, **options)(lambda sender: inner.append(type(emit("other"))))
    assert [type(emit(evt)), *inner] == [Emission, Emission]


def test_emission_has_one_id_for_all_threads(evt: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that read the id at the same moment get the same one."""
    barrier = threading.Barrier(2)

    def slow() -> uuid.UUID:
        with suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=0.3)
        return uuid.uuid4()

    monkeypatch.setattr("uuid_utils.uuid7", slow)
    emission, seen = Emission.of("order.placed"), []
    threads = [threading.Thread(target=lambda: seen.append(emission.id)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {emission.id}


def test_inline_handlers_of_equal_name_are_told_apart(evt: Event) -> None:
    """The second inline handler of a name is reported with `#2`, the third with `#3`."""
    for _ in range(3):
        on(evt, name="shop.audit", condition=lambda sender: False)(lambda sender: None)
    assert list(emit(evt).skipped) == ["shop.audit", "shop.audit#2", "shop.audit#3"]


def test_name_of_a_task_is_never_changed(evt: Event, queue: Any) -> None:
    """An inline handler with the name of a task is renamed, also when it was connected first."""
    on(evt, name="shop.audit", on_error="log")(lambda sender: 1 / 0)
    on(evt, name="shop.audit", offload=True)(lambda sender: None)
    emission = emit(evt)
    assert list(emission.offloaded) == ["shop.audit"]
    assert list(emission.failed) == ["shop.audit#2"]
