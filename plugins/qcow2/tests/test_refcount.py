"""Refcounts of every width, and the search for free clusters."""

from __future__ import annotations

import numpy as np
import pytest

from diskwright.errors import InvalidImage
from diskwright.hookspecs import OpenOptions
from diskwright.node import Buffer, Bytes, Node
from diskwright_qcow2.allocate import ClusterAllocator, Run
from diskwright_qcow2.create import create
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.refcount import RefcountBlocks, pack_refcounts, unpack_refcounts


class File(Node):
    """A writable file in memory."""

    read_only = False

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)].ljust(len(buffer), b"\0")

    def write_at(self, offset: int, data: Bytes) -> None:
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data


def fresh(**values: object) -> tuple[File, RefcountBlocks]:
    """A new image, and its refcounts."""
    from diskwright.hookspecs import CreateOptions

    def no_child(*args: object) -> Node:
        raise AssertionError(args)

    file = File()
    create(file, CreateOptions("disk", 1 << 20, values, no_child))
    image = Qcow2Image(file, OpenOptions("disk", True, False, {}, no_child))
    return file, RefcountBlocks(image.header, image.reader, file.write_at)


@pytest.mark.parametrize("order", range(7))
def test_packing(order: int) -> None:
    width = 1 << order
    rng = np.random.default_rng(order)
    stored = rng.bytes(4096)
    counts = unpack_refcounts(stored, order)
    assert len(counts) == 4096 * 8 // width
    if width >= 8:
        expected = [int.from_bytes(stored[i : i + width // 8], "big") for i in range(0, 80 * width // 8, width // 8)]
    else:
        bits = int.from_bytes(stored, "little")
        expected = [bits >> (i * width) & ((1 << width) - 1) for i in range(80)]
    assert counts[:80].tolist() == expected
    assert pack_refcounts(counts, order) == stored


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
def test_counts_survive_being_written(bits: int) -> None:
    file, blocks = fresh(refcount_bits=bits, cluster_size=512)
    allocator = ClusterAllocator(blocks, lambda run: None)
    first = allocator.take_contiguous(5).first
    if bits > 1:
        blocks.add(first, 3)
    blocks.write_blocks()
    blocks.write_table()
    again = Qcow2Image(file, OpenOptions("disk", False, False, {}, lambda name, role: file))
    stored = RefcountBlocks(again.header, again.reader, file.write_at)
    expected = [2, 2, 2, 1, 1] if bits > 1 else [1] * 5
    assert [stored.count(first + i) for i in range(5)] == expected


def test_overflow_and_underflow_are_refused() -> None:
    _, blocks = fresh(refcount_bits=2)
    blocks.add(3, 1)
    blocks.add(3, 1)
    with pytest.raises(InvalidImage, match="exceed 3"):
        blocks.add(2, 2)
    with pytest.raises(InvalidImage, match="fewer references"):
        blocks.subtract(np.array([0, 0]))


def test_subtract_tells_the_lowest_free_cluster() -> None:
    _, blocks = fresh()
    allocator = ClusterAllocator(blocks, lambda run: None)
    run = allocator.take(10)
    assert blocks.subtract(np.array([run.first + 7, run.first + 4])) == run.first + 4
    allocator.freed(run.first + 4)
    assert allocator.take(5) == Run(run.first + 4, 1)
    assert allocator.take(1) == Run(run.first + 7, 1)
    assert allocator.take_contiguous(2).first == run.end


def test_contiguous_clusters_span_blocks() -> None:
    """A 64-bit block of 512 bytes covers 64 clusters: a run of 1000 needs many blocks, none of them inside it."""
    _, blocks = fresh(refcount_bits=64, cluster_size=512)
    allocator = ClusterAllocator(blocks, lambda run: None)
    first = allocator.take_contiguous(1000).first
    assert all(blocks.count(first + i) == 1 for i in range(1000))
    assert not any(first <= int(offset) >> 9 < first + 1000 for offset in blocks.table if offset)
    assert len(blocks.table) >= (first + 1000) // 64


def test_a_million_clusters() -> None:
    """Allocation goes by array searches: this takes well under a second, and must not take minutes."""
    _, blocks = fresh(cluster_size=4096)
    allocator = ClusterAllocator(blocks, lambda run: None)
    taken = 0
    while taken < 1_000_000:
        taken += allocator.take(1_000_000 - taken).length
    assert taken == 1_000_000


@pytest.mark.parametrize("entry", [512, 1 << 40])
def test_bad_table_entries(entry: int) -> None:
    _, blocks = fresh()
    blocks.table[1] = entry
    with pytest.raises(InvalidImage):
        blocks.block(1)


def test_guard_is_asked() -> None:
    _, blocks = fresh()

    def guard(run: Run) -> None:
        raise InvalidImage(f"{run.first}")

    with pytest.raises(InvalidImage, match="4"):
        ClusterAllocator(blocks, guard).take(1)
