"""Zeros and discards on any node: by its own means where it has some, and as its options allow.

To make a range read as zeros is always possible, if need be by writing them. To discard one is only a hint.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .buffers import is_zero
from .errors import io_error
from .node import Bytes, Discarding, Node, Writable, WritableImage, Zeroing

ZERO_CHUNK = 1 << 20
"""Bytes of zeros written at a time."""


def make_zeros(node: Node, offset: int, length: int, *, unmap: bool) -> None:
    """Make a range read as zeros, by the cheapest way the node has; several threads may call this at once.

    :param unmap: whether the space behind the range may be given back, if the node's options allow it.
    :raises NodeIOError: the node cannot be written.
    """
    # Not isinstance with the protocol: with Python 3.11 that takes as long as writing a few zeros.
    write_zeroes = getattr(node, "write_zeroes", None)
    if write_zeroes is not None:
        with _alone(node):
            write_zeroes(offset, length, unmap=unmap and node.may_unmap)
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


def discard(node: Node, offset: int, length: int) -> None:
    """Let a node forget a range, if it can and may; several threads may call this at once."""
    if node.may_unmap and isinstance(node, Discarding):
        with _alone(node):
            node.discard(offset, length)


def _alone(node: Node) -> AbstractContextManager[object]:
    """Within, no other thread changes what an image refers to; other nodes bear several at once."""
    return node.lock if isinstance(node, WritableImage) else nullcontext()


def detect_zeros(node: Node, *, unmap: bool) -> None:
    """From now on, writes to a file or device that hold nothing but zeros are made by its means for zeros.

    Images look for themselves, see :attr:`diskwright.node.Image.detect_zeroes`.

    :param unmap: whether the space behind them may be given back.
    """
    if not isinstance(node, Writable) or not isinstance(node, Zeroing):
        return
    write, write_zeroes = node.write_at, node.write_zeroes
    # A node without a better way writes the zeros itself, and is not to be asked again.
    inside = threading.local()

    def write_at(offset: int, data: Bytes) -> None:
        view = memoryview(data).cast("B")
        if getattr(inside, "now", False) or not is_zero(view):
            write(offset, view)
            return
        inside.now = True
        try:
            write_zeroes(offset, len(view), unmap=unmap)
        finally:
            inside.now = False

    node.write_at = write_at  # type: ignore[method-assign]
