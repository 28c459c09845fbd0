"""A disk seen from far away: cut into equal cells, and how much of each is data, zeros, compressed or not there.

However many extents a map has, the result has the size that was asked for; the counting is done with whole tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from ..errors import InvalidOption
from ..node import SECTOR, Image
from ..record import Record
from .chain import layers
from .mapping import MapTable, State, map_image

if TYPE_CHECKING:
    from ..extent import Column

DEPTHS = 6
"""Layers that are told apart; the last of them stands for all that are as deep or deeper."""
MAX_CELLS = 1 << 16
"""Most cells; a picture of more cannot be looked at."""


class Content(IntEnum):
    """What a part of a disk holds."""

    DATA = 0
    """stored as it is, or encrypted"""
    COMPRESSED = 1
    """stored compressed"""
    ZERO = 2
    """known to read as zeros; no data is stored"""
    HOLE = 3
    """in no layer, and therefore zeros"""


class Overview(Record):
    """A range of a disk in cells.

    :ivar start: guest offset of the first cell, bytes.
    :ivar length: bytes of the range; the last cell may be shorter than the others.
    :ivar cell: bytes of each cell, a multiple of 512.
    :ivar bytes: array of integers with the axes cell, content (:class:`Content`) and depth (below :data:`DEPTHS`): how
        many bytes of each cell are what.
    :ivar layers: names of the layers, top first.
    """

    start: int
    length: int
    cell: int
    bytes: Column
    layers: Sequence[str]

    def total(self, content: Content, depth: int | None = None) -> int:
        """Bytes of a content in one layer, or in all."""
        found = self.bytes[:, content] if depth is None else self.bytes[:, content, depth]
        return int(found.sum())

    def cell_range(self, number: int) -> tuple[int, int]:
        """Guest offsets of the first byte of a cell and of the one behind its last."""
        first = self.start + number * self.cell
        return first, min(first + self.cell, self.start + self.length)


def overview(image: Image, cells: int, offset: int = 0, length: int | None = None) -> Overview:
    """Count what a range of a disk holds, through all its layers.

    :param cells: most cells to cut the range into, 1 to :data:`MAX_CELLS`; a cell has at least 512 bytes.
    :param offset: bytes; behind the end of the disk there is nothing.
    :param length: bytes; up to the end of the disk if None or more than that.
    :raises InvalidOption: the number of cells is out of range.
    """
    import numpy as np

    if not 1 <= cells <= MAX_CELLS:
        raise InvalidOption(f"A disk is cut into 1 to {MAX_CELLS} cells, not into {cells}")
    offset = min(offset, image.size)
    end = image.size if length is None else min(image.size, offset + length)
    size = _cell_size(end - offset, cells)
    count = -(-(end - offset) // size)
    counted = np.zeros((count, len(Content), DEPTHS), np.int64)
    for table in map_image(image, offset, end - offset):
        _count(counted, table, offset, size)
    return Overview(offset, end - offset, size, counted, [layer.filename for layer in layers(image)])


def _cell_size(length: int, cells: int) -> int:
    """Bytes of a cell: enough, a multiple of 512, and not too odd a number."""
    least = max(1, -(-length // cells))
    step = max(SECTOR, 1 << max(0, least.bit_length() - 4))
    return -(-least // step) * step


def _count(counted: Column, table: MapTable, origin: int, cell: int) -> None:
    """Add the rows of a table to the cells that they lie in."""
    import numpy as np

    rows = table.rows
    first = int(rows["start"][0] - origin) // cell
    end = int(rows["start"][-1] + rows["length"][-1])
    borders = origin + np.arange(first, -(-(end - origin) // cell) + 1, dtype=np.int64) * cell
    at = np.searchsorted(rows["start"], borders, side="right") - 1
    kinds = _contents()[rows["state"]].astype(np.int64) * DEPTHS + np.minimum(rows["depth"], DEPTHS - 1)
    for kind in np.flatnonzero(np.bincount(kinds, minlength=len(Content) * DEPTHS)).tolist():
        lengths = np.where(kinds == kind, rows["length"], 0)
        # How much of this kind lies before each border: whole rows, and of the row that the border is in, a part.
        before = np.concatenate(([0], np.cumsum(lengths)))[np.maximum(at, 0)]
        inside = np.where(at >= 0, borders - rows["start"][at], 0)
        sums = before + np.minimum(inside, lengths[at])
        content, depth = divmod(kind, DEPTHS)
        counted[first : first + len(borders) - 1, content, depth] += np.diff(sums)


def _contents() -> Column:
    """:class:`Content` by :class:`State`."""
    import numpy as np

    found = np.full(32, Content.DATA, np.uint8)
    for state in range(32):
        if not state & State.PRESENT:
            found[state] = Content.HOLE
        elif state & State.ZERO:
            found[state] = Content.ZERO
        elif state & State.COMPRESSED:
            found[state] = Content.COMPRESSED
    return found
