"""`ForkSafeLock`: its owner, as a thread sees it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from nitro.infrastructure.threads import ForkSafeLock


def test_a_lock_is_mine_while_this_thread_holds_it() -> None:
    """Only the thread that holds the lock owns it, until it has left as often as it has entered."""
    lock = ForkSafeLock()
    assert not lock.is_owned
    with lock:
        assert lock.try_acquire()
        assert lock.is_owned
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(lambda: lock.is_owned).result()
            assert not other.submit(lock.try_acquire).result()
        lock.release()
        assert lock.is_owned
    assert not lock.is_owned
