"""Maps through several layers, against a model that looks at every sector by itself."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from diskwright.engine.chain import layers, read_extents, resolve
from diskwright.extent import Extent, ExtentTable, Flag, Kind, tabulate
from diskwright.node import Buffer, Image, Node

UNIT = 512


class Memory(Node):
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        part = self.content[offset : offset + len(buffer)]
        buffer[:] = part + bytes(len(buffer) - len(part))


class Layer(Image):
    """An image whose kind and content are random for each sector."""

    def __init__(self, seed: int, sectors: int, backing: Image | None = None) -> None:
        random_bytes = random.Random(seed)
        self.file = Memory(random_bytes.randbytes(sectors * UNIT))
        self.kinds = [random_bytes.choice(list(Kind)) for _ in range(sectors)]
        self.backing = backing
        self.bind("layer", lambda image, offset, length: self.map(offset, length))

    @property
    def size(self) -> int:
        return self.file.size

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(byte ^ 0x55 for byte in self.file.read_at(offset, len(buffer)))

    def map(self, offset: int, length: int) -> Iterator[Extent | ExtentTable]:
        position, end = offset, offset + length
        while position < end:
            kind = self.kinds[position // UNIT]
            stop = min(end, (position // UNIT + 1) * UNIT)
            placed = kind is Kind.DATA
            extent = Extent(
                position, stop - position, kind, self.file if placed else None, position if placed else None
            )
            # Both forms are allowed, so both come.
            if position // UNIT % 3:
                yield extent
            else:
                yield from tabulate([extent])
            position = stop

    def expected(self, position: int) -> tuple[Kind, int, int]:
        """Kind, depth and byte at an offset, seen from this layer."""
        layer: Layer = self
        depth = 0
        while layer.kinds[position // UNIT] is Kind.ABSENT and isinstance(layer.backing, Layer):
            layer, depth = layer.backing, depth + 1
            if position >= layer.size:
                return Kind.ZERO, depth, 0
        kind = layer.kinds[position // UNIT]
        byte = layer.file.read_at(position, 1)[0]
        return kind, depth, {Kind.DATA: byte, Kind.ENCODED: byte ^ 0x55}.get(kind, 0)


def chain_of(seed: int, *sectors: int) -> Layer:
    """Layers of the given sizes, the first one on top."""
    image: Layer | None = None
    for index, count in enumerate(reversed(sectors)):
        image = Layer(seed * 100 + index, count, image)
    assert image is not None
    return image


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("sectors", [(9,), (12, 12), (20, 7, 30), (15, 40, 3, 25, 16)])
def test_resolved_maps_and_reads_agree_with_the_model(seed: int, sectors: tuple[int, ...]) -> None:
    image = chain_of(seed, *sectors)
    start = random.Random(seed).randrange(image.size - 1)
    length = image.size - start - seed % 2
    position = start
    for table in resolve(image, start, length):
        buffer = bytearray(table.end - table.start)
        read_extents(layers(image), list(table), memoryview(buffer))
        for extent in table:
            assert extent.offset == position
            for at in range(extent.offset, extent.end, 101):
                kind, depth, byte = image.expected(at)
                assert (extent.kind, extent.depth) == (kind, depth)
                assert buffer[at - table.start] == byte
            position = extent.end
    assert position == start + length
    whole = image.read_at(start, length)
    assert whole == bytes(image.expected(at)[2] for at in range(start, start + length))


def test_a_chain_longer_than_the_stack_is_mapped_and_read() -> None:
    image: Layer | None = None
    for _ in range(1500):
        image = Layer(0, 1, image)
        image.kinds = [Kind.ABSENT if image.backing else Kind.DATA]
    assert image is not None
    (table,) = resolve(image)
    assert [(extent.kind, extent.depth) for extent in table] == [(Kind.DATA, 1499)]
    assert len(image.read_at(0, UNIT)) == UNIT
    image.close()


def test_only_as_many_layers_are_looked_at_as_asked_for() -> None:
    image = chain_of(3, 8, 8)
    found = [extent for table in resolve(image, depth_limit=1) for extent in table]
    assert {extent.depth for extent in found} == {0}
    assert sum(extent.length for extent in found if extent.kind is Kind.ABSENT) == image.kinds.count(Kind.ABSENT) * UNIT


def test_holes_of_the_file_show_through_sparse_data() -> None:
    class Holed(Memory):
        def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent | ExtentTable]:
            end = offset + (length or 0)
            for start, stop, kind in ((0, 1000, Kind.DATA), (1000, 3000, Kind.ZERO), (3000, 9999, Kind.DATA)):
                first, last = max(start, offset), min(stop, end)
                if first < last:
                    yield Extent(first, last - first, kind, self, first)

    file = Holed(bytes(9999))
    image = Layer(1, 8)
    sparse = Extent(0, 4096, Kind.DATA, file, 500, Flag.SPARSE)
    image.bind("layer", lambda *_: [sparse])
    found = [extent for table in resolve(image) for extent in table]
    assert [(e.offset, e.length, e.kind, e.node_offset) for e in found] == [
        (0, 500, Kind.DATA, 500),
        (500, 2000, Kind.ZERO, 1000),
        (2500, 1596, Kind.DATA, 3000),
    ]
    assert [extent for table in resolve(image, holes=False) for extent in table] == [sparse]


def test_clipping_cuts_rows_and_moves_their_place() -> None:
    file = Memory(bytes(4096))
    (table,) = tabulate([Extent(0, 1000, Kind.DATA, file, 2000), Extent(1000, 500, Kind.ZERO)])
    assert list(table.clipped(100, 200)) == [Extent(100, 100, Kind.DATA, file, 2100)]
    assert list(table.clipped(900, 1100)) == [Extent(900, 100, Kind.DATA, file, 2900), Extent(1000, 100, Kind.ZERO)]
    assert not len(table.clipped(1500, 1600))
