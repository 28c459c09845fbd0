"""VDI on-disk structures, little-endian. Sources: qemu ``block/vdi.c``, VirtualBox ``Storage/VDICore.h``.

A file is a header of 512 bytes, the block map (an integer of 32 bits for each block of the disk), and the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from construct import Bytes, Default, Int32ul, Int64ul, Padded, Padding, Struct

from diskwright.bounded import BoundedReader
from diskwright.errors import UnsupportedFeature

SECTOR_SIZE = HEADER_SIZE = 512
SIGNATURE = 0xBEDA107F
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


@dataclass(frozen=True)
class Header:
    """The header of an image that can be read.

    :ivar disk_size: bytes, whole sectors.
    :ivar blocks: entries of the block map.
    """

    static: bool
    offset_bmap: int
    offset_data: int
    disk_size: int
    blocks: int
    blocks_allocated: int

    @classmethod
    def read(cls, reader: BoundedReader) -> Header:
        """Read and judge the header.

        :raises InvalidImage: it breaks the format.
        :raises UnsupportedFeature: it uses what QEMU and this driver lack.
        """
        raw = reader.structure(HEADER, 0, "header")
        if raw.signature != SIGNATURE:
            raise reader.error(f"Image not in VDI format (bad signature {raw.signature:08x})", 0x40)
        if reason := _unsupported(raw):
            raise UnsupportedFeature(f"unsupported VDI image ({reason})")
        # VirtualBox writes sizes that are no whole sectors.
        header = cls(
            static=raw.image_type == STATIC,
            offset_bmap=raw.offset_bmap,
            offset_data=raw.offset_data,
            disk_size=-(-raw.disk_size // SECTOR_SIZE) * SECTOR_SIZE,
            blocks=raw.blocks_in_image,
            blocks_allocated=raw.blocks_allocated,
        )
        map_end = header.offset_bmap + 4 * header.blocks
        if header.offset_bmap < HEADER_SIZE or (header.blocks and header.offset_data < map_end):
            raise reader.error("header, block map and blocks overlap", 0x154)
        reader.require(header.offset_bmap, 4 * header.blocks, "block map")
        return header


def _unsupported(raw: Any) -> str:
    """Why an image cannot be used, in QEMU's words; empty if it can."""
    room = raw.blocks_in_image * BLOCK_SIZE
    checks = (
        (raw.version == VERSION, f"version {raw.version >> 16}.{raw.version & 0xFFFF}"),
        (raw.offset_bmap % SECTOR_SIZE == 0, f"unaligned block map offset 0x{raw.offset_bmap:x}"),
        (raw.offset_data % SECTOR_SIZE == 0, f"unaligned data offset 0x{raw.offset_data:x}"),
        (raw.sector_size == SECTOR_SIZE, f"sector size {raw.sector_size} is not {SECTOR_SIZE}"),
        (raw.block_size == BLOCK_SIZE, f"block size {raw.block_size} is not {BLOCK_SIZE}"),
        (raw.block_extra == 0, f"{raw.block_extra} extra bytes for each block"),
        (raw.disk_size <= room, f"disk size {raw.disk_size}, image bitmap has room for {room}"),
        (raw.uuid_link == NO_UUID, "non-NULL link UUID"),
        (raw.uuid_parent == NO_UUID, "non-NULL parent UUID"),
        (raw.blocks_in_image <= MAX_BLOCKS, f"too many blocks {raw.blocks_in_image}, max is {MAX_BLOCKS}"),
    )
    return next((reason for ok, reason in checks if not ok), "")
