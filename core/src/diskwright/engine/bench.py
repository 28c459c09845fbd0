"""Measuring how fast an image answers many small requests, several at a time."""

from __future__ import annotations

import errno
import mmap
import threading
import time
from collections.abc import Callable

from ..errors import ImageError, UnsupportedOperation, reason_of
from ..node import Image, WritableImage, write_beside
from ..record import Record
from .pool import Workers, thread_count

MAX_THREADS = 1024
"""Most requests that are really on their way at a time."""


class BenchRequest(Record):
    """What to do.

    :ivar count: requests, > 0.
    :ivar depth: requests at a time, > 0.
    :ivar offset: guest offset of the first request, bytes.
    :ivar buffer_size: bytes of each request, > 0.
    :ivar step: bytes from one request to the next.
    :ivar pattern: the byte to write.
    :ivar flush_interval: requests after which everything written is made durable; 0: never.
    :ivar drain: whether a flush waits for the requests before it, and the next ones for the flush.
    """

    count: int = 75000
    depth: int = 64
    offset: int = 0
    buffer_size: int = 4096
    step: int = 4096
    write: bool = False
    pattern: int = 0
    flush_interval: int = 0
    drain: bool = True


def bench(image: Image, request: BenchRequest) -> float:
    """Run all requests; the seconds that took.

    :param image: opened for writing if the request is to write.
    :raises ImageError: a request failed.
    """
    return _Bench(image, request).run()


class _Bench:
    """One run. Every thread is a slot of the queue: it takes the next request when its last one is done.

    What the threads share is guarded by one condition; ``started`` and ``finished`` count requests, ``flushed`` is how
    many had been started at the last flush.
    """

    def __init__(self, image: Image, request: BenchRequest) -> None:
        self.image = image
        self.request = request
        self.offset = request.offset
        self.started = self.finished = self.flushed = 0
        self.moved = threading.Condition()
        self.workers = Workers(thread_count(min(request.depth, request.count, MAX_THREADS)))

    def run(self) -> float:
        start = time.monotonic()
        try:
            self.workers.run(self._slot)
        except OSError as error:
            raise ImageError(f"Failed request: {reason_of(error)}") from error
        return time.monotonic() - start

    def _slot(self) -> None:
        # Memory of its own is aligned to pages, which direct I/O needs.
        buffer = mmap.mmap(-1, self.request.buffer_size)
        if self.request.write:
            buffer.write(bytes([self.request.pattern]) * self.request.buffer_size)
        view = memoryview(buffer)
        perform = self._perform(view)
        while (offset := self._next()) is not None:
            if offset + len(view) > self.image.size:
                raise OSError(errno.EIO, "")
            perform(offset)
            self._finish()

    def _perform(self, view: memoryview) -> Callable[[int], None]:
        """What to do at each offset."""
        image = self.image
        if not self.request.write:
            return lambda offset: image.read_into(offset, view)
        if not isinstance(image, WritableImage):
            raise UnsupportedOperation(f"Format driver '{image.driver}' does not support writing")
        if image.cluster_size or image.detect_zeroes != "off":
            # Two writes must not allocate the same cluster: they go one after the other.
            return lambda offset: image.write_at(offset, view)
        return lambda offset: write_beside(image, [(0, len(view))], offset, view)

    def _next(self) -> int | None:
        """The offset of the next request, once it may start; ``None`` when all have been started."""
        request = self.request
        with self.moved:
            while self._flush_is_due():
                if self.started == self.finished:
                    self.image.flush()
                    self.flushed = self.started
                    self.moved.notify_all()
                else:
                    self.workers.check()
                    self.moved.wait(0.1)
            if self.started == request.count:
                return None
            self.workers.check()
            self.started += 1
            offset = self.offset
            room = self.image.size - request.buffer_size
            self.offset = (offset + request.step) % room if room > 0 else 0
            return offset

    def _flush_is_due(self) -> bool:
        """Whether nothing may start before a flush."""
        interval = self.request.flush_interval if self.request.drain else 0
        return bool(interval) and self.started > self.flushed and self.started % interval == 0

    def _finish(self) -> None:
        interval = self.request.flush_interval
        with self.moved:
            self.finished += 1
            flush = interval and not self.request.drain and self.finished % interval == 0
            self.moved.notify()
        if flush:
            self.image.flush()
