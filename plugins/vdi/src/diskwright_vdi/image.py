"""An open VDI image: map, read, write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diskwright.bounded import BoundedReader
from diskwright.extent import NO_OFFSET, ExtentTable, Flag, Kind, tabulate_blocks
from diskwright.hookspecs import OpenOptions
from diskwright.node import Node, Placement, Writable, WritableImage

from .blockmap import BlockMap
from .layout import ALLOCATED_OFFSET, BLOCK_SIZE, FIRST_SPECIAL, Header


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
        self.header = Header.read(self.reader)
        self.block_map = BlockMap(self.reader, self.header.offset_bmap, self.header.blocks)
        self._next_block: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.header.disk_size

    def new_reads_zero(self) -> bool:
        """Blocks without a place do, others read what the file has there."""
        return not self.header.static or self.file.new_reads_zero()

    def map(self, offset: int, length: int) -> Iterator[ExtentTable]:
        """The extents of a guest range; see ``block_status``."""
        import numpy as np

        end = offset + length
        flags = Flag.SPARSE if self.header.static else Flag(0)
        for first, entries in self.block_map.runs(offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)):
            placed = entries < FIRST_SPECIAL
            places = np.where(placed, entries * np.int64(BLOCK_SIZE) + self.header.offset_data, NO_OFFSET)
            kinds = np.where(placed, Kind.DATA, Kind.ZERO)
            table = tabulate_blocks(first * BLOCK_SIZE, BLOCK_SIZE, kinds, self.file, places, placed * flags)
            table = table.clipped(offset, end)
            self._require_inside(table)
            yield table

    def _require_inside(self, table: ExtentTable) -> None:
        """Refuse blocks behind the end of the file: they would read as zeros, which is not what was written there."""
        import numpy as np

        rows = table.rows
        outside = np.flatnonzero((rows["kind"] == Kind.DATA) & (rows["node_offset"] + rows["length"] > self.file.size))
        if len(outside):
            row = rows[outside[0]]
            self.reader.require(int(row["node_offset"]), int(row["length"]), "block")

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Blocks with a place keep it, the others get the next places in the file."""
        placements: list[Placement] = []
        end = offset + length
        for first, entries in self.block_map.runs(offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)):
            for number, entry in enumerate(entries.tolist(), first):
                is_new = entry >= FIRST_SPECIAL
                place = self.header.offset_data + BLOCK_SIZE * (self._take_block() if is_new else entry)
                block = number * BLOCK_SIZE
                head, tail = max(0, offset - block), max(0, block + BLOCK_SIZE - end)
                around = {"head": head, "tail": tail} if is_new else {}
                part = Placement(block + head, BLOCK_SIZE - head - tail, self.file, place + head, **around)
                _append(placements, part)
        return placements

    def _take_block(self) -> int:
        if self._next_block is None:
            # Not the header's count alone: after a crash there may be a block more than it says.
            self._next_block = max(self.header.blocks_allocated, self._blocks_in_use())
        if self._next_block >= self.header.blocks:
            raise self.reader.error(f"all of the {self.header.blocks} blocks are in use")
        self._next_block += 1
        return self._next_block - 1

    def _blocks_in_use(self) -> int:
        import numpy as np

        runs = self.block_map.runs(0, self.header.blocks)
        return max((int(np.where(run < FIRST_SPECIAL, run + 1, 0).max()) for _, run in runs), default=0)

    def link(self, placements: Sequence[Placement]) -> None:
        """Enter new places into the map in memory."""
        import numpy as np

        for placement in placements:
            first = placement.offset // BLOCK_SIZE
            count = -(-(placement.offset + placement.length) // BLOCK_SIZE) - first
            place = (placement.node_offset - self.header.offset_data) // BLOCK_SIZE
            if self.block_map.replace(first, np.arange(place, place + count, dtype=np.uint32)):
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
                self.flush()
        finally:
            super().release()


def _append(placements: list[Placement], part: Placement) -> None:
    """Add a placement, or make the last one longer if the new one continues it in the file too."""
    last = placements[-1] if placements else None
    if last is None or last.node_offset + last.length != part.node_offset:
        placements.append(part)
        return
    placements[-1] = Placement(
        last.offset, last.length + part.length, last.node, last.node_offset, head=last.head, tail=part.tail
    )
