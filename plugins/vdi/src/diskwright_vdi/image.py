"""An open VDI image: map, read, write, check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diskwright.blocks import MAX_CHANGED, BlockMap, repeated
from diskwright.bounded import BoundedReader
from diskwright.extent import NO_OFFSET, ExtentTable, Flag, Kind, tabulate_blocks
from diskwright.facts import CheckResult, Finding, Limits, Severity
from diskwright.hookspecs import OpenOptions
from diskwright.node import Node, Placement, Writable, WritableImage
from diskwright.zeroing import make_zeros

from .layout import ALLOCATED_OFFSET, BLOCK_SIZE, DYNAMIC, FIRST_SPECIAL, SECTOR_SIZE, STATIC, read_header


class VdiImage(WritableImage):
    """A disk whose blocks stand in the file in any order.

    A block that is written first gets the place behind the last one. What changed of the map waits in memory until
    ``flush``, which writes it behind the data it points to and before the header that counts the blocks: a crash leaves
    at worst blocks in the file that nothing refers to.
    """

    cluster_size = BLOCK_SIZE

    def __init__(self, source: Node, options: OpenOptions) -> None:
        super().__init__()
        self.file = source
        self.filename = options.filename
        self.read_only = not options.writable
        self.reader = BoundedReader(source, "VDI")
        self.header = read_header(self.reader)
        self.static = self.header.image_type == STATIC
        self.block_map = BlockMap(self.reader, "<u4", self.header.offset_bmap, self.header.blocks_in_image)
        self._next_block: int | None = None
        self._unlinked: dict[int, int] = {}
        """Blocks that were handed out, by the number of the guest's block, and that are not in the map yet."""

    @property
    def size(self) -> int:
        """Bytes, rounded up to sectors: VirtualBox writes sizes that are no whole ones."""
        return -(-int(self.header.disk_size) // SECTOR_SIZE) * SECTOR_SIZE

    def new_reads_zero(self) -> bool:
        """Blocks without a place do, others read what the file has there."""
        return not self.static or self.file.new_reads_zero()

    def map(self, offset: int, length: int) -> Iterator[ExtentTable]:
        """The extents of a guest range; see ``block_status``."""
        import numpy as np

        end = offset + length
        flags = Flag.SPARSE if self.static else Flag(0)
        for first, entries in self.block_map.windows(offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)):
            placed = entries < FIRST_SPECIAL
            places = np.where(placed, entries * np.int64(BLOCK_SIZE) + self.header.offset_data, NO_OFFSET)
            kinds = np.where(placed, Kind.DATA, Kind.ZERO)
            table = tabulate_blocks(first * BLOCK_SIZE, BLOCK_SIZE, kinds, self.file, places, placed * flags)
            table = table.clipped(offset, end)
            rows = table.rows[table.rows["kind"] == Kind.DATA]
            # Behind the end of the file they would read as zeros, which is not what was written there.
            for row in rows[rows["node_offset"] + rows["length"] > self.file.size]:
                self.reader.require(int(row["node_offset"]), int(row["length"]), "block")
            yield table

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Blocks with a place keep it, the others get the next places in the file; a placement for each block."""
        placements = []
        end = offset + length
        for first, entries in self.block_map.windows(offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)):
            for number, entry in enumerate(entries.tolist(), first):
                start = max(offset, number * BLOCK_SIZE)
                count = min(end, (number + 1) * BLOCK_SIZE) - start
                head = start % BLOCK_SIZE
                is_new = entry >= FIRST_SPECIAL
                if is_new and number not in self._unlinked:
                    self._unlinked[number] = self._take_block()
                block = self._unlinked[number] if is_new else entry
                place = self.header.offset_data + BLOCK_SIZE * block + head
                around = (head, BLOCK_SIZE - head - count) if is_new else (0, 0)
                placements.append(Placement(start, count, self.file, place, *around))
        return placements

    def _take_block(self) -> int:
        import numpy as np

        blocks = self.block_map.count
        if self._next_block is None:
            # Not the header's count alone: after a crash there may be a block more than it says.
            behind = self.header.blocks_allocated
            for _, entries in self.block_map.windows(0, blocks):
                behind = max(behind, int(np.max(entries + np.int64(1), where=entries < FIRST_SPECIAL, initial=0)))
            self._next_block = behind
        if self._next_block >= blocks:
            raise self.reader.error(f"all of the {blocks} blocks are in use")
        self._next_block += 1
        return self._next_block - 1

    def link(self, placements: Sequence[Placement]) -> None:
        """Enter new places into the map in memory."""
        for placement in placements:
            number = placement.offset // BLOCK_SIZE
            self.block_map.change(number, (placement.node_offset - self.header.offset_data) // BLOCK_SIZE)
            self._unlinked.pop(number, None)
        if self.block_map.changed >= MAX_CHANGED:
            self.flush()

    def flush(self) -> None:
        """Write data, then the map, then the number of blocks, each one safe before the next."""
        with self.lock:
            if self.block_map.changed and isinstance(self.file, Writable):
                self.file.flush()
                self.block_map.write(self.file)
                if self._next_block is not None:
                    self.file.flush()
                    self.file.write_at(ALLOCATED_OFFSET, self._next_block.to_bytes(4, "little"))
            self.file.flush()

    def release(self) -> None:
        """Write what is left to write, and close."""
        try:
            if not self.read_only:
                try:
                    self._link_zeros()
                finally:
                    self.flush()
        finally:
            super().release()

    def _link_zeros(self) -> None:
        """Let blocks that were to be written and were not be zeros, as which they read anyhow.

        There must be none in the file that the map does not name.
        """
        for number, block in self._unlinked.items():
            make_zeros(self.file, self.header.offset_data + BLOCK_SIZE * block, BLOCK_SIZE, unmap=True)
            self.block_map.change(number, block)
        self._unlinked.clear()

    def check(self) -> CheckResult:
        """Find blocks in use twice, outside of the disk or of the file, and a wrong number of blocks in the header.

        Wording as qemu ``block/vdi.c``, ``vdi_co_check``, and so what counts as corrupt.
        """
        import numpy as np

        result, allocated, blocks = CheckResult(), 0, self.block_map.count
        in_file = max(0, -(-(self.file.size - self.header.offset_data) // BLOCK_SIZE))
        seen = np.zeros(min(blocks, in_file), bool)
        for start, entries in self.block_map.windows(0, blocks):
            placed = entries < FIRST_SPECIAL
            valid = placed & (entries < blocks)
            inside = valid & (entries < len(seen))
            for which, line in (
                (placed & ~valid, "ERROR: block index {0} too large, is {1}"),
                (valid & ~inside, "ERROR: block index {0} is behind the end of the file, is {1}"),
                (repeated(entries, inside, seen), "ERROR: block index {1} also used by {1}"),
            ):
                numbers = np.flatnonzero(which)
                for number in numbers[: result.MAX_FINDINGS - len(result.findings)].tolist():
                    result.note(line.format(start + number, entries[number]))
                result.corruptions += len(numbers)
            allocated += int(np.count_nonzero(valid))
        if allocated != self.header.blocks_allocated:
            result.error(f"ERROR: allocated blocks mismatch, is {allocated}, should be {self.header.blocks_allocated}")
        return result

    def own_limits(self) -> Limits:
        """Whole sectors."""
        return Limits(SECTOR_SIZE)

    def findings(self) -> Iterator[Finding]:
        """What is odd about an image from a stranger."""
        import numpy as np

        behind = BLOCK_SIZE * self.header.blocks_allocated
        for _, entries in self.block_map.windows(0, self.block_map.count):
            placed = entries < FIRST_SPECIAL
            behind = max(behind, BLOCK_SIZE * int(np.max(entries + np.int64(1), where=placed, initial=0)))
        end = self.header.offset_data + behind
        if self.file.size > end:
            message = f"{self.file.size - end} bytes stand behind the end of the image, at {end}"
            yield Finding(Severity.WARNING, "trailing-data", message)
        if self.header.image_type not in (DYNAMIC, STATIC):
            yield Finding(Severity.WARNING, "unknown-type", f"the type of the image is {self.header.image_type}")
        if self.header.image_flags:
            yield Finding(Severity.WARNING, "unknown-features", f"unknown flags: {self.header.image_flags:#x}")
