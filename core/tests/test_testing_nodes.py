"""Nodes in memory behave as files do."""

import random

import pytest

from diskwright.testing import MemoryNode, RecordingNode


def test_memory_node_reads_zeros_behind_its_end() -> None:
    node = MemoryNode(b"abc")
    assert node.read_at(1, 4) == b"bc\0\0"
    assert node.read_at(9, 1) == b"\0"


def test_memory_node_grows() -> None:
    node = MemoryNode(writable=True)
    node.write_at(3, b"x")
    assert node.data == b"\0\0\0x"
    node.truncate(6)
    assert node.data == b"\0\0\0x\0\0"
    node.truncate(1)
    assert node.size == 1


def test_memory_node_for_reading_is_not_written() -> None:
    with pytest.raises(AssertionError, match="opened for reading"):
        MemoryNode(b"abc").write_at(0, b"x")
    with pytest.raises(AssertionError, match="opened for reading"):
        MemoryNode(b"abc").truncate(0)


def test_recording_node_goes_back_to_any_point() -> None:
    node = RecordingNode(b"abc")
    node.write_at(1, b"X")
    node.truncate(2)
    node.write_at(4, b"Y")
    assert [bytes(node.after(count).data) for count in range(4)] == [b"abc", b"aXc", b"aX", b"aX\0\0Y"]
    assert node.data == node.after(3).data


def test_a_power_cut_takes_only_what_was_not_flushed() -> None:
    node = RecordingNode(bytes(4))
    node.write_at(0, b"A")
    node.flush()
    node.write_at(1, b"B")
    node.write_at(2, b"C")
    chance = random.Random(0)
    left = {bytes(node.after_power_cut(3, chance).data) for _ in range(100)}
    assert left == {b"A\0\0\0", b"AB\0\0", b"A\0C\0", b"ABC\0"}
    before_the_flush = {bytes(node.after_power_cut(1, chance).data) for _ in range(100)}
    assert before_the_flush == {bytes(4), b"A\0\0\0"}
