"""Free space in the file: finding gaps, and giving back what is free."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from diskwright.node import Truncatable
from diskwright.zeroing import discard

from .allocate import Run

if TYPE_CHECKING:
    from diskwright.node import Node

    from .refcount import Column
    from .runtime import Runtime
    from .writer import ImageWriter


class Cause(Enum):
    """Why clusters go free."""

    ALWAYS = "always"
    REQUEST = "request"
    SNAPSHOT = "snapshot"
    OTHER = "other"

    @classmethod
    def of(cls, runtime: Runtime) -> frozenset[Cause]:
        """The causes for which an image gives the space of free clusters back."""
        wanted = {
            cls.ALWAYS: True,
            cls.REQUEST: runtime.pass_request,
            cls.SNAPSHOT: runtime.pass_snapshot,
            cls.OTHER: runtime.pass_other,
        }
        return frozenset(cause for cause, passed in wanted.items() if passed)


def give_back(node: Node, clusters: Column, cluster_bits: int) -> None:
    """Let the file system have the space of clusters that nothing refers to.

    :param clusters: in order, without repetition.
    """
    if not node.may_unmap or not len(clusters):
        return
    breaks = np.flatnonzero(np.diff(clusters) != 1) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(clusters)]))
    for first, end in zip(clusters[starts].tolist(), (clusters[ends - 1] + 1).tolist(), strict=True):
        offset = first << cluster_bits
        length = min(end << cluster_bits, node.size) - offset
        if length > 0:
            # The image is sound with or without that space.
            with suppress(OSError):
                discard(node, offset, length)


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
