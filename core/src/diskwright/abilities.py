"""What some nodes can do and others cannot: a node that has the methods has the ability."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from .node import WritableImage

Bytes: TypeAlias = bytes | bytearray | memoryview
"""Something that can be written."""


class Permission(IntFlag):
    """What an opener does to a node, or lets others do meanwhile; the bit positions are QEMU's lock bytes."""

    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8

    ALL = 15


@runtime_checkable
class Writable(Protocol):
    """A node that bytes can be written to."""

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write all of ``data`` at ``offset``; a file grows as needed.

        :raises OSError: the system refused; how much was written is unknown.
        """


@runtime_checkable
class Truncatable(Protocol):
    """A node whose size can be set."""

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Set the size in bytes; what is new reads as zeros.

        :param preallocation: how space for the new part is reserved: ``off``, ``metadata``, ``falloc`` or ``full``.
        :raises InvalidOption: the node does not know that mode.
        """


@runtime_checkable
class Appending(Protocol):
    """A node whose bytes are written one behind the other, from the first to the last, and never read.

    :ivar leaves_holes: whether zeros cost less than data.
    """

    leaves_holes: bool

    def append(self, data: Bytes) -> None:
        """Write all of ``data`` behind what was written before.

        :raises BrokenPipeError: nobody wants more.
        """

    def append_zeroes(self, length: int) -> None:
        """Let so many zero bytes follow."""


@runtime_checkable
class Zeroing(Protocol):
    """A node that can make a range read as zeros without being sent zeros."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros.

        :param unmap: whether the space behind the range may be given back.
        """


@runtime_checkable
class Discarding(Protocol):
    """A node that can forget a range; what it reads as afterwards is up to the format."""

    def discard(self, offset: int, length: int) -> None: ...


@runtime_checkable
class Lockable(Protocol):
    """A node that other processes see the use of."""

    def set_permissions(self, used: Permission, shared: Permission) -> None:
        """Declare what this process does to the node and what it lets others do meanwhile; replaces the last call.

        :raises LockConflict: another process does not go along; then nothing has changed.
        """


@runtime_checkable
class Compressing(Protocol):
    """An image that can store a cluster compressed."""

    cluster_size: int | None

    def compress(self, data: memoryview) -> bytes | None:
        """One cluster of guest data, compressed; ``None`` if it does not get smaller. Threads call this in parallel."""

    def write_compressed(self, clusters: Sequence[tuple[int, bytes]]) -> None:
        """Store and link compressed clusters, each with its guest offset; called in guest order."""


@runtime_checkable
class AlwaysCompressing(Protocol):
    """A disk that compresses whatever is written to it.

    :ivar compressor: the image that it stores the clusters in, which is :class:`Compressing`.
    """

    compressor: WritableImage
