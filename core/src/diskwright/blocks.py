"""Block maps: one long table of integers with an entry for each block of a disk, as VDI, VHD, Parallels have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .bounded import BoundedReader
from .node import Writable

if TYPE_CHECKING:
    import numpy as np
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


def repeated(entries: npt.NDArray[Any], which: npt.NDArray[np.bool_], seen: npt.NDArray[np.bool_]) -> Any:
    """Tell which entries of a window name a block of the file that has been met before, for checks.

    :param which: a bool for each entry: whether it is to be looked at.
    :param seen: a bool for each block of the file, longer than the largest of those entries; it is brought up to date.
    :returns: a bool for each entry.
    """
    import numpy as np

    where = np.flatnonzero(which)
    first = where[np.unique(entries[where], return_index=True)[1]]
    result = which.copy()
    result[first] = seen[entries[first]]
    seen[entries[first]] = True
    return result
