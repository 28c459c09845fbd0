"""Letting the system copy from file to file; it may share the blocks, or have the storage do it."""

from __future__ import annotations

import os

from ..extent import Extent, Kind
from ..node import Node, Placement


def copy_extent(extent: Extent, placement: Placement) -> bool:
    """Copy the bytes of an extent to their place, if both stand in files as they are and the system can.

    :returns: False if it cannot; part of the place may have been written.
    """
    source, target = _descriptor(extent.node), _descriptor(placement.node)
    copy_range = getattr(os, "copy_file_range", None)
    if source is None or target is None or extent.node_offset is None or copy_range is None:
        return False
    if extent.kind is not Kind.DATA:
        return False  # something wants to see what is read
    done = 0
    while done < extent.length:
        try:
            count = copy_range(
                source, target, extent.length - done, extent.node_offset + done, placement.node_offset + done
            )
        except OSError:
            return False  # copying the usual way either works or tells what is wrong
        if not count:
            return False  # the source ends in the middle of its last sector
        done += count
    return True


def _descriptor(node: Node | None) -> int | None:
    """The file descriptor of a node that is an open file."""
    fileno = getattr(node, "fileno", None)
    return fileno() if callable(fileno) else None
