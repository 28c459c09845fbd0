"""Adding, removing, changing and reading persistent dirty bitmaps.

Whatever changes, new data, new tables and a new directory are written to free clusters first; then the header is
switched to them, and then the old ones are freed. Until the switch every bitmap says what it said before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import ImageError, InvalidImage, InvalidOption
from diskwright.facts import Bitmap

from . import layout
from .bitmap_record import Marks
from .bitmaps import BitmapEntry, bitmap_bytes, build_bitmaps, directory_entry_size
from .extensions import BitmapDirectory
from .layout import Autoclear, BitmapFlag
from .switching import switch_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .header import Header
    from .image import Qcow2Image
    from .refcount import Column

_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_PLACEHOLDER = BitmapDirectory(1, 0, 0)
_INCONSISTENT_HINT = "Try block-dirty-bitmap-remove to delete this bitmap from disk"


def list_bitmaps(image: Qcow2Image) -> list[Bitmap]:
    """See the ``bitmap_list`` hook."""
    return [
        Bitmap(
            entry.name,
            entry.granularity,
            enabled=bool(entry.flags & BitmapFlag.AUTO),
            inconsistent=bool(entry.flags & BitmapFlag.IN_USE),
        )
        for entry in image.bitmaps
    ]


def add_bitmap(image: Qcow2Image, bitmap: Bitmap) -> None:
    """See the ``bitmap_add`` hook."""
    with image.lock:
        image.save()
        bits = bitmap.granularity.bit_length() - 1
        _require_addable(image, bitmap)
        count = _table_entries(image.header, bits)
        entry = BitmapEntry(bitmap.name, 0, count, BitmapFlag.AUTO if bitmap.enabled else BitmapFlag(0), bits, offset=0)
        change = DirectoryChange(image)
        others = [change.again(other) for other in image.bitmaps]
        placed = entry._replace(table_offset=change.place_table(np.zeros(count, np.uint64)))
        change.switch([*others, placed])
        image.stored_bitmaps.add(entry.name)


def _require_addable(image: Qcow2Image, bitmap: Bitmap) -> None:
    """Refuse a bitmap that the image cannot have.

    :raises InvalidOption: it cannot.
    """
    header = image.header
    if header.version < 3:
        raise InvalidOption("Cannot store dirty bitmaps in qcow2 v2 files")
    if not image.size:
        raise InvalidOption("A disk without content has no bitmaps")
    if any(entry.name == bitmap.name for entry in image.bitmaps):
        raise InvalidOption(f"Bitmap already exists: {bitmap.name}")
    size = bitmap.granularity
    if size.bit_count() != 1 or size < 1 << layout.MIN_BITMAP_GRANULARITY_BITS:
        raise InvalidOption("Granularity must be power of 2 and at least 512")
    if size > 1 << layout.MAX_BITMAP_GRANULARITY_BITS:
        raise InvalidOption(f"Granularity exceeds maximum ({1 << layout.MAX_BITMAP_GRANULARITY_BITS} bytes)")
    length = len(bitmap.name.encode("utf-8", "surrogateescape"))
    if length > layout.MAX_BITMAP_NAME_BYTES:
        raise InvalidOption(f"Bitmap name is too long; it may have {layout.MAX_BITMAP_NAME_BYTES} bytes")
    if not length:
        raise InvalidOption("Bitmap name cannot be empty")
    if len(image.bitmaps) >= layout.MAX_BITMAPS:
        raise InvalidOption("Maximum number of persistent bitmaps is already reached")
    if bitmap_bytes(image.size, size.bit_length() - 1) > layout.MAX_BITMAP_BYTES:
        raise InvalidOption("Too much space will be occupied by the bitmap. Use larger granularity")
    used = sum(directory_entry_size(entry.name) for entry in image.bitmaps)
    if used + directory_entry_size(bitmap.name) > layout.MAX_BITMAP_DIRECTORY_BYTES:
        raise InvalidOption("Not enough space in the bitmap directory")


def remove_bitmap(image: Qcow2Image, name: str) -> None:
    """See the ``bitmap_remove`` hook."""
    with image.lock:
        image.save()
        entry = _find(image, name)
        change = DirectoryChange(image)
        table = change.read_table(entry)
        change.drop_table(entry, table)
        change.drop_data(table)
        change.switch([other for other in image.bitmaps if other is not entry])


def enable_bitmap(image: Qcow2Image, name: str, enabled: bool) -> None:
    """See the ``bitmap_enable`` hook."""
    with image.lock:
        image.save()
        entry = _find_consistent(image, name)
        flags = entry.flags | BitmapFlag.AUTO if enabled else entry.flags & ~BitmapFlag.AUTO
        if flags != entry.flags:
            changed = entry._replace(flags=flags)
            DirectoryChange(image).switch([changed if other is entry else other for other in image.bitmaps])


def fill_bitmap(image: Qcow2Image, name: str, ranges: Iterable[tuple[int, int]], clear: bool) -> None:
    """See the ``bitmap_fill`` hook."""
    with image.lock:
        image.save()
        entry = _find_consistent(image, name)
        marks = Marks(entry.granularity_bits, image.header.cluster_size)
        for offset, length in ranges:
            marks.add(offset, min(length, image.size - offset))
        change = DirectoryChange(image)
        changed = change.update(entry, marks, 0 if clear else image.size)
        change.switch([changed if other is entry else other for other in image.bitmaps])


def bitmap_ranges(image: Qcow2Image, name: str) -> Iterator[tuple[int, int]]:
    """See the ``bitmap_ranges`` hook."""
    if not image.read_only:
        with image.lock:
            image.save()
    entry = _find_consistent(image, name)
    start = end = 0
    for offset, length in _stored_ranges(image, entry):
        if offset > end:
            if end > start:
                yield start, end - start
            start = offset
        end = offset + length
    end = min(end, image.size)
    if end > start:
        yield start, end - start


def _stored_ranges(image: Qcow2Image, entry: BitmapEntry) -> Iterator[tuple[int, int]]:
    """The same, cut where chunks end; the last may reach behind the end of the disk."""
    covered = image.header.cluster_size * 8 << entry.granularity_bits
    for index, value in enumerate(read_table(image, entry).tolist()):
        base = index * covered
        if value & layout.OFFSET_MASK:
            bits = np.unpackbits(np.frombuffer(read_chunk(image, value), np.uint8), bitorder="little")
            edges = np.flatnonzero(np.diff(bits, prepend=0, append=0)) << entry.granularity_bits
            for first, last in edges.reshape(-1, 2).tolist():
                if base + first < image.size:
                    yield base + first, last - first
        elif value and base < image.size:
            yield base, covered


def resize_bitmaps(image: Qcow2Image, size: int) -> None:
    """The disk is about to get another size: prepare the bitmaps, which are stored anew when the image is closed.

    Call it before the size changes, under the image's lock.

    :param size: bytes.
    :raises ImageError: one of them is inconsistent, or would be too large; nothing has changed.
    """
    for entry in image.bitmaps:
        _find_consistent(image, entry.name)
        if bitmap_bytes(size, entry.granularity_bits) > layout.MAX_BITMAP_BYTES:
            raise InvalidOption(f"Bitmap '{entry.name}' would be too large for the new size of the disk")
    image.recorder.prepare_resize()


def store_recorded(image: Qcow2Image) -> None:
    """Store the bitmaps that something was recorded for, and take the marks of being in use back."""
    recorder = image.recorder
    change = DirectoryChange(image)
    entries = []
    for entry in image.bitmaps:
        marks = recorder.marks.get(entry.name)
        if marks is not None and (marks.chunks or recorder.resized):
            entries.append(change.update(entry, marks, recorder.smallest, trim=recorder.resized))
        else:
            entries.append(entry)
    change.switch(entries)


def _find(image: Qcow2Image, name: str) -> BitmapEntry:
    for entry in image.bitmaps:
        if entry.name == name:
            return entry
    raise ImageError(f"Dirty bitmap '{name}' not found")


def _find_consistent(image: Qcow2Image, name: str) -> BitmapEntry:
    entry = _find(image, name)
    if entry.flags & BitmapFlag.IN_USE:
        raise ImageError(f"Bitmap '{name}' is inconsistent and cannot be used", hint=_INCONSISTENT_HINT)
    return entry


def _table_entries(header: Header, granularity_bits: int) -> int:
    return max(1, -(-bitmap_bytes(header.disk_size, granularity_bits) >> header.cluster_bits))


def read_table(image: Qcow2Image, entry: BitmapEntry) -> Column:
    """The table of a bitmap.

    :raises InvalidImage: an entry is not valid.
    """
    table = image.reader.table(
        layout.BITMAP_TABLE_DTYPE,
        entry.table_offset,
        entry.table_size,
        "bitmap table",
        limit=layout.MAX_BITMAP_TABLE_ENTRIES,
    )
    offsets = table & _OFFSET_MASK
    bad = table & np.uint64(layout.BITMAP_TABLE_RESERVED_MASK) != 0
    bad |= offsets & np.uint64(image.header.cluster_size - 1) != 0
    bad |= (offsets != 0) & (table & np.uint64(layout.BITMAP_TABLE_ALL_ONES) != 0)
    if bad.any():
        raise image.reader.error(f"Bitmap '{entry.name}' has an invalid table entry", entry.table_offset)
    return table


def require_tables(image: Qcow2Image) -> None:
    """Refuse bitmaps whose table has entries that cannot be; those in use are not relied on by anybody.

    :raises InvalidImage: naming the bitmap.
    """
    # Tables that stand beside each other fill the file at most: what is more is not looked at before it is used.
    left = image.file.size
    for entry in image.bitmaps:
        length = entry.table_size * layout.BITMAP_TABLE_ENTRY_SIZE
        left -= length
        if entry.flags & BitmapFlag.IN_USE or entry.table_offset + length > image.file.size or left < 0:
            continue
        try:
            read_table(image, entry)
        except InvalidImage:
            raise InvalidImage(
                f"Could not read bitmap_table table from image for bitmap '{entry.name}': Invalid argument",
                filename=image.file.filename,
                offset=entry.table_offset,
            ) from None


def read_chunk(image: Qcow2Image, value: int) -> bytes:
    """The bits that one table entry leads to, a cluster of them."""
    size = image.header.cluster_size
    if offset := value & layout.OFFSET_MASK:
        return image.reader.bytes(offset, size, "bitmap data")
    return (b"\xff" if value else b"\0") * size


class DirectoryChange:
    """New bitmap structures beside the present ones, until :meth:`switch`."""

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.writer = image.writer
        self.size = image.header.cluster_size
        self._released: list[Column] = []
        # What will not fit into the header is refused before anything is written.
        image.header.replace(bitmaps=_PLACEHOLDER).build()

    def read_table(self, entry: BitmapEntry) -> Column:
        """The table of a bitmap, without entries that make no sense if nobody relies on it anyway."""
        try:
            return read_table(self.image, entry)
        except InvalidImage:
            if entry.flags & BitmapFlag.IN_USE:
                return np.zeros(0, np.uint64)
            raise

    def update(self, entry: BitmapEntry, marks: Marks, border: int, *, trim: bool = False) -> BitmapEntry:
        """A bitmap with other bits, in other places where it differs.

        :param marks: bits to set.
        :param border: bits of the disk from here on, in bytes, are cleared before.
        :param trim: whether any may be set there in the same cluster of bits as those before.
        """
        old = read_table(self.image, entry)
        disk, bits = self.image.size, entry.granularity_bits
        table = np.zeros(_table_entries(self.image.header, bits), np.uint64)
        in_chunk = self.size * 8 << bits
        border = min(border, disk)
        common = min(len(table), len(old), -(-border // in_chunk))
        table[:common] = old[:common]
        changed = {index for index in marks.chunks if index < len(table)}
        if trim and border % in_chunk:
            changed.add(border // in_chunk)
        for index in sorted(changed):
            start = index * in_chunk
            kept = _first_bits(read_chunk(self.image, int(table[index])), -(-(border - start) >> bits))
            table[index] = self._place_chunk(_merged(kept, marks.chunks.get(index)), -(-(disk - start) >> bits))
        gone = np.ones(len(old), bool)
        shared = min(len(old), len(table))
        gone[:shared] = old[:shared] != table[:shared]
        self.drop_data(old[gone])
        self.drop_table(entry, old)
        return entry._replace(table_offset=self.place_table(table), table_size=len(table))

    def again(self, entry: BitmapEntry) -> BitmapEntry:
        """A bitmap as it is, in other places.

        QEMU stores all bitmaps anew whenever it closes an image; as one that adds a bitmap does the same, once for each
        bitmap while the image is open, both leave the same layout.
        """
        if entry.flags & BitmapFlag.IN_USE or entry.name in self.image.stored_bitmaps:
            return entry
        try:
            old = read_table(self.image, entry)
            chunks = [read_chunk(self.image, value) if value & layout.OFFSET_MASK else b"" for value in old.tolist()]
        except InvalidImage:
            return entry  # adding another bitmap is not the moment to complain
        self.image.stored_bitmaps.add(entry.name)
        table = old.copy()
        for index, chunk in enumerate(chunks):
            if chunk:
                table[index] = self._place(chunk)
        self.drop_data(old)
        self.drop_table(entry, old)
        return entry._replace(table_offset=self.place_table(table))

    def _place_chunk(self, bits: bytes, limit: int) -> int:
        """Write a cluster of bits, of which the first ``limit`` count; the table entry for it."""
        if not any(bits):
            return 0
        if limit >= self.size * 8 and bits.count(0xFF) == len(bits):
            return layout.BITMAP_TABLE_ALL_ONES
        return self._place(_first_bits(bits, limit))

    def _place(self, data: bytes) -> int:
        run = self.writer.allocator.take_contiguous(-(-len(data) // self.size))
        self.writer.disk.write(run.first * self.size, data + bytes(-len(data) % self.size))
        return run.first * self.size

    def place_table(self, table: Column) -> int:
        """Write a bitmap table; its offset, bytes."""
        return self._place(table.astype(layout.BITMAP_TABLE_DTYPE).tobytes())

    def drop_table(self, entry: BitmapEntry, table: Column) -> None:
        """The table of a bitmap is not used any more; it is leaked rather than freed if it could not be read."""
        if len(table):
            self._drop(entry.table_offset, entry.table_size * layout.BITMAP_TABLE_ENTRY_SIZE)

    def drop_data(self, table: Column) -> None:
        """What these table entries lead to is not used any more."""
        offsets = table & _OFFSET_MASK
        placed = offsets[offsets != 0].astype(np.int64)
        self._released.append(placed >> self.image.header.cluster_bits)

    def _drop(self, offset: int, length: int) -> None:
        bits = self.image.header.cluster_bits
        self._released.append(np.arange(offset >> bits, ((offset + length - 1) >> bits) + 1, dtype=np.int64))

    def switch(self, entries: Sequence[BitmapEntry]) -> None:
        """Let the header lead to a directory of these bitmaps, and free what is not used any more."""
        image = self.image
        old, new = image.header.bitmaps, None
        features = image.header.autoclear_features & ~Autoclear.BITMAPS
        if entries:
            data = build_bitmaps(entries)
            new = BitmapDirectory(len(entries), self._place(data), len(data))
            features |= Autoclear.BITMAPS
        switch_header(image, bitmaps=new, autoclear_features=features)
        for name in ("bitmaps", "recorder"):
            image.__dict__.pop(name, None)
        if old is not None:
            self._drop(old.offset, old.size)
        for clusters in self._released:
            image.writer.order.release(clusters)
        image.flush()


def _merged(bits: bytes, more: bytearray | None) -> bytes:
    """The bits that are set in one or the other."""
    if more is None:
        return bits
    merged: bytes = (np.frombuffer(bits, np.uint8) | np.frombuffer(more, np.uint8)).tobytes()
    return merged


def _first_bits(bits: bytes, count: int) -> bytes:
    """The bits without those from ``count`` on."""
    if count >= len(bits) * 8:
        return bits
    whole, rest = divmod(max(0, count), 8)
    kept = bits[:whole] + (bytes([bits[whole] & (1 << rest) - 1]) if rest else b"")
    return kept.ljust(len(bits), b"\0")
