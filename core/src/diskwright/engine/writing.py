"""Writing behind: one thread writes what the others have read, while they read on.

The system lets one thread at a time write to a file. Threads that read and write by turns would wait for each other
there, and to wake one that sleeps takes as long as copying some hundred kilobytes. So data for such a file goes to a
thread that does nothing else, and a few buffers go round: filled by those who read, emptied by the one that writes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from ..node import Placement, WritableImage, write_placed
from .reading import failing

if TYPE_CHECKING:
    from .pool import Workers

LINKED_AT_ONCE = 16
"""Buffers written between two changes of the target's tables: one by one, that would take as long as reading them."""

_PATIENCE = 0.1
"""Seconds to wait for something before looking whether another worker has failed."""


class Buffers:
    """Buffers that go round; each is made when it is first needed.

    :param size: bytes of each.
    :param number: how many there are at most, see :meth:`allow`.
    """

    def __init__(self, workers: Workers, size: int, number: int) -> None:
        self.size = size
        self._workers = workers
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._made = 0
        self._number = number
        self._lock = threading.Lock()

    def allow(self, number: int) -> None:
        """There may be so many, if there may not be more already."""
        with self._lock:
            self._number = max(self._number, number)

    def take(self) -> memoryview:
        """A buffer that nobody uses; wait for one if there is none.

        :raises Stopped: another worker has failed.
        :raises OSError: there is no memory for it. Fewer than workers must not do: they would be with those who wait
            for the turn of one that has none.
        """
        with suppress(Empty):
            return self._free.get_nowait()
        with self._lock:
            if self._made < self._number:
                import mmap

                # Anonymous memory of its own is page-aligned and goes back to the system whole. It is not closed by
                # hand: after a failure parts of it are still held by the traceback.
                made = memoryview(mmap.mmap(-1, self.size))
                self._made += 1
                return made
        while True:
            with suppress(Empty):
                return self._free.get(timeout=_PATIENCE)
            self._workers.check()

    def give(self, buffer: memoryview) -> None:
        """Nobody uses it any more."""
        self._free.put(buffer)


class Filled(NamedTuple):
    """A buffer with data that has its places.

    :ivar offset: where the data begins in the target, for messages.
    :ivar start: where the buffer begins in the target; that may be before the data.
    :ivar placements: where the target wants parts of the buffer.
    :ivar buffer: as it was taken, to be given back.
    """

    offset: int
    start: int
    placements: Sequence[Placement]
    buffer: memoryview

    def write(self, target: WritableImage) -> None:
        """Write the data to its places; the target does not refer to them yet."""
        write_placed(target, self.placements, self.start, self.buffer)


class Writer:
    """The thread that writes.

    It leaves it to the others to let the target refer to what is written: it is the one that they wait for.

    :ivar active: whether it has begun; until then, and where there is no memory for it, the others write themselves.
    """

    def __init__(self, target: WritableImage, workers: Workers, buffers: Buffers) -> None:
        self.active = False
        self._target = target
        self._workers = workers
        self._buffers = buffers
        self._waiting: SimpleQueue[Filled | None] = SimpleQueue()
        self._written: deque[Sequence[Placement]] = deque()
        self._feeding = 0
        self._lock = threading.Lock()

    @contextmanager
    def fed(self) -> Iterator[None]:
        """Within, the calling thread may hand something over; when no thread may any more, the writer ends."""
        with self._lock:
            self._feeding += 1
        try:
            yield
        finally:
            with self._lock:
                self._feeding -= 1
                if not self._feeding:
                    self._waiting.put(None)

    def put(self, filled: Filled) -> None:
        """Hand over a buffer whose data goes to nodes that are written by one thread at a time."""
        self._waiting.put(filled)

    def loop(self) -> None:
        """Write until nothing can come any more."""
        self.active = True
        while (filled := self._next()) is not None:
            self._workers.check()
            with failing("writing", filled.offset):
                filled.write(self._target)
            self._written.append(filled.placements)
            self._buffers.give(filled.buffer)

    def _next(self) -> Filled | None:
        while True:
            with suppress(Empty):
                return self._waiting.get(timeout=_PATIENCE)
            self._workers.check()

    def link(self) -> None:
        """Let the target refer to what has been written, once that is enough; to be called now and then."""
        if len(self._written) >= LINKED_AT_ONCE:
            self._link()

    def finish(self) -> None:
        """Let the target refer to the rest; to be called when the thread has ended."""
        if self._written:
            with failing("writing", self._written[0][0].offset):
                self._link()

    def _link(self) -> None:
        placements: list[Placement] = []
        with suppress(IndexError):
            while True:
                placements += self._written.popleft()
        with self._target.lock:
            self._target.link(placements)
