"""VDI on-disk structures, little-endian, and new images.

Sources: qemu ``block/vdi.c``, VirtualBox ``Storage/VDICore.h``. A file is a header of 512 bytes, the block
map (an integer of 32 bits for each block of the disk), and the blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from construct import Bytes, Default, Int32ul, Int64ul, Padded, Padding, Struct

from diskwright.blocks import WINDOW
from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidOption, UnsupportedFeature, UnsupportedOperation
from diskwright.extent import runs_of
from diskwright.hookspecs import CreateOptions, GuestRange
from diskwright.node import Node, Truncatable, Writable

from .plugin import SIGNATURE

SECTOR_SIZE = HEADER_SIZE = 512
VERSION = 0x00010001
DYNAMIC, STATIC = 1, 2
BLOCK_SIZE = 1 << 20
MAX_BLOCKS = 0x1FFFFF80
UNALLOCATED = 0xFFFFFFFF
FIRST_SPECIAL = 0xFFFFFFFE
"""Map entries from here on (discarded, never allocated) are no block numbers: such blocks read as zeros."""
NO_UUID = bytes(16)
ALLOCATED_OFFSET = 0x184
"""Where in the header ``blocks_allocated`` stands: the only field that changes after creation."""

HEADER = Struct(
    "text" / Default(Padded(64, Bytes(35)), b"<<< QEMU VM Virtual Disk Image >>>\n"),
    "signature" / Default(Int32ul, SIGNATURE),
    "version" / Default(Int32ul, VERSION),
    "header_size" / Default(Int32ul, 0x180) * "bytes from the signature on that are in use",
    "image_type" / Int32ul,
    "image_flags" / Default(Int32ul, 0),
    Padding(256),
    "offset_bmap" / Default(Int32ul, HEADER_SIZE) * "bytes",
    "offset_data" / Int32ul * "bytes",
    Padding(12),
    "sector_size" / Default(Int32ul, SECTOR_SIZE),
    Padding(4),
    "disk_size" / Int64ul * "bytes",
    "block_size" / Default(Int32ul, BLOCK_SIZE) * "bytes",
    "block_extra" / Default(Int32ul, 0) * "bytes in front of each block",
    "blocks_in_image" / Int32ul,
    "blocks_allocated" / Int32ul,
    "uuid_image" / Bytes(16),
    "uuid_last_snap" / Bytes(16),
    "uuid_link" / Default(Bytes(16), NO_UUID),
    "uuid_parent" / Default(Bytes(16), NO_UUID),
    Padding(56),
)


def read_header(reader: BoundedReader) -> Any:
    """The fields of :data:`HEADER`, of an image that can be read; its block map lies in the file.

    :raises InvalidImage: it breaks the format.
    :raises UnsupportedFeature: it uses what QEMU and this driver lack; QEMU's words.
    """
    header = reader.structure(HEADER, 0, "header")
    if header.signature != SIGNATURE:
        raise reader.error(f"Image not in VDI format (bad signature {header.signature:08x})", 0x40)
    blocks = header.blocks_in_image
    room = blocks * BLOCK_SIZE
    for ok, reason in (
        (header.version == VERSION, f"version {header.version >> 16}.{header.version & 0xFFFF}"),
        (header.offset_bmap % SECTOR_SIZE == 0, f"unaligned block map offset 0x{header.offset_bmap:x}"),
        (header.offset_data % SECTOR_SIZE == 0, f"unaligned data offset 0x{header.offset_data:x}"),
        (header.sector_size == SECTOR_SIZE, f"sector size {header.sector_size} is not {SECTOR_SIZE}"),
        (header.block_size == BLOCK_SIZE, f"block size {header.block_size} is not {BLOCK_SIZE}"),
        (header.block_extra == 0, f"{header.block_extra} extra bytes for each block"),
        (header.disk_size <= room, f"disk size {header.disk_size}, image bitmap has room for {room}"),
        (header.uuid_link == NO_UUID, "non-NULL link UUID"),
        (header.uuid_parent == NO_UUID, "non-NULL parent UUID"),
        (blocks <= MAX_BLOCKS, f"too many blocks {blocks}, max is {MAX_BLOCKS}"),
    ):
        if not ok:
            raise UnsupportedFeature(f"unsupported VDI image ({reason})")
    if header.offset_bmap < HEADER_SIZE or (blocks and header.offset_data < header.offset_bmap + 4 * blocks):
        raise reader.error("header, block map and blocks overlap", 0x154)
    reader.require(header.offset_bmap, 4 * blocks, "block map")
    return header


def create(target: Node, options: CreateOptions) -> bool:
    """Write header and block map; a static image also gets its full length.

    :raises InvalidOption: the disk is too large for the format.
    """
    import numpy as np

    if not isinstance(target, Writable):
        raise UnsupportedOperation(f"'{options.filename}' cannot be written")
    static = bool(options.get("static", False))
    fields = _new_header(options.size, static=static)
    blocks, offset_data = fields["blocks_in_image"], fields["offset_data"]
    fields["blocks_allocated"] = blocks if static else 0
    target.write_at(0, HEADER.build(fields))
    for first in range(0, blocks, WINDOW):
        last = min(first + WINDOW, blocks)
        entries = np.arange(first, last, dtype="<u4") if static else np.full(last - first, UNALLOCATED, "<u4")
        target.write_at(HEADER_SIZE + 4 * first, entries.tobytes())
    target.write_at(HEADER_SIZE + 4 * blocks, bytes(offset_data - HEADER_SIZE - 4 * blocks))
    if static and isinstance(target, Truncatable):
        target.truncate(offset_data + blocks * BLOCK_SIZE)
    return True


def _new_header(size: int, *, static: bool) -> dict[str, Any]:
    """The fields of the header of a new image, apart from the number of its allocated blocks.

    :raises InvalidOption: the disk is too large for the format.
    """
    limit = MAX_BLOCKS * BLOCK_SIZE
    if size > limit:
        raise InvalidOption(f"Unsupported VDI image size (size is 0x{size:x}, max supported is 0x{limit:x})")
    blocks = -(-size // BLOCK_SIZE)
    return {
        "image_type": STATIC if static else DYNAMIC,
        "offset_data": HEADER_SIZE + -(-4 * blocks // SECTOR_SIZE) * SECTOR_SIZE,
        "disk_size": size,
        "blocks_in_image": blocks,
        "uuid_image": os.urandom(16),
        "uuid_last_snap": os.urandom(16),
    }


def stream(size: int, values: Mapping[str, Any], ranges: Iterable[tuple[int, int]]) -> Iterator[bytes | GuestRange]:
    """A whole file in its order; see the hook ``stream``.

    :raises InvalidOption: the disk is too large for the format.
    """
    import numpy as np

    static = bool(values.get("static", False))
    fields = _new_header(size, static=static)
    blocks, offset_data = fields["blocks_in_image"], fields["offset_data"]
    taken = np.full(blocks, static, bool)
    for offset, length in ranges:
        taken[offset // BLOCK_SIZE : -(-(offset + length) // BLOCK_SIZE)] = True
    yield HEADER.build(fields | {"blocks_allocated": int(np.count_nonzero(taken))})
    number = 0
    for first in range(0, blocks, WINDOW):
        part = taken[first : first + WINDOW]
        entries = np.where(part, number + np.cumsum(part) - 1, UNALLOCATED)
        number += int(np.count_nonzero(part))
        yield entries.astype("<u4").tobytes()
    yield bytes(offset_data - HEADER_SIZE - 4 * blocks)
    for first, last in runs_of(taken):
        end = last * BLOCK_SIZE
        yield GuestRange(first * BLOCK_SIZE, min(end, size) - first * BLOCK_SIZE)
        yield bytes(max(0, end - size))
