"""The exit of the interpreter, in processes of their own: contract section 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Process = Callable[..., Any]

HANDLER = """
import asyncio
from nitro.infrastructure.events import drain, drain_async, emit, event, on
from support.events import exit_wait, set_exit_wait

@on("order.placed", name="shop.mail")
async def mail(sender, **kwargs):
    for _ in range(20):
        await asyncio.sleep(0.01)
    print("mailed", sender, flush=True)

"""


def test_exit_waits_for_the_background_loop(fresh_process: Process) -> None:
    """A script ends after its async handlers have finished."""
    process = fresh_process(HANDLER + "emit('order.placed', 'ada')")
    assert (process.returncode, process.stdout, process.stderr) == (0, "mailed ada\n", "")


def test_exit_waits_for_what_they_start(fresh_process: Process) -> None:
    """A script ends after a whole chain of emissions has finished."""
    chain = "@on('order.paid')\nasync def paid(sender):\n    emit('order.placed', sender)\n"
    process = fresh_process(HANDLER + chain + "emit('order.paid', 'ada')")
    assert (process.returncode, process.stdout, process.stderr) == (0, "mailed ada\n", "")


def test_exit_by_an_exception_waits_too(fresh_process: Process) -> None:
    """A script that fails waits for its async handlers, too."""
    process = fresh_process(HANDLER + "emit('order.placed', 'ada')\nraise SystemExit(3)")
    assert (process.returncode, process.stdout) == (3, "mailed ada\n")


def test_exit_waits_for_emits_of_other_threads(fresh_process: Process) -> None:
    """Handlers of a thread that runs longer than the main thread finish."""
    thread = (
        "import threading\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    emit('order.placed', 'ada')\n"
        "threading.Thread(target=late).start()\n"
    )
    process = fresh_process(HANDLER + thread)
    assert (process.returncode, process.stdout, process.stderr) == (0, "mailed ada\n", "")


def test_exit_waits_no_longer_than_its_bound(fresh_process: Process) -> None:
    """After 30 s, here shortened, the exit stops waiting, and the log names the handler."""
    forever = "@on('order.lost', name='shop.stuck')\nasync def stuck(sender):\n    await asyncio.Event().wait()\n"
    process = fresh_process(HANDLER + forever + "set_exit_wait(0.05)\nemit('order.lost')")
    assert process.returncode == 0
    assert "shop.stuck" in process.stderr
    assert "order.lost" in process.stderr


def test_bound_of_the_exit_is_thirty_seconds(fresh_process: Process) -> None:
    """The exit waits for 30 s, as the contract says."""
    assert fresh_process(HANDLER + "print(exit_wait())").stdout == "30.0\n"


def test_exit_of_a_program_without_async_handlers_waits_for_nothing(fresh_process: Process) -> None:
    """A program without async handlers starts no thread and does not import asyncio."""
    source = (
        "import sys, threading\n"
        "from nitro.infrastructure.events import drain, emit, on\n"
        "on('order.placed')(lambda sender: print('inline', sender))\n"
        "emit('order.placed', 'ada')\n"
        "print('asyncio' in sys.modules, threading.active_count())\n"
    )
    assert fresh_process(source).stdout == "inline ada\nFalse 1\n"


def test_import_loads_neither_celery_nor_the_database(fresh_process: Process) -> None:
    """Importing events loads no Celery, SQLAlchemy or pydantic: contract section 2."""
    source = (
        "import sys\n"
        "import nitro.infrastructure.events\n"
        "heavy = {'celery', 'kombu', 'sqlmodel', 'sqlalchemy', 'pydantic'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    assert fresh_process(source).stdout == "[]\n"


def test_forked_child_has_a_loop_of_its_own(fresh_process: Process) -> None:
    """A forked child starts its own background loop, because the parent's thread is gone."""
    fork = (
        "import os\n"
        "emit('order.placed', 'parent')\n"
        "drain()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    emit('order.placed', 'child')\n"
        "    os._exit(0 if drain(10) else 1)\n"
        "print('exit', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    process = fresh_process(HANDLER + fork)
    assert process.stdout == "mailed parent\nmailed child\nexit 0\n"


def test_child_forked_while_another_thread_asks_can_connect(fresh_process: Process) -> None:
    """A lock that a thread of the parent held at the fork does not block the child."""
    fork = (
        "import os, signal, threading\n"
        "held, go = threading.Event(), threading.Event()\n"
        "class Slow(type):\n"
        "    def __instancecheck__(cls, sender):\n"
        "        held.set()\n"
        "        return go.wait(10)\n"
        "class Sender(metaclass=Slow): pass\n"
        "on('order.paid', sender=Sender)(lambda sender: None)\n"
        "thread = threading.Thread(target=lambda: event('order.paid').has_receivers_for(object()))\n"
        "thread.start()\n"
        "held.wait(10)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(5)\n"
        "    on('order.shipped')(lambda sender: print('shipped', flush=True))\n"
        "    emit('order.shipped')\n"
        "    os._exit(0)\n"
        "go.set()\n"
        "thread.join()\n"
        "print('exit', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert fresh_process(HANDLER + fork).stdout == "shipped\nexit 0\n"


def test_handler_cannot_end_the_background_loop(fresh_process: Process) -> None:
    """A handler that calls `sys.exit()` has failed, is logged by name, and the next handler still runs."""
    failing = (
        "set_exit_wait(1.0)\n"
        "@on('order.lost', name='shop.reserve')\n"
        "async def reserve(sender):\n    raise SystemExit(1)\n"
        "emit('order.lost')\n"
        "drain(1)\n"
        "emit('order.placed', 'ada')\n"
    )
    process = fresh_process(HANDLER + failing)
    assert process.stdout == "mailed ada\n"
    assert "handler shop.reserve of event order.lost by ANY failed" in process.stderr


def test_task_of_a_handler_cannot_end_the_background_loop(fresh_process: Process) -> None:
    """A task that a handler has started cannot end the background loop."""
    leaving = (
        "set_exit_wait(1.0)\n"
        "async def ends():\n    raise KeyboardInterrupt\n"
        "@on('order.lost')\n"
        "async def leaves(sender):\n    await asyncio.wait([asyncio.create_task(ends())])\n"
        "emit('order.lost')\n"
        "drain(1)\n"
        "emit('order.placed', 'ada')\n"
    )
    assert fresh_process(HANDLER + leaving).stdout == "mailed ada\n"


@pytest.mark.parametrize("loop", ["running", "background"])
def test_started_handler_is_not_garbage(fresh_process: Process, loop: str) -> None:
    """A handler that waits for a future without another reference is kept until it has finished."""
    waiting = """
import gc, threading, weakref
set_exit_wait(1.0)
started, futures = threading.Event(), []

@on("order.lost")
async def waits(sender):
    future = asyncio.get_running_loop().create_future()
    futures.append(weakref.ref(future))
    started.set()
    await future
    print("finished")

def release():
    gc.collect()
    future = futures[0]()
    if future is None:
        raise SystemExit("collected")
    future.get_loop().call_soon_threadsafe(future.set_result, None)

async def main():
    emit("order.lost")
    while not started.is_set():
        await asyncio.sleep(0)
    release()
    await drain_async()

"""
    use = {"running": "asyncio.run(main())", "background": "emit('order.lost')\nstarted.wait(10)\nrelease()"}
    assert fresh_process(HANDLER + waiting + use[loop]).stdout == "finished\n"


AT_EXIT = """
import asyncio, atexit
from nitro.infrastructure.events import emit, on

@on("order.placed")
async def mail(sender):
    await asyncio.sleep(0.05)
    print("mailed", sender, flush=True)

"""


@pytest.mark.parametrize("first", ["", "emit('order.placed', 'early')\n"], ids=["only at exit", "after the first emit"])
def test_emit_of_an_exit_function_is_not_lost(fresh_process: Process, first: str) -> None:
    """An `atexit` function from before the first emit runs last, and the exit waits for its emit."""
    process = fresh_process(AT_EXIT + "atexit.register(emit, 'order.placed', 'late')\n" + first)
    mailed = ["mailed early", "mailed late"] if first else ["mailed late"]
    assert (process.returncode, process.stdout.splitlines(), process.stderr) == (0, mailed, "")


@pytest.mark.parametrize(
    "before", ["", "    emit('order.placed', 'parent')\n    drain()\n"], ids=["new", "armed parent"]
)
@pytest.mark.parametrize("child", ["process", "pool"])
def test_exit_of_a_child_of_multiprocessing_waits(fresh_process: Process, child: str, before: str) -> None:
    """A forked child of multiprocessing, which runs no `atexit` functions, waits for its handlers, too."""
    start = {
        "process": "    child = fork.Process(target=work)\n    child.start()\n    child.join()\n",
        "pool": "    with ProcessPoolExecutor(1, mp_context=fork) as pool:\n        pool.submit(work).result()\n",
    }
    source = (
        "import multiprocessing\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "def work():\n"
        "    emit('order.placed', 'child')\n"
        "if __name__ == '__main__':\n"
        "    fork = multiprocessing.get_context('fork')\n"
    )
    process = fresh_process(HANDLER + source + before + start[child])
    mailed = [*(["mailed parent"] if before else []), "mailed child"]
    assert (process.returncode, process.stdout.splitlines(), process.stderr) == (0, mailed, "")


def test_emit_of_a_thread_that_outlives_the_main_thread_does_not_wait(fresh_process: Process) -> None:
    """An emit of a thread returns before its async handler has run, also after the main thread's end."""
    serve = (
        "import threading\n"
        "returned = threading.Event()\n"
        "@on('order.placed')\n"
        "async def bill(sender):\n"
        "    for _ in range(500):\n"
        "        if returned.is_set(): break\n"
        "        await asyncio.sleep(0.01)\n"
        "    print('billed', returned.is_set(), flush=True)\n"
        "def serve():\n"
        "    threading.main_thread().join()\n"
        "    emit('order.placed', 'ada')\n"
        "    returned.set()\n"
        "    drain()\n"
        "threading.Thread(target=serve).start()\n"
    )
    assert "billed True\n" in fresh_process(HANDLER + serve).stdout
