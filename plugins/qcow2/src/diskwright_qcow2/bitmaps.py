"""The directory of persistent dirty bitmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from diskwright.errors import InvalidImage

from . import layout
from .layout import BitmapFlag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diskwright.bounded import BoundedReader

    from .extensions import BitmapDirectory
    from .header import Header


class BitmapEntry(NamedTuple):
    """One entry of the bitmap directory; all fields are within their limits.

    :ivar table_offset: bytes, cluster aligned.
    :ivar table_size: entries.
    :ivar granularity_bits: one bit covers ``1 << granularity_bits`` bytes of the disk.
    :ivar offset: where the entry stands in the file, bytes.
    """

    name: str
    table_offset: int
    table_size: int
    flags: BitmapFlag
    granularity_bits: int
    offset: int

    @property
    def granularity(self) -> int:
        """Bytes of the disk that one bit covers."""
        return 1 << self.granularity_bits


def read_bitmaps(reader: BoundedReader, header: Header) -> list[BitmapEntry]:
    """All entries of the bitmap directory, in order; none if the image has no valid bitmaps extension.

    :raises InvalidImage: the directory is broken.
    """
    directory = header.bitmaps
    if directory is None:
        return []
    if not directory.size:
        raise InvalidImage("Requested bitmap directory size is zero")
    data = reader.bytes(directory.offset, directory.size, "bitmap directory", limit=layout.MAX_BITMAP_DIRECTORY_BYTES)
    entries: list[BitmapEntry] = []
    position = 0
    while position < len(data):
        entry, position = _parse_entry(header, directory, data, position, last=len(entries) == directory.number)
        entries.append(entry)
    if len(entries) < directory.number:
        raise InvalidImage("Less bitmaps found than specified in header extension", offset=directory.offset)
    return entries


def _parse_entry(
    header: Header, directory: BitmapDirectory, data: bytes, start: int, *, last: bool
) -> tuple[BitmapEntry, int]:
    """One entry and the position of the next, both relative to the directory.

    :param last: whether there should be no further entry.
    """
    offset = directory.offset + start
    name_start = start + layout.BITMAP_DIRECTORY_ENTRY.sizeof()
    if name_start > len(data):
        raise InvalidImage("Broken bitmap directory", offset=offset)
    if last:
        raise InvalidImage("More bitmaps found than specified in header extension", offset=offset)
    fields = layout.BITMAP_DIRECTORY_ENTRY.parse(data[start:name_start])
    end = name_start + fields.extra_data_size + fields.name_size
    following = end + -end % layout.BITMAP_ALIGNMENT
    if following > len(data):
        raise InvalidImage("Broken bitmap directory", offset=offset)
    if fields.extra_data_size:
        raise InvalidImage("Bitmap extra data is not supported", offset=offset)
    name = data[name_start:end].decode("utf-8", "surrogateescape")
    if not _satisfies_constraints(header, fields):
        raise InvalidImage(f"Bitmap '{name}' doesn't satisfy the constraints", offset=offset)
    entry = BitmapEntry(
        name=name,
        table_offset=fields.bitmap_table_offset,
        table_size=fields.bitmap_table_size,
        flags=BitmapFlag(fields.flags),
        granularity_bits=fields.granularity_bits,
        offset=offset,
    )
    return entry, following


def _satisfies_constraints(header: Header, fields: Any) -> bool:
    table_bytes = fields.bitmap_table_size * header.cluster_size
    if (
        fields.bitmap_table_offset == 0
        or fields.bitmap_table_offset % header.cluster_size
        or not 0 < fields.bitmap_table_size <= layout.MAX_BITMAP_TABLE_ENTRIES
        or table_bytes > layout.MAX_BITMAP_BYTES
        or fields.flags & ~int(BitmapFlag.SUPPORTED)
        or fields.type != layout.BITMAP_TYPE_DIRTY_TRACKING
        or not layout.MIN_BITMAP_GRANULARITY_BITS <= fields.granularity_bits <= layout.MAX_BITMAP_GRANULARITY_BITS
        or not 0 < fields.name_size <= layout.MAX_BITMAP_NAME_BYTES
    ):
        return False
    # A bitmap that was not saved may be from before the disk grew.
    in_use = fields.flags & BitmapFlag.IN_USE
    return bool(in_use) or header.disk_size <= table_bytes * 8 << fields.granularity_bits


def bitmap_bytes(disk_size: int, granularity_bits: int) -> int:
    """Bytes that the bits of a bitmap take."""
    return -(-disk_size >> granularity_bits + 3)


def directory_entry_size(name: str) -> int:
    """Bytes that a bitmap takes in the directory."""
    size = layout.BITMAP_DIRECTORY_ENTRY.sizeof() + len(name.encode("utf-8", "surrogateescape"))
    return int(size + -size % layout.BITMAP_ALIGNMENT)


def build_bitmaps(entries: Iterable[BitmapEntry]) -> bytes:
    """The bitmap directory as stored."""
    parts = []
    for entry in entries:
        name = entry.name.encode("utf-8", "surrogateescape")
        fixed = layout.BITMAP_DIRECTORY_ENTRY.build(
            {
                "bitmap_table_offset": entry.table_offset,
                "bitmap_table_size": entry.table_size,
                "flags": entry.flags,
                "type": layout.BITMAP_TYPE_DIRTY_TRACKING,
                "granularity_bits": entry.granularity_bits,
                "name_size": len(name),
                "extra_data_size": 0,
            }
        )
        parts.append((fixed + name).ljust(directory_entry_size(entry.name), b"\0"))
    return b"".join(parts)


def describe_bitmaps(entries: list[BitmapEntry]) -> list[dict[str, Any]]:
    """The bitmaps as ``info`` shows them."""
    names = ((BitmapFlag.IN_USE, "in-use"), (BitmapFlag.AUTO, "auto"))
    return [
        {
            "flags": [name for flag, name in names if entry.flags & flag],
            "name": entry.name,
            "granularity": entry.granularity,
        }
        for entry in entries
    ]
