"""Standard output as a target: a pipe, a socket, or a file that the shell has opened."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Hashable
from contextlib import suppress

from diskwright.errors import InvalidOption, NodeIOError, UnsupportedOperation
from diskwright.hookspecs import CreatedNode, ProtocolOptions
from diskwright.node import Buffer, Bytes

_ZEROS = bytes(1 << 20)
_PIPE_SIZE = 1 << 20
"""Bytes that a pipe is asked to hold, so that both sides wait for each other less often."""


class StandardOutput(CreatedNode):
    """What descriptor 1 leads to, written from the first byte to the last.

    :raises InvalidOption: it is a terminal.
    """

    def __init__(self, options: ProtocolOptions) -> None:
        try:
            self._fd = os.dup(1)
        except OSError as error:
            raise NodeIOError("Could not write to standard output", error) from None
        self.read_only = False
        self._durable = options.cache != "unsafe"
        self._written = 0
        status = os.fstat(self._fd)
        self._status = status
        self._regular = stat.S_ISREG(status.st_mode)
        self._appends = bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND)
        # A hole may be left only where the file ends: elsewhere something may stand that is no zeros.
        self.leaves_holes = self._regular and (self._appends or self._position() >= status.st_size)
        if os.isatty(self._fd):
            os.close(self._fd)
            raise InvalidOption("Standard output is a terminal: lead it to a file or a program")
        if stat.S_ISFIFO(status.st_mode):
            self._widen()

    def _position(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def _widen(self) -> None:
        with suppress(OSError):  # the system allows no more
            fcntl.fcntl(self._fd, getattr(fcntl, "F_SETPIPE_SZ", 1031), _PIPE_SIZE)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._written

    def identity(self) -> Hashable | None:
        """Device and inode of a file, to be told from what is read."""
        return (self._status.st_dev, self._status.st_ino) if self._regular else None

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """What has been written is gone."""
        raise UnsupportedOperation("Standard output cannot be read")

    def append(self, data: Bytes) -> None:
        """Write all of the data, however many calls the system takes for it."""
        view = memoryview(data).cast("B")
        self._written += len(view)
        while len(view):
            try:
                view = view[os.write(self._fd, view) :]
            except BrokenPipeError:
                raise
            except BlockingIOError:
                self._wait()
            except OSError as error:
                raise NodeIOError("error while writing to standard output", error) from None

    def _wait(self) -> None:
        """Somebody else has set the descriptor not to block: wait until it takes more."""
        import select

        select.select([], [self._fd], [])

    def append_zeroes(self, length: int) -> None:
        """Leave a hole where that is possible, otherwise write zeros."""
        if not self.leaves_holes:
            for done in range(0, length, len(_ZEROS)):
                self.append(memoryview(_ZEROS)[: length - done])
            return
        self._written += length
        try:
            if self._appends:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size + length)
            else:
                os.lseek(self._fd, length, os.SEEK_CUR)
        except OSError as error:
            raise NodeIOError("error while writing to standard output", error) from None

    def flush(self) -> None:
        """Bring a file to stable storage, a hole at its end included."""
        try:
            if self.leaves_holes and not self._appends and os.fstat(self._fd).st_size < self._position():
                os.ftruncate(self._fd, self._position())
            if self._durable:
                os.fdatasync(self._fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):
                raise NodeIOError("error while writing to standard output", error) from None

    def commit(self) -> None:
        """Nothing more to do: what is written is written."""

    def abandon(self) -> None:
        """What was written cannot be taken back; whoever reads it learns of the failure by the exit code."""
        self.close()

    def release(self) -> None:
        """Close this process's copy of the descriptor."""
        os.close(self._fd)
