"""Entering new places into the L2 tables: many at once, as they come when the guest's clusters lie scattered."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from . import layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from diskwright.node import Placement

    from .placing import RangeWithinTable
    from .writer import ImageWriter

Placed: TypeAlias = "tuple[RangeWithinTable, int]"
"""A range inside one L2 table and the host offset of its first byte."""

_COPIED = np.uint64(layout.OFLAG_COPIED)


def link(writer: ImageWriter, placements: Iterable[Placement]) -> None:
    """Let the tables refer to what has been written to these places."""
    tables: dict[int, list[Placed]] = {}
    for placement in placements:
        start = placement.offset - placement.head
        end = placement.offset + placement.length + placement.tail
        host = placement.node_offset - placement.head
        for part in writer.parts(start, end):
            tables.setdefault(part.l1_index, []).append((part, host + part.start - start))
    for index, placed in tables.items():
        if len(placed) == 1 or writer.header.extended_l2:
            for part, host in placed:
                writer.link_part(part, host)
        else:
            _link_scattered(writer, index, placed)


def _link_scattered(writer: ImageWriter, index: int, placed: Sequence[Placed]) -> None:
    """The same for ranges of one table, without subclusters, that have no cluster in common: in one step."""
    size = writer.header.cluster_size
    table = writer.own_table(index)
    first = np.array([part.first for part, _ in placed])
    counts = np.array([part.last - part.first for part, _ in placed])
    hosts = np.array([host - part.start % size for part, host in placed], np.uint64)
    row = np.repeat(np.arange(len(placed)), counts)
    step = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = first[row] + step
    entries = hosts[row] + step.astype(np.uint64) * np.uint64(size) | _COPIED
    old = table[places]
    changed = old != entries
    if changed.any():
        writer.release(old[changed], entries[changed])
        table[places] = entries
        writer.order.l2_changed(index, table, (int(places.min()), int(places.max()) + 1))
