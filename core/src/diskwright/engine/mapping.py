"""Where the data of a disk is, as ``map`` shows it: the resolved extents with neighbours of one kind made one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntFlag
from functools import cache
from typing import TYPE_CHECKING, Any

from ..extent import NO_OFFSET, ExtentTable, Flag, Kind
from ..node import SECTOR, Image
from ..record import Record
from .chain import layers, resolve

if TYPE_CHECKING:
    import numpy as np

    from ..extent import Column
    from ..node import Node


class State(IntFlag):
    """What is known of a guest range."""

    PRESENT = 1
    """some layer has it"""
    ZERO = 2
    """reads as zeros"""
    DATA = 4
    """a layer stores it, or has space for it"""
    COMPRESSED = 8
    PLACED = 16
    """it has an offset in a file"""


class MapTable(Record):
    """Rows of a map in order, in bulk.

    :ivar rows: structured array with ``start``, ``length``, ``offset`` (:data:`NO_OFFSET` without one), ``file``,
        ``depth`` and ``state`` (:class:`State`).
    :ivar files: the names that the column ``file`` refers to, meaningful where there is an offset.
    """

    rows: Column
    files: list[str]


def states(table: ExtentTable) -> Column:
    """:class:`State` of each row of a resolved table."""
    import numpy as np

    rows = table.rows
    kinds = rows["kind"]
    found: Column = _states_by_kind()[kinds]
    # A hole that stands behind data: the format says data, the file below says zeros.
    sparse = (kinds == Kind.ZERO) & (rows["flags"] & Flag.SPARSE != 0)
    found[sparse] |= np.uint8(State.DATA)
    found[(kinds == Kind.ENCODED) & (rows["flags"] & Flag.COMPRESSED != 0)] |= np.uint8(State.COMPRESSED)
    # What a filter watches stands verbatim all the same, other than what is compressed or encrypted.
    verbatim = (kinds != Kind.ENCODED) | (rows["flags"] & (Flag.COMPRESSED | Flag.ENCRYPTED) == 0)
    placed = verbatim & (rows["node_offset"] != NO_OFFSET)
    found[placed] |= np.uint8(State.PLACED)
    return found


@cache
def _states_by_kind() -> Column:
    """What the kind alone says, indexed by kind."""
    import numpy as np

    table = np.zeros(len(Kind), np.uint8)
    table[Kind.DATA] = table[Kind.ENCODED] = State.PRESENT | State.DATA
    table[Kind.ZERO] = State.PRESENT | State.ZERO
    table[Kind.ABSENT] = State.ZERO
    return table


def map_image(image: Image, offset: int = 0, length: int | None = None) -> Iterator[MapTable]:
    """Map a range of a disk through all its layers, in as few rows as possible.

    :param offset: bytes; behind the end of the disk there is nothing.
    :param length: bytes; up to the end of the disk if None or more than that.
    :returns: tables in order, none empty; neighbouring rows differ in more than their place, across tables too.
    """
    import numpy as np

    end = image.size if length is None else min(image.size, offset + length)
    if offset >= end:
        return
    translator = _Translator(image)
    held = np.zeros(0, translator.dtype)
    for table in resolve(image, offset, end - offset):
        rows = _whole_last_block(_merged(np.concatenate((held, translator.translate(table)))), table.nodes)
        # The last row may go on in the next table.
        held = rows[-1:]
        if len(rows) > 1:
            yield MapTable(rows[:-1], translator.files)
    yield MapTable(held, translator.files)


class _Translator:
    """Turns resolved tables into rows of a map, with file names numbered alike in all tables."""

    def __init__(self, image: Image) -> None:
        import numpy as np

        columns: list[Any] = [("start", "i8"), ("length", "i8"), ("offset", "i8"), ("file", "u4"), ("depth", "u2")]
        self.dtype: np.dtype[Any] = np.dtype([*columns, ("state", "u1")], align=True)
        self.files: list[str] = []
        self._numbers: dict[str, int] = {}
        self._sizes = np.array([layer.size for layer in layers(image)], np.int64)

    def translate(self, table: ExtentTable) -> Column:
        """The same ranges as rows of a map."""
        import numpy as np

        source = table.rows
        rows = np.zeros(len(source), self.dtype)
        for name, column in (("start", "offset"), ("length", "length"), ("offset", "node_offset"), ("depth", "depth")):
            rows[name] = source[column]
        rows["state"] = states(table)
        # Behind the end of a backing layer: no layer has this, and the one above already knew that it is zeros.
        beyond = rows["start"] >= self._sizes[rows["depth"]]
        rows["state"][beyond] = rows["state"][beyond] & State.PLACED | State.ZERO
        rows["depth"][beyond] -= 1
        placed = rows["state"] & State.PLACED != 0
        rows["offset"][~placed] = NO_OFFSET
        numbers = np.array([self._number(node.filename if node else "") for node in table.nodes], np.uint32)
        rows["file"] = np.where(placed, numbers[source["node"]], 0)
        return rows

    def _number(self, filename: str) -> int:
        number = self._numbers.setdefault(filename, len(self.files))
        if number == len(self.files):
            self.files.append(filename)
        return number


def _merged(rows: Column) -> Column:
    """The rows with neighbours that continue each other as one."""
    import numpy as np

    left, right = rows[:-1], rows[1:]
    joins = (left["state"] == right["state"]) & (left["depth"] == right["depth"]) & (left["file"] == right["file"])
    joins &= (left["offset"] == NO_OFFSET) | (left["offset"] + left["length"] == right["offset"])
    first = np.flatnonzero(np.concatenate(([True], ~joins)))
    merged = rows[first]
    merged["length"] = np.add.reduceat(rows["length"], first)
    return merged


def _whole_last_block(rows: Column, nodes: Sequence[Node | None]) -> Column:
    """The rows with the last block of a file not cut at the file's end: past the page cache, blocks are read whole.

    Source: qemu block/file-posix.c, raw_co_block_status.
    """
    if len(rows) < 2 or not rows["state"][-2] & State.DATA or not int(rows["start"][-1]) % SECTOR:
        return rows
    block = max((node.own_limits().request_alignment for node in nodes if node is not None), default=1)
    moved = min(-int(rows["start"][-1]) % block, int(rows["length"][-1]))
    rows["length"][-2] += moved
    rows["length"][-1] -= moved
    rows["start"][-1] += moved
    if rows["offset"][-1] != NO_OFFSET:
        rows["offset"][-1] += moved
    return rows if rows["length"][-1] else rows[:-1]
