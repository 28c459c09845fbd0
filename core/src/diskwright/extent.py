"""Where guest bytes are: one :class:`Extent`, or many at once in an :class:`ExtentTable`.

An extent says of a range of a disk where its bytes come from, of one layer. The table is the same in bulk: a numpy
structured array, so that an image of millions of clusters is mapped, merged and searched at array speed.
numpy is loaded on first use only; importing this module is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .node import Node

    Column = npt.NDArray[Any]

NO_OFFSET = -1
"""In the column ``node_offset``: these bytes have no place of their own in a node."""


class Kind(IntEnum):
    """Where the bytes of an extent come from."""

    DATA = 0
    """verbatim in ``node`` at ``node_offset``"""
    ZERO = 1
    """read as zeros; ``node_offset`` is set where space is preallocated (or a hole of a file) stands behind them"""
    ABSENT = 2
    """not in this layer: the backing layer has them, or they are zeros"""
    ENCODED = 3
    """only the image itself can read them (``read_encoded``): compressed, encrypted or generated"""


class Flag(IntFlag):
    """What else is known of an extent."""

    COMPRESSED = 1
    ENCRYPTED = 2
    SPARSE = 4
    """``node`` may have holes inside this extent: ask its own map to find out"""


_KINDS = tuple(Kind)
_DATA, _ENCODED = int(Kind.DATA), int(Kind.ENCODED)  # plain numbers: numpy compares with those in a fifth of the time
_FLAGS = tuple(map(Flag, range(sum(Flag) + 1)))
# Looked up by number: calling an enumeration takes longer than all else there is to do for a row.


class Extent(NamedTuple):
    """A range of a disk whose bytes come from one place.

    :ivar offset: bytes from the start of the disk.
    :ivar length: bytes, > 0.
    :ivar node: the node that holds the bytes; ``None`` where there is none.
    :ivar node_offset: bytes from the start of ``node``; ``None`` where the bytes have no place of their own.
    :ivar depth: how many backing steps below the top layer this extent was found.
    """

    offset: int
    length: int
    kind: Kind
    node: Node | None = None
    node_offset: int | None = None
    flags: Flag = Flag(0)
    depth: int = 0

    @property
    def end(self) -> int:
        """Offset of the first byte behind the extent."""
        return self.offset + self.length

    @property
    def stored(self) -> bool:
        """Whether it has bytes that are stored somewhere, verbatim or encoded."""
        return self.kind is Kind.DATA or self.kind is Kind.ENCODED


@cache
def extent_dtype() -> np.dtype[Any]:
    """Columns of :attr:`ExtentTable.rows`; ``node`` is an index into :attr:`ExtentTable.nodes`."""
    import numpy as np

    return np.dtype(
        [
            ("offset", "i8"),
            ("length", "i8"),
            ("node_offset", "i8"),
            ("depth", "u2"),
            ("node", "u2"),
            ("kind", "u1"),
            ("flags", "u1"),
        ],
        align=True,  # what lies across words takes numpy twice as long
    )


class ExtentTable:
    """Extents in order and without gaps, in bulk.

    :ivar rows: structured array of :func:`extent_dtype`.
    :ivar nodes: what the column ``node`` refers to; an entry may be ``None``.
    """

    __slots__ = ("nodes", "rows")

    def __init__(self, rows: Column, nodes: tuple[Node | None, ...]) -> None:
        self.rows = rows
        self.nodes = nodes

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Extent]:
        nodes = self.nodes
        for offset, length, node_offset, depth, node, kind, flags in self.rows.tolist():
            placed = None if node_offset == NO_OFFSET else node_offset
            yield Extent(offset, length, _KINDS[kind], nodes[node], placed, _FLAGS[flags], depth)

    @property
    def start(self) -> int:
        """Offset of the first row, bytes."""
        return int(self.rows["offset"][0])

    @property
    def end(self) -> int:
        """Offset of the first byte behind the last row."""
        last = self.rows[-1]
        return int(last["offset"]) + int(last["length"])

    @property
    def stored(self) -> Column:
        """Whether each row has bytes that are stored somewhere, verbatim or encoded."""
        kinds = self.rows["kind"]
        found: Column = (kinds == _DATA) | (kinds == _ENCODED)
        return found

    def rows_at(self, offsets: Column) -> Column:
        """The number of the row that each of some offsets inside the table is in."""
        found: Column = self.rows["offset"].searchsorted(offsets, side="right") - 1
        return found

    def coalesced(self) -> ExtentTable:
        """The same map in as few rows as possible: neighbours that continue each other become one."""
        import numpy as np

        rows = self.rows
        if len(rows) < 2:
            return self
        left, right = rows[:-1], rows[1:]
        placed = left["node_offset"] != NO_OFFSET
        joins = (left["kind"] == right["kind"]) & (left["flags"] == right["flags"])
        joins &= (left["depth"] == right["depth"]) & (left["node"] == right["node"])
        joins &= placed == (right["node_offset"] != NO_OFFSET)
        joins &= ~placed | (left["node_offset"] + left["length"] == right["node_offset"])
        first = np.flatnonzero(np.concatenate(([True], ~joins)))
        if len(first) == len(rows):
            return self
        merged = rows[first]
        merged["length"] = np.add.reduceat(rows["length"], first)
        return ExtentTable(merged, self.nodes)

    def clipped(self, start: int, end: int) -> ExtentTable:
        """The part of the map between two guest offsets; rows are cut where needed, none may be left.

        :returns: this table itself if that is all of it.
        """
        if len(self) and start <= self.start and end >= self.end:
            return self
        # Rows follow each other without gaps, so where they start is enough to know.
        offsets = self.rows["offset"]
        first = max(0, int(offsets.searchsorted(start, side="right")) - 1)
        last = int(offsets.searchsorted(end, side="left"))
        if first < last and start >= self.end:
            last = first
        rows = self.rows[first:last].copy()
        if len(rows):
            # By columns: to take rows out one by one, as scalars of their own type, takes twice as long.
            offsets, lengths, places = rows["offset"], rows["length"], rows["node_offset"]
            skipped = start - int(offsets[0])
            if skipped > 0:
                offsets[0] = start
                lengths[0] -= skipped
                if places[0] != NO_OFFSET:
                    places[0] += skipped
            lengths[-1] = min(int(lengths[-1]), end - int(offsets[-1]))
        return ExtentTable(rows, self.nodes)


def run_edges(flags: Column) -> tuple[Column, Column]:
    """Where runs of true values are: indices of the first of each, and of those behind the last."""
    import numpy as np

    padded = np.zeros(len(flags) + 2, bool)
    padded[1:-1] = flags
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges[::2], edges[1::2]


def runs_of(flags: Column) -> list[tuple[int, int]]:
    """Where runs of true values are: index of the first, and of the one behind the last."""
    firsts, ends = run_edges(flags)
    return list(zip(firsts.tolist(), ends.tolist(), strict=True))


def merged(starts: Column, ends: Column, gap: int = 1) -> tuple[Column, Column]:
    """Sorted ranges, of which those with less than ``gap`` between them become one: where they start and end."""
    import numpy as np

    apart = np.flatnonzero(starts[1:] - ends[:-1] >= gap)
    first, last = np.concatenate(([0], apart + 1)), np.concatenate((apart, [len(ends) - 1]))
    return starts[first[: len(starts)]], ends[last[: len(ends)]]


def row_starts(*tables: ExtentTable) -> Column:
    """Where rows of any of some tables start, sorted, each offset once."""
    import numpy as np

    return distinct(np.concatenate([table.rows["offset"] for table in tables]))


def distinct(values: Column) -> Column:
    """The different values of an array, sorted.

    numpy's own function loads its support for masked arrays at the first call, which takes as long as a small command.
    """
    import numpy as np

    ordered = np.sort(values, kind="stable")  # which takes advantage of parts that are sorted already
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(ordered)]]


def tabulate_blocks(
    offset: int,
    block_size: int,
    kinds: Column,
    node: Node | None,
    node_offsets: Column,
    flags: Column | int = 0,
) -> ExtentTable:
    """Map equally long blocks, as a block allocation table describes them; neighbours that continue are merged.

    :param offset: guest offset of the first block, bytes.
    :param block_size: bytes of guest data in each block.
    :param kinds: a :class:`Kind` for each block.
    :param node: the node that all placed blocks are in.
    :param node_offsets: bytes from the start of ``node`` for each block, :data:`NO_OFFSET` where it has no place.
    :param flags: :class:`Flag` bits for each block, or for all.
    """
    import numpy as np

    rows = np.zeros(len(kinds), extent_dtype())
    rows["offset"] = offset + np.arange(len(kinds), dtype=np.int64) * block_size
    rows["length"] = block_size
    rows["node_offset"] = node_offsets
    rows["kind"] = kinds
    rows["flags"] = flags
    return ExtentTable(rows, (node,)).coalesced()


def tabulate(items: Iterable[Extent | ExtentTable]) -> Iterator[ExtentTable]:
    """Whatever a driver yields, as tables; runs of single extents are gathered, up to a few thousand at a time."""
    single: list[Extent] = []
    for item in items:
        if isinstance(item, Extent):
            single.append(item)
            if len(single) < 4096:
                continue
            yield _from_extents(single)
            single = []
        elif len(item):
            if single:
                yield _from_extents(single)
                single = []
            yield item
    if single:
        yield _from_extents(single)


def _from_extents(extents: list[Extent]) -> ExtentTable:
    import numpy as np

    nodes: dict[int, int] = {}
    kept: list[Node | None] = []
    rows = np.zeros(len(extents), extent_dtype())
    for i, e in enumerate(extents):
        index = nodes.setdefault(id(e.node), len(kept))
        if index == len(kept):
            kept.append(e.node)
        placed = NO_OFFSET if e.node_offset is None else e.node_offset
        rows[i] = (e.offset, e.length, placed, e.depth, index, e.kind, e.flags)
    return ExtentTable(rows, tuple(kept))
