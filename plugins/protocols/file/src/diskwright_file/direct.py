"""I/O past the page cache (``O_DIRECT``), for the cache modes ``none`` and ``directsync``.

The system wants offsets, lengths and addresses of such transfers to be multiples of the block size. Data therefore goes
through aligned buffers, and what is left over at the ends of a write goes through the page cache and to disk at once.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable

from diskwright.errors import InvalidOption

CHUNK = 1 << 20
"""Bytes moved at a time; each thread has a buffer of this size."""
ALIGNMENTS = (512, 4096)
"""Block sizes of disks, bytes: the second is tried when the first turns out not to do."""


class DirectIO:
    """A second way to an open file, past the page cache.

    :param fd: the file, opened without ``O_DIRECT``; it stays the caller's.
    :param flags: of open(2): access mode, and ``O_DSYNC`` if writes are to be on disk when they return.
    :raises InvalidOption: the file system has no such way.
    """

    def __init__(self, fd: int, flags: int) -> None:
        self._buffered = fd
        try:
            # Not by name: the file may have another one by now, or none.
            self._fd = os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise InvalidOption("filesystem does not support O_DIRECT") from None
            raise
        self._alignment = ALIGNMENTS[0]
        self._writing = threading.Lock()
        self._of_thread = threading.local()

    def close(self) -> None:
        """Close the second way only."""
        os.close(self._fd)

    def find_alignment(self) -> int:
        """The block size, bytes, as far as a read shows it."""
        self.read(0, memoryview(bytearray(ALIGNMENTS[0])))
        return self._alignment

    def read(self, offset: int, view: memoryview) -> None:
        """Fill the buffer; zeros behind the end of the file."""
        self._adapting(self._read, offset, view)

    def write(self, offset: int, view: memoryview) -> None:
        """Write everything. One write at a time, so that both ways do not meet in one page of memory."""
        with self._writing:
            self._adapting(self._write, offset, view)

    def _adapting(self, transfer: Callable[[int, memoryview], None], offset: int, view: memoryview) -> None:
        try:
            transfer(offset, view)
        except OSError as error:
            if error.errno != errno.EINVAL or self._alignment == ALIGNMENTS[-1]:
                raise
            self._alignment = ALIGNMENTS[-1]
            transfer(offset, view)

    def _buffer(self) -> memoryview:
        if not hasattr(self._of_thread, "buffer"):
            self._of_thread.buffer = memoryview(mmap.mmap(-1, CHUNK))
        buffer: memoryview = self._of_thread.buffer
        return buffer

    def _read(self, offset: int, view: memoryview) -> None:
        buffer = self._buffer()
        while len(view):
            skipped = offset % self._alignment
            length = min(CHUNK, skipped + len(view) + self._alignment - 1) // self._alignment * self._alignment
            found = os.preadv(self._fd, [buffer[:length]], offset - skipped) - skipped
            count = min(found, len(view))
            if count <= 0:
                view[:] = bytes(len(view))
                return
            view[:count] = buffer[skipped : skipped + count]
            view = view[count:]
            offset += count

    def _write(self, offset: int, view: memoryview) -> None:
        head = min(len(view), -offset % self._alignment)
        tail = (len(view) - head) % self._alignment
        self._write_ragged(offset, view[:head])
        self._write_aligned(offset + head, view[head : len(view) - tail])
        self._write_ragged(offset + len(view) - tail, view[len(view) - tail :])

    def _write_aligned(self, offset: int, view: memoryview) -> None:
        buffer = self._buffer()
        while len(view):
            length = min(CHUNK, len(view))
            buffer[:length] = view[:length]
            # A transfer that was cut short may end at any byte: the next one starts with the block it ended in.
            count = os.pwrite(self._fd, buffer[:length], offset) // self._alignment * self._alignment
            if not count:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            view = view[count:]
            offset += count

    def _write_ragged(self, offset: int, view: memoryview) -> None:
        if not len(view):
            return
        while len(view):
            count = os.pwrite(self._buffered, view, offset)
            view = view[count:]
            offset += count
        os.fdatasync(self._buffered)
