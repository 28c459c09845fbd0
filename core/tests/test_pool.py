"""Worker threads: as many as there can be, and no waiting for those that never begin."""

import _thread
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from diskwright.engine.pool import Workers


def done_by(workers: Workers, tasks: int) -> list[int]:
    """Who does what: tasks are taken one after the other."""
    lock, left, done = threading.Lock(), list(range(tasks)), []

    def work() -> None:
        while True:
            workers.check()
            with lock:
                if not left:
                    return
                done.append(left.pop())

    workers.run(work)
    return sorted(done)


def none(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    """A thread that has no memory to begin with."""
    return 0


def refused(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("start", [_thread.start_new_thread, none, refused])
def test_all_is_done_however_many_threads_begin(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    monkeypatch.setattr(_thread, "start_new_thread", start)
    assert done_by(Workers(8), 1000) == list(range(1000))


def test_the_first_failure_stops_all() -> None:
    workers = Workers(4)
    met = threading.Barrier(4, timeout=20)

    def work() -> None:
        if met.wait() == 0:
            raise LookupError("mine")
        while True:
            workers.check()

    with pytest.raises(LookupError, match="mine"):
        workers.run(work)


def test_without_memory_for_threads() -> None:
    """A process that has all the address space that it may have: nothing hangs."""
    code = """
import resource, sys, threading
sys.setswitchinterval(1e-5)
from diskwright.engine.pool import Workers
import diskwright.waiting
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
for _ in range(20):
    Workers(8).run(lambda: None)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
