"""Image locks as QEMU sets them, so that running machines and this program see each other.

An image in use carries read locks on single bytes: byte 100 + i says "I use permission i", byte 200 + i "I do not share
permission i", with the bit numbers of :class:`~diskwright.node.Permission`. The locks belong to the open file
description (``F_OFD_*`` of fcntl(2)): they end when the file is closed, and never conflict within one description.
Source: qemu ``block/file-posix.c``, ``raw_apply_lock_bytes`` and ``raw_check_lock_bytes``.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from diskwright.errors import LockConflict, NodeIOError
from diskwright.node import Permission

USED = 100
UNSHARED = 200

_NAMES = {0: "consistent read", 1: "write", 2: "write unchanged", 3: "resize"}
_FLOCK = struct.Struct("hhqqi0q")
"""``struct flock``: type, whence, start, length, pid."""

_NO_LOCKS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""Answers of systems and file systems that know no such locks at all."""


class ImageLocks:
    """The lock bytes that one open file holds.

    :param fd: the open file; any access mode will do.
    :param filename: its name, for the hint.
    """

    def __init__(self, fd: int, filename: str) -> None:
        self._fd = fd
        self._filename = filename
        self._held: frozenset[int] = frozenset()

    def apply(self, used: Permission, shared: Permission) -> None:
        """Hold exactly the bytes for these permissions.

        :raises LockConflict: another process uses the file in a way that excludes this; the former bytes are held.
        """
        wanted = frozenset(
            [USED + i for i in _NAMES if used >> i & 1] + [UNSHARED + i for i in _NAMES if not shared >> i & 1]
        )
        former = self._held
        try:
            for byte in sorted(wanted - former):
                self._acquire(byte)
            self._probe(used, shared)
        except (LockConflict, NodeIOError):
            self._release(self._held - former)
            raise
        self._release(self._held - wanted)

    def _acquire(self, byte: int) -> None:
        try:
            self._control(fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._conflict(f"Failed to lock byte {byte}") from None
            raise NodeIOError(f"Failed to lock byte {byte}", error) from None
        self._held |= {byte}

    def _release(self, bytes_: frozenset[int]) -> None:
        for byte in bytes_:
            self._control(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)
        self._held -= bytes_

    def _probe(self, used: Permission, shared: Permission) -> None:
        """Look for others' bytes that contradict ours. Both sides set theirs first, so at least one side sees it."""
        for i, name in _NAMES.items():
            if used >> i & 1 and self._is_locked(UNSHARED + i):
                raise self._conflict(f'Failed to get "{name}" lock')
            if not shared >> i & 1 and self._is_locked(USED + i):
                raise self._conflict(f'Failed to get shared "{name}" lock')

    def _is_locked(self, byte: int) -> bool:
        """Whether another open file holds a lock on a byte, ours not counted."""
        try:
            answer = self._control(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise NodeIOError(f"Failed to check lock byte {byte}", error) from None
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def _control(self, command: int, kind: int, byte: int) -> bytes:
        return fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, 0, byte, 1, 0))

    def _conflict(self, message: str) -> LockConflict:
        return LockConflict(message, hint=f"Is another process using the image [{self._filename}]?")
