"""Block maps: read in windows, changed in memory, written where changed."""

from collections.abc import Iterator

import numpy as np
import pytest

from diskwright import blocks
from diskwright.blocks import BlockMap, repeated
from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidImage
from diskwright.extent import distinct
from diskwright.testing import MemoryNode, RecordingNode

OFFSET, COUNT = 12, 50


def stored(dtype: str) -> bytes:
    return bytes(OFFSET) + np.arange(COUNT).astype(dtype).tobytes()


def block_map(node: MemoryNode, dtype: str = "<u4") -> BlockMap:
    return BlockMap(BoundedReader(node, "test"), dtype, OFFSET, COUNT)


def listed(windows: Iterator[tuple[int, np.ndarray]]) -> list[tuple[int, list[int]]]:
    return [(first, entries.tolist()) for first, entries in windows]


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "WINDOW", 8)


@pytest.mark.parametrize("dtype", ["<u4", ">u4", "<u8"])
def test_windows_have_what_is_on_disk_and_what_is_changed(dtype: str) -> None:
    node = MemoryNode(stored(dtype), writable=True)
    table = block_map(node, dtype)
    assert listed(table.windows(3, 14)) == [(3, [3, 4, 5, 6, 7, 8, 9, 10]), (11, [11, 12, 13])]
    table.change(13, 1000)
    table.change(14, 2000)
    assert listed(table.windows(11, 14)) == [(11, [11, 12, 1000])]
    assert node.data == stored(dtype)
    table.write(node)
    assert table.changed == 0
    assert listed(block_map(node, dtype).windows(12, 16)) == [(12, [12, 1000, 2000, 15])]


def test_neighbours_are_written_at_once_and_nothing_else_is() -> None:
    node = RecordingNode(stored("<u4"))
    table = block_map(node)
    for number in (9, 30, 8, 10, 49, 9):
        table.change(number, 100 + number)
    assert table.changed == 5
    table.write(node)
    wanted = [(8, [108, 109, 110]), (30, [130]), (49, [149])]
    assert node.steps == [(OFFSET + 4 * n, np.array(entries, "<u4").tobytes()) for n, entries in wanted]


def test_a_reader_sees_a_change_that_is_written_while_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    node = MemoryNode(stored("<u4"), writable=True)
    reader = BoundedReader(node, "test")
    table = BlockMap(reader, "<u4", OFFSET, COUNT)
    table.change(1, 1000)
    read = BoundedReader.table

    def slow_table(*args: object, **limits: object) -> object:
        entries = read(*args, **limits)  # type: ignore[arg-type]
        if table.changed:
            table.write(node)
        return entries

    monkeypatch.setattr(BoundedReader, "table", slow_table)
    assert listed(table.windows(0, 3)) == [(0, [0, 1000, 2])]


def test_what_could_not_be_written_goes_on_to_wait() -> None:
    class Full(MemoryNode):
        def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            raise OSError(28, "No space left on device")

    table = block_map(Full(stored("<u4"), writable=True))
    table.change(1, 1000)
    with pytest.raises(OSError, match="No space left"):
        table.write(Full(b"", writable=True))
    assert table.changed == 1
    assert listed(table.windows(1, 2)) == [(1, [1000])]


def test_file_that_has_become_shorter() -> None:
    node = MemoryNode(stored("<u4"), writable=True)
    del node.data[-1:]
    with pytest.raises(InvalidImage, match="block map at offset 204, 8 bytes, is outside the file of 211 bytes"):
        listed(block_map(node).windows(48, 50))


def test_repeated_in_one_window_and_in_another() -> None:
    seen = np.zeros(5, bool)
    entries = np.array([4, 1, 4, 0xFFFFFFFF, 4, 2], np.uint32)
    assert repeated(entries, entries < 5, seen).tolist() == [False, False, True, False, True, False]
    assert seen.tolist() == [False, True, True, False, True]
    assert repeated(entries[1:2], np.array([True]), seen).tolist() == [True]
    assert repeated(entries[:0], np.array([], bool), seen).tolist() == []


def test_distinct_values() -> None:
    values = np.random.default_rng(1).integers(0, 50, 300)
    assert distinct(values).tolist() == sorted(set(values.tolist()))
    assert distinct(values[:1]).tolist() == values[:1].tolist()
    assert not len(distinct(values[:0]))
