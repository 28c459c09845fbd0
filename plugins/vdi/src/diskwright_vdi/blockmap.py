"""The block map in memory: read in pages as needed, written back in pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskwright.bounded import BoundedReader
from diskwright.node import Writable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Entries = npt.NDArray[np.uint32]

PAGE = 1 << 16
"""Entries that are read at once: 256 KiB, for 64 GiB of disk."""
MAX_PAGES = 64
"""Pages kept; a map may have thousands."""


class BlockMap:
    """Entries of the block map, by block number.

    :param offset: where the map stands in the file, bytes.
    :param count: its entries; the range was found to lie in the file.
    """

    def __init__(self, reader: BoundedReader, offset: int, count: int) -> None:
        self._reader = reader
        self._offset = offset
        self._count = count
        self._pages: dict[int, Entries] = {}
        self._changed: set[int] = set()
        self._lock = threading.Lock()

    def runs(self, first: int, last: int) -> Iterator[tuple[int, Entries]]:
        """The entries ``first`` to ``last``, excluded, as (number of the first, entries) in pieces."""
        while first < last:
            index, start = divmod(first, PAGE)
            with self._lock:
                entries = self._page(index)[start : start + last - first]
            yield first, entries
            first += len(entries)

    def replace(self, first: int, entries: Entries) -> bool:
        """Change entries in memory.

        :returns: whether so many pages are changed that they should be written.
        """
        while len(entries):
            index, start = divmod(first, PAGE)
            with self._lock:
                part = self._page(index)[start : start + len(entries)]
                part[:] = entries[: len(part)]
                self._changed.add(index)
            first += len(part)
            entries = entries[len(part) :]
        return len(self._changed) >= MAX_PAGES // 2

    @property
    def changed(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._changed)

    def write(self, node: Writable) -> None:
        """Write all changed pages to the file."""
        for index in sorted(self._changed):
            node.write_at(self._offset + 4 * PAGE * index, self._pages[index].astype("<u4").tobytes())
        self._changed.clear()

    def _page(self, index: int) -> Entries:
        page = self._pages.get(index)
        if page is None:
            if len(self._pages) >= MAX_PAGES:
                unchanged = (number for number in self._pages if number not in self._changed)
                self._pages.pop(next(unchanged, -1), None)
            count = min(PAGE, self._count - index * PAGE)
            page = self._reader.table("<u4", self._offset + 4 * PAGE * index, count, "block map", limit=PAGE)
            self._pages[index] = page
        return page
