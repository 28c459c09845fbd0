"""Holes in files: finding them with ``lseek``, making them with ``fallocate``. Source: lseek(2), fallocate(2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from diskwright.extent import Extent, Kind
from diskwright.node import Node

EXT4 = 0xEF53
"""What statfs(2) calls ext4, and its forerunners."""

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

# What the system answers when the file system, the device or an alignment does not allow an operation that is an
# optimisation only; plain writes then show whether something is really wrong.
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENODEV, errno.EPERM})


@cache
def _fallocate() -> Callable[..., Any] | None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    # glibc on 32-bit machines has 64-bit offsets in the function with the suffix only.
    function = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        function.restype = ctypes.c_int
    return function


def fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Call the system's ``fallocate``.

    :param mode: :data:`KEEP_SIZE`, :data:`PUNCH_HOLE`, :data:`ZERO_RANGE`, combined.
    :returns: whether it is supported here; if not, nothing has changed.
    :raises OSError: it is, but failed.
    """
    import ctypes

    function = _fallocate()
    if function is None:
        return False
    while function(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code in UNSUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def file_system(fd: int) -> int:
    """The number that statfs(2) has for the file system a file is in; 0 if it cannot be found out."""
    import ctypes

    found = ctypes.create_string_buffer(512)  # more than the structure has; the number is its first field
    function = getattr(ctypes.CDLL(None), "fstatfs", None)
    if function is None or function(fd, found):
        return 0
    return ctypes.c_long.from_buffer(found).value


def file_extents(node: Node, fd: int, offset: int, length: int) -> Iterator[Extent]:
    """Data and holes of a range, found one after the other while they are consumed.

    Where the system cannot tell, everything is data: that is always true, if not the whole truth.
    """
    end = offset + length
    while offset < end:
        kind, until = _run(fd, offset, end)
        yield Extent(offset, until - offset, kind, node, offset)
        offset = until


def _run(fd: int, offset: int, end: int) -> tuple[Kind, int]:
    """What stands at an offset, and up to where; never behind ``end``."""
    try:
        data = os.lseek(fd, offset, os.SEEK_DATA)
        if data > offset:
            return Kind.ZERO, min(data, end)
        hole = os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError as error:
        # ENXIO: no data from here to the end of the file.
        return (Kind.ZERO if error.errno == errno.ENXIO else Kind.DATA), end
    # Another process may punch a hole between the two calls; what was seen as data may be read as data.
    return Kind.DATA, min(hole, end) if hole > offset else end
