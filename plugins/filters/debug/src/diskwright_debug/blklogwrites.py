"""blklogwrites: all writes go to a log too, in the format of the Linux device mapper target log-writes.

A superblock of one sector, then entries, each a header of one sector and the data written; all little-endian.
Source: Linux ``Documentation/admin-guide/device-mapper/log-writes.rst``.
"""

from __future__ import annotations

import struct
from enum import IntFlag

from diskwright.errors import InvalidImage, InvalidOption
from diskwright.hookspecs import FilterOptions
from diskwright.node import Bytes, Lockable, Node, Permission
from diskwright.passing import Passing
from diskwright.zeroing import write_zero_bytes

SUPER = struct.Struct("<QQQI")
"""magic, version, number of entries, sector size"""
ENTRY = struct.Struct("<QQQQ")
"""sector, number of sectors, flags, length of inline data"""
MAGIC = 0x6A736677736872
VERSION = 1
MIN_SECTOR, MAX_SECTOR = 512, 1 << 23
DEFAULT_INTERVAL = 4096


class EntryFlag(IntFlag):
    """What an entry is, besides a write."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8


class Blklogwrites(Passing):
    """The disk below, each change of which is logged once it is done.

    :raises InvalidOption: a sector size that cannot be, or one given for a log that is to be continued.
    :raises InvalidImage: the log to be continued is none.
    """

    def __init__(self, below: Node, log: Node, options: FilterOptions) -> None:
        super().__init__(below, writable=options.writable)
        values = options.values
        self._log = Passing(log, role="log", writable=options.writable)
        self._interval: int = values.get("log-super-update-interval", DEFAULT_INTERVAL)
        self._sector: int = values.get("log-sector-size", MIN_SECTOR)
        self._entries = 0
        if values.get("log-append"):
            if "log-sector-size" in values:
                raise InvalidOption("log-append and log-sector-size are mutually exclusive")
            self._end = self._continue()
        else:
            _require_sector_size(self._sector)
            self._end = self._sector
        self._changed = False
        if options.writable and not values.get("log-append"):
            self._write_super()

    def _continue(self) -> int:
        """Read the superblock of an existing log; the offset behind its last entry, bytes."""
        entries: int
        sector: int
        magic, version, entries, sector = SUPER.unpack(self._log.read_at(0, SUPER.size))
        if magic != MAGIC or version != VERSION:
            raise InvalidImage("Invalid log superblock", filename=self._log.filename)
        _require_sector_size(sector)
        self._sector, self._entries = sector, entries
        position = sector
        for _ in range(entries):
            if position + ENTRY.size > self._log.size:
                raise InvalidImage("The log ends before its last entry", filename=self._log.filename, offset=position)
            _, count, flags, _ = ENTRY.unpack(self._log.read_at(position, ENTRY.size))
            position += sector + (0 if flags & EntryFlag.DISCARD else count * sector)
        return position

    def children(self) -> dict[str, Node]:
        return {"log": self._log.below, "file": self.below}

    def set_permissions(self, used: Permission, shared: Permission) -> None:
        """Both files are used in the same way."""
        for node in self.children().values():
            if isinstance(node, Lockable):
                node.set_permissions(used, shared)

    def write_at(self, offset: int, data: Bytes) -> None:
        """Below, then in the log as whole sectors."""
        length = len(memoryview(data).cast("B"))
        with self.lock:
            super().write_at(offset, data)
            start = offset // self._sector * self._sector
            end = -(-(offset + length) // self._sector) * self._sector
            whole = data if (start, end) == (offset, offset + length) else self.below.read_at(start, end - start)
            self._append(start, end - start, EntryFlag(0), memoryview(whole).cast("B"))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Zeros are written and logged as what they are: data."""
        write_zero_bytes(self.write_at, offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Below, then in the log; only whole sectors."""
        start = -(-offset // self._sector) * self._sector
        end = (offset + length) // self._sector * self._sector
        if end > start:
            with self.lock:
                super().discard(start, end - start)
                self._append(start, end - start, EntryFlag.DISCARD, None)

    def flush(self) -> None:
        """Below, then in the log."""
        super().flush()
        if self.read_only:
            return
        with self.lock:
            self._append(0, 0, EntryFlag.FLUSH, None)
            self._write_super()
        self._log.flush()

    def _append(self, offset: int, length: int, flags: EntryFlag, data: memoryview | None) -> None:
        header = ENTRY.pack(offset // self._sector, length // self._sector, flags, 0)
        self._log.write_at(self._end, header.ljust(self._sector, b"\0"))
        self._end += self._sector
        if data is not None:
            self._log.write_at(self._end, data)
            self._end += len(data)
        self._entries += 1
        self._changed = True
        if self._interval and self._entries % self._interval == 0:
            self._write_super()

    def _write_super(self) -> None:
        content = SUPER.pack(MAGIC, VERSION, self._entries, self._sector)
        self._log.write_at(0, content.ljust(self._sector, b"\0"))
        self._changed = False

    def release(self) -> None:
        """Count in the superblock what was logged since."""
        try:
            super().release()
        finally:
            if self._changed:
                self._write_super()
            self._log.release()


def _require_sector_size(size: int) -> None:
    if not MIN_SECTOR <= size < MAX_SECTOR or size & (size - 1):
        raise InvalidOption(f"Invalid log sector size {size}")
