"""What is to be copied where: the maps of the sources cut into tasks, each an aligned piece of the target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..extent import Extent, Kind
from ..node import Image, Node
from .chain import layers, resolve

if TYPE_CHECKING:
    from .copy import CopyOptions


class Piece(NamedTuple):
    """A range of the target and where its bytes come from; without an extent they are zeros."""

    offset: int
    length: int
    layer: Node | None
    extent: Extent | None

    @property
    def end(self) -> int:
        return self.offset + self.length

    def part(self, start: int, end: int) -> Piece:
        """The piece between two target offsets inside it."""
        extent = self.extent
        if extent is not None:
            skipped = start - self.offset
            placed = None if extent.node_offset is None else extent.node_offset + skipped
            first = extent.offset + skipped  # _replace takes five times as long
            extent = Extent(first, end - start, extent.kind, extent.node, placed, extent.flags, extent.depth)
        return Piece(start, end - start, self.layer, extent)


class Task(NamedTuple):
    """The pieces of one cell, in order, perhaps with gaps; or many cells of zeros.

    :ivar ends_run: whether what follows is not more of the same, data or zeros.
    """

    number: int
    pieces: list[Piece]
    ends_run: bool = True


def pieces_of(sources: Sequence[Image], options: CopyOptions) -> Iterator[Piece]:
    """What is to be written, in the order of the target; what needs no writing is left out."""
    base = 0
    zeros_end = _zeros_end(options, sum(source.size for source in sources))
    for source in sources:
        chain = layers(source)
        for table in resolve(source, depth_limit=options.depth_limit):
            for extent in table:
                start = base + extent.offset
                if extent.kind in (Kind.DATA, Kind.ENCODED):
                    yield Piece(start, extent.length, chain[extent.depth], extent)
                elif start < zeros_end and not (options.depth_limit and extent.kind is Kind.ABSENT):
                    yield Piece(start, min(extent.length, zeros_end - start), None, None)
        base += source.size


def pieces_between(sources: Sequence[Image], start: int, end: int) -> Iterator[Piece]:
    """A range of the disks of the sources, one behind the other, without gaps: data, and zeros as such."""
    base = 0
    for source in sources:
        first, last = max(start, base), min(end, base + source.size)
        if first < last:
            chain = layers(source)
            for table in resolve(source, first - base, last - first):
                for extent in table:
                    is_data = extent.kind in (Kind.DATA, Kind.ENCODED)
                    layer, found = (chain[extent.depth], extent) if is_data else (None, None)
                    yield Piece(base + extent.offset, extent.length, layer, found)
        base += source.size


def amount(sources: Sequence[Image], options: CopyOptions) -> int:
    """How many bytes are to be copied: those of data or, if zeros are to be written as such, all."""
    if not options.sparse_size:
        return sum(source.size for source in sources)
    total = 0
    for source in sources:
        for table in resolve(source, depth_limit=options.depth_limit):
            total += int(table.rows["length"][table.stored].sum())
    return total


def _zeros_end(options: CopyOptions, total: int) -> int:
    """The offset up to which zeros have to be written; behind it the target reads as zeros by itself."""
    if not options.target_is_zero or not options.sparse_size:
        return total
    return options.backing_size


def plan(pieces: Iterable[Piece], cell: int, zeros_at_once: int) -> Iterator[Task]:
    """Cut pieces at the borders of cells and gather those of the same cell.

    :param cell: bytes.
    :param zeros_at_once: bytes, a multiple of ``cell``; zeros over whole cells become tasks of up to this many.
    """
    number = 0
    place = 0  # in which cell the gathered pieces are
    gathered: list[Piece] = []
    for piece in pieces:
        first, last = piece.offset // cell, (piece.offset + piece.length - 1) // cell
        for part in (piece,) if first == last else _cut(piece, cell, zeros_at_once):
            here = part.offset // cell
            if gathered and here != place:
                yield Task(number, gathered, not _continues(gathered[-1], part))
                number += 1
                gathered = []
            place = here
            gathered.append(part)
    if gathered:
        yield Task(number, gathered)


def _continues(piece: Piece, following: Piece) -> bool:
    return (piece.extent is None) == (following.extent is None) and piece.end == following.offset


def _cut(piece: Piece, cell: int, zeros_at_once: int) -> Iterator[Piece]:
    start = piece.offset
    while start < piece.end:
        step = cell
        if piece.extent is None and start % cell == 0:
            step = min(zeros_at_once, max(cell, (piece.end - start) // cell * cell))
        end = min(piece.end, start // cell * cell + step)
        yield piece.part(start, end)
        start = end
