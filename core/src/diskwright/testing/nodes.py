"""Nodes in memory, to open images without a file and to see what is written."""

from __future__ import annotations

import random
from collections.abc import Iterable

from ..node import Buffer, Bytes, Node


class MemoryNode(Node):
    """Bytes in memory as a file.

    :ivar data: the content, which may be looked at and changed at any time.
    """

    def __init__(self, data: Bytes = b"", *, writable: bool = False, filename: str = "memory") -> None:
        self.data = bytearray(data)
        self.read_only = not writable
        self.filename = filename

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill the buffer, with zeros behind the end."""
        view = memoryview(buffer).cast("B")
        found = self.data[offset : offset + len(view)]
        view[: len(found)] = found
        view[len(found) :] = bytes(len(view) - len(found))

    def new_reads_zero(self) -> bool:
        """It grows by zeros."""
        return True

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write, growing as needed.

        :raises AssertionError: the node is for reading only: whoever writes to it has a defect.
        """
        self._require_writable()
        view = memoryview(data).cast("B")
        if offset + len(view) > len(self.data):
            self.data.extend(bytes(offset + len(view) - len(self.data)))
        self.data[offset : offset + len(view)] = view

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Set the size; any preallocation will do, memory is there."""
        self._require_writable()
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def _require_writable(self) -> None:
        if self.read_only:
            raise AssertionError(f"'{self.filename}' was opened for reading and is written")


class RecordingNode(MemoryNode):
    """A file in memory that keeps everything that was done to it, so that any crash can be looked at.

    :ivar start: the content at the beginning.
    :ivar steps: what was done, in order: (offset, bytes written), or (new size, None).
    :ivar flushed: after how many steps the file was flushed, each time.
    """

    def __init__(self, data: Bytes = b"", *, filename: str = "memory") -> None:
        super().__init__(data, writable=True, filename=filename)
        self.start = bytes(data)
        self.steps: list[tuple[int, bytes | None]] = []
        self.flushed: list[int] = []

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write and keep what is written."""
        self.steps.append((offset, bytes(memoryview(data).cast("B"))))
        super().write_at(offset, data)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Set the size and keep it."""
        self.steps.append((size, None))
        super().truncate(size, preallocation)

    def flush(self) -> None:
        """Note that everything so far is safe."""
        self.flushed.append(len(self.steps))

    def after(self, count: int) -> MemoryNode:
        """The file as it was after the first ``count`` steps."""
        return replay(self.start, self.steps[:count])

    def safe_before(self, count: int) -> int:
        """How many of the first ``count`` steps had been flushed when the last of them was done."""
        return max((done for done in self.flushed if done < count), default=0)

    def after_power_cut(self, count: int, chance: random.Random) -> MemoryNode:
        """What may be left of the first ``count`` steps: those flushed before the last of them, any of the others."""
        safe = self.safe_before(count)
        unsafe = [step for step in self.steps[safe:count] if step[1] is None or chance.random() < 0.5]
        return replay(self.start, self.steps[:safe] + unsafe)


def replay(start: Bytes, steps: Iterable[tuple[int, bytes | None]]) -> MemoryNode:
    """A file to which the steps of a :class:`RecordingNode` were done."""
    node = MemoryNode(start, writable=True)
    for offset, data in steps:
        if data is None:
            node.truncate(offset)
        else:
            node.write_at(offset, data)
    return node
