"""Free space in the file: finding gaps, and giving back what is behind the last cluster in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.node import Truncatable

from .allocate import Run

if TYPE_CHECKING:
    from .refcount import Column
    from .writer import ImageWriter


def lowest_gap(busy: Column, length: int) -> int:
    """The first of ``length`` neighbouring clusters that are all free.

    :param busy: for each cluster whether it is in use; those behind the end are free.
    """
    edges = np.flatnonzero(busy)
    starts = np.concatenate(([0], edges + 1))
    ends = np.concatenate((edges, [len(busy) + length]))
    return int(starts[np.flatnonzero(ends - starts >= length)[0]])


def trim_file(writer: ImageWriter) -> None:
    """Cut the file behind the last cluster that is in use, after leaving out refcount blocks that count nothing.

    Everything must have been flushed.
    """
    blocks = writer.allocator.blocks
    end = 0
    emptied = []
    for index in reversed(np.flatnonzero(blocks.table).tolist()):
        counts = blocks.block(index)
        if counts is None:
            continue
        own = int(blocks.table[index]) >> blocks.cluster_bits
        used = np.flatnonzero(counts)
        here = own - index * blocks.block_entries
        if len(used) and not (len(used) == 1 and int(used[0]) == here and int(counts[here]) == 1):
            end = index * blocks.block_entries + int(used[-1]) + 1
            break
        emptied.append((own, len(used)))
        blocks.remove(index)
    if emptied:
        for own, inside in emptied:
            writer.metadata.drop(Run(own, 1))
            if not inside:
                writer.order.release(np.array([own], np.int64))
        writer.allocator.search_from(0)
        writer.flush()
    length = end << blocks.cluster_bits
    node = writer.disk.node
    if length < node.size and isinstance(node, Truncatable):
        writer.disk.barrier()
        node.truncate(length)
