"""A disk whose requests keep to the limits of a throttle group."""

from __future__ import annotations

from diskwright.node import Buffer, Bytes, Node
from diskwright.objects.throttle import ThrottleGroup
from diskwright.passing import Passing


class Throttle(Passing):
    """Each request waits until the group lets it pass; flushing never waits.

    :param group: shared by all its disks.
    """

    watches_reads = True

    def __init__(self, below: Node, group: ThrottleGroup, *, writable: bool) -> None:
        super().__init__(below, writable=writable)
        self._group = group

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Wait, then read."""
        self._group.pass_through(memoryview(buffer).nbytes, writing=False)
        super().read_into(offset, buffer)

    def write_at(self, offset: int, data: Bytes) -> None:
        """Wait, then write."""
        self._group.pass_through(memoryview(data).nbytes, writing=True)
        super().write_at(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Wait, then let it be zeros; that counts as writing them."""
        self._group.pass_through(length, writing=True)
        super().write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Wait, then give the space back; that counts as writing to it."""
        self._group.pass_through(length, writing=True)
        super().discard(offset, length)
