"""New VDI images."""

from __future__ import annotations

import os

from diskwright.errors import InvalidOption, UnsupportedOperation
from diskwright.hookspecs import CreateOptions
from diskwright.node import Node, Truncatable, Writable

from .layout import BLOCK_SIZE, DYNAMIC, HEADER, HEADER_SIZE, MAX_BLOCKS, SECTOR_SIZE, STATIC, UNALLOCATED

CHUNK = 1 << 18
"""Map entries written at once."""


def create(target: Node, options: CreateOptions) -> bool:
    """Write header and block map; a static image also gets its full length.

    :raises InvalidOption: the disk is too large for the format.
    """
    if options.size > MAX_BLOCKS * BLOCK_SIZE:
        raise InvalidOption(
            f"Unsupported VDI image size (size is 0x{options.size:x}, max supported is 0x{MAX_BLOCKS * BLOCK_SIZE:x})"
        )
    if not isinstance(target, Writable):
        raise UnsupportedOperation(f"'{options.filename}' cannot be written")
    static = bool(options.get("static", False))
    blocks = -(-options.size // BLOCK_SIZE)
    map_size = -(-4 * blocks // SECTOR_SIZE) * SECTOR_SIZE
    header = HEADER.build(
        {
            "image_type": STATIC if static else DYNAMIC,
            "offset_data": HEADER_SIZE + map_size,
            "disk_size": options.size,
            "blocks_in_image": blocks,
            "blocks_allocated": blocks if static else 0,
            "uuid_image": os.urandom(16),
            "uuid_last_snap": os.urandom(16),
        }
    )
    target.write_at(0, header)
    _write_map(target, blocks, map_size, static=static)
    if static and isinstance(target, Truncatable):
        target.truncate(HEADER_SIZE + map_size + blocks * BLOCK_SIZE)
    return True


def _write_map(target: Writable, blocks: int, map_size: int, *, static: bool) -> None:
    import numpy as np

    for first in range(0, blocks, CHUNK):
        count = min(CHUNK, blocks - first)
        entries = np.arange(first, first + count) if static else np.full(count, UNALLOCATED)
        target.write_at(HEADER_SIZE + 4 * first, entries.astype("<u4").tobytes())
    target.write_at(HEADER_SIZE + 4 * blocks, bytes(map_size - 4 * blocks))
