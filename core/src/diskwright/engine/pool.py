"""Worker threads that fit the machine and its limits, and a turnstile that keeps their results in order."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..waiting import interrupted_by

_ADDRESS_SPACE_OF_THE_REST = 512 << 20
"""Bytes, for the interpreter, numpy, buffers, and a thread that only writes."""
_ADDRESS_SPACE_PER_THREAD = 96 << 20
_STACK = 1 << 20
_starting = threading.Lock()  # the size of stacks is one for the whole process


def worker_count(wanted: int) -> int:
    """How many threads to work with, besides one that only writes: no more than asked for or than there are cores.

    Each thread's allocator arena reserves address space (64 MiB with glibc), so RLIMIT_AS counts too.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return thread_count(min(wanted, cores))


def thread_count(wanted: int) -> int:
    """How many threads to have for what mostly waits: as many as asked for, if the address space has room for them."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        wanted = min(wanted, (limit - _ADDRESS_SPACE_OF_THE_REST) // _ADDRESS_SPACE_PER_THREAD)
    return max(1, wanted)


class Stopped(Exception):
    """Another worker has failed: leave."""


class Workers:
    """Runs loops in several threads, the calling thread being one of them; the first failure stops all.

    :param count: threads that there can be.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._busy = 0
        self._over = False

    def check(self) -> None:
        """Called by each worker now and then.

        :raises Stopped: another worker has failed.
        """
        if self._failure is not None:
            raise Stopped

    def run(self, loop: Callable[[], None], helpers: int | None = None) -> None:
        """Run ``loop`` in several threads until it has returned in each.

        :param helpers: threads besides the calling one; by default as many as there can be.
        :raises BaseException: whatever the first failing worker raised.
        """
        self.add(loop, self.count - 1 if helpers is None else helpers)
        self._guarded(loop)
        self._guarded(self._wait)  # a signal while waiting stops the others too
        self._wait()  # the next one ends the waiting, for one of them may hang
        if self._failure is not None:
            raise self._failure

    def add(self, loop: Callable[[], None], number: int = 1) -> None:
        """Let further threads take part, with a loop of their own or the same; any worker may call this.

        There may be fewer, or none, where there is no memory for them: whatever they do, others must do as well.
        """
        with _starting:
            former = threading.stack_size(_STACK)
            try:
                for _ in range(number):
                    # Not threading.Thread: that waits for a thread which had no memory to begin, for ever.
                    _thread.start_new_thread(self._help, (loop,))
            except RuntimeError:
                pass
            finally:
                threading.stack_size(former)

    def _help(self, loop: Callable[[], None]) -> None:
        """What the other threads do; one that begins when all is done already does nothing."""
        with self._changed:
            if self._over:
                return
            self._busy += 1
        self._guarded(loop)
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def _wait(self) -> None:
        """Wait for the threads that have begun."""
        with self._changed:
            self._over = True
            while self._busy:
                self._changed.wait()

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            with interrupted_by(self.check):
                loop()
        except Stopped:
            pass
        except BaseException as failure:
            if self._failure is None:
                self._failure = failure


class Turnstile:
    """Lets workers pass in the order of their task numbers.

    :param workers: asked while waiting, so that nobody waits for a worker that has failed.
    :param ordered: False lets everybody pass at once.
    """

    def __init__(self, workers: Workers, *, ordered: bool = True) -> None:
        self._workers = workers
        self._ordered = ordered
        self._turn = 0
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until all tasks with smaller numbers have passed; they are numbered 0, 1, 2 ..."""
        with self._moved:
            while self._ordered and self._turn != number:
                self._workers.check()
                self._moved.wait(0.1)
        yield
        with self._moved:
            self._turn += 1
            self._moved.notify_all()
