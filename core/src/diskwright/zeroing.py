"""Making a range of any node read as zeros: by its own means where it has some, by writing zeros where not."""

from __future__ import annotations

import errno
from collections.abc import Callable

from .errors import io_error
from .node import Node, Writable, WritableImage, Zeroing

ZERO_CHUNK = 1 << 20
"""Bytes of zeros written at a time."""


def make_zeros(node: Node, offset: int, length: int, *, unmap: bool) -> None:
    """Make a range read as zeros, by the cheapest way the node has; several threads may call this at once.

    :param unmap: whether the space behind the range may be given back.
    :raises NodeIOError: the node cannot be written.
    """
    if isinstance(node, WritableImage) and isinstance(node, Zeroing):
        with node.lock:
            node.write_zeroes(offset, length, unmap=unmap)
    elif isinstance(node, Zeroing):
        node.write_zeroes(offset, length, unmap=unmap)
    elif isinstance(node, Writable):
        write_zero_bytes(node.write_at, offset, length)
    else:
        raise io_error(f"Could not write '{node.filename}'", errno.EROFS)


def write_zero_bytes(write: Callable[[int, memoryview], None], offset: int, length: int) -> None:
    """Write zeros as any other data.

    :param write: writes bytes at an offset, all of them.
    """
    zeros = memoryview(bytes(min(length, ZERO_CHUNK)))
    for done in range(0, length, ZERO_CHUNK):
        write(offset + done, zeros[: length - done])
