"""Block maps: the long tables of integers, one for each block of a disk, that formats without clusters of tables have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .bounded import BoundedReader
from .node import Writable

if TYPE_CHECKING:
    import numpy.typing as npt

WINDOW = 1 << 16
"""Entries that are read at once."""
MAX_CHANGED = 1 << 16
"""Changed entries after which a map should be written."""


class BlockMap:
    """A block map in a file, read anew when it is needed, with the changes that are not written yet.

    It takes the same memory for a disk of any size. Any thread may read; changes need the lock of the image.

    :param dtype: numpy type of an entry as on disk, e.g. ``<u4``.
    :param offset: where the map stands in the file, bytes.
    :param count: its entries; the range was found to lie in the file.
    """

    def __init__(self, reader: BoundedReader, dtype: str, offset: int, count: int) -> None:
        self._reader = reader
        self._dtype = dtype
        self._offset = offset
        self._width = int(dtype[-1])
        self._changed: dict[int, int] = {}
        self.count = count

    def windows(self, first: int, last: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The entries ``first`` to ``last``, excluded, as (number of the first, entries in native order) in pieces.

        :raises InvalidImage: the file has become shorter.
        """
        for start in range(first, last, WINDOW):
            count = min(WINDOW, last - start)
            changed = self._changed  # fetched before reading: what is written meanwhile is in it or in the file
            offset = self._offset + self._width * start
            entries = self._reader.table(self._dtype, offset, count, "block map", limit=WINDOW)
            for number in changed.keys() & range(start, start + count) if changed else ():
                entries[number - start] = changed[number]
            yield start, entries

    def change(self, number: int, entry: int) -> None:
        """Change an entry in memory."""
        self._changed[number] = entry

    @property
    def changed(self) -> int:
        """How many entries wait to be written; after :data:`MAX_CHANGED` it is time to do so."""
        return len(self._changed)

    def write(self, node: Writable) -> None:
        """Write what was changed and nothing else; if that fails, all of it goes on to wait."""
        import numpy as np

        numbers = np.array(sorted(self._changed))
        entries = np.array([self._changed[number] for number in numbers.tolist()], self._dtype)
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(numbers)], strict=True):
            node.write_at(self._offset + self._width * int(numbers[start]), entries[start:end].tobytes())
        self._changed = {}
