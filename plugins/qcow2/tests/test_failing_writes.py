"""A write that fails once, anywhere, and what is written after it: the image is sound, at worst clusters leak."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.errors import ImageError
from diskwright.facts import Bitmap
from diskwright.node import SECTOR, Bytes, Node
from diskwright.testing import MemoryNode, open_node
from diskwright_qcow2 import refcount
from diskwright_qcow2.bitmap_ops import add_bitmap, bitmap_ranges, list_bitmaps
from diskwright_qcow2.check import check
from diskwright_qcow2.image import Qcow2Image

SIZE = 4 << 20
REFCOUNT_TABLE_FIELD = 48
"""Where the header says where the refcount table is; it is written by itself when that moves."""
IMAGES: dict[str, dict[str, Any]] = {
    "table moves": {"cluster_size": 512, "refcount_bits": 64},
    "default": {},
    "extended": {"cluster_size": 16384, "extended_l2": True},
    "version 2": {"cluster_size": 512, "compat": "0.10"},
}


class FailingNode(MemoryNode):
    """A file in memory of which one call fails, once.

    :param fails: number of the write or flush, from 0.
    :ivar calls: offsets of the writes, ``None`` for flushes.
    """

    def __init__(self, data: Bytes, fails: int) -> None:
        super().__init__(data, writable=True)
        self.fails = fails
        self.calls: list[int | None] = []

    def _call(self, offset: int | None) -> None:
        self.calls.append(offset)
        if len(self.calls) == self.fails + 1:
            raise OSError(28, "No space left on device")

    def write_at(self, offset: int, data: Bytes) -> None:
        self._call(offset)
        super().write_at(offset, data)

    def flush(self) -> None:
        self._call(None)


def opened(node: Node, *, writable: bool = False) -> Qcow2Image:
    image = open_node(node, "qcow2", writable=writable)
    assert isinstance(image, Qcow2Image)
    return image


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that blocks are written to make room for others."""
    monkeypatch.setattr(refcount, "CACHE_BYTES", 0)


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("options", IMAGES)
def test_one_failure_anywhere(tmp_path: Path, options: str) -> None:
    diskwright.create(tmp_path / "image", "qcow2", SIZE, **IMAGES[options])
    empty = (tmp_path / "image").read_bytes()
    chance = random.Random(3)
    writes = [(offset, chance.randbytes(150 << 10)) for offset in range(1000, SIZE - (150 << 10), 200 << 10)]
    node = FailingNode(empty, -1)
    carry_out(node, writes, [])
    calls = len(node.calls)
    moves = [number for number, offset in enumerate(node.calls) if offset == REFCOUNT_TABLE_FIELD]
    assert bool(moves) == (options == "table moves")
    failing = {number for move in moves for number in range(move - 5, move + 5)}
    for fails in sorted(failing.union(chance.sample(range(calls), min(calls, 40)))):
        node = FailingNode(empty, fails)
        done: list[bool] = []
        carry_out(node, writes, done)
        assert len(node.calls) > fails
        after = opened(MemoryNode(node.data), writable=False)
        found = check(after)
        assert not found.corruptions, (fails, found.findings[:3])
        assert not found.leaks, (fails, node.calls[fails - 3 : fails + 3], found.findings[:3])
        for (offset, data), whole in zip(writes, done, strict=True):
            got = after.read_at(offset, len(data))
            for start in range(0, len(data), SECTOR):
                part = got[start : start + SECTOR]
                assert part == data[start : start + SECTOR] or (not whole and not any(part)), (fails, offset + start)


def test_what_was_not_written_is_not_counted_when_no_table_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diskwright.create(tmp_path / "image", "qcow2", SIZE)
    node = MemoryNode((tmp_path / "image").read_bytes(), writable=True)
    image = opened(node, writable=True)
    image.allocate(1 << 20, 1 << 20)
    image.write_at(0, b"x")

    def full() -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image.writer.order, "_write_l2", full)
    assert not attempt(image.close)
    found = check(opened(MemoryNode(node.data), writable=False))
    assert (found.corruptions, found.leaks) == (0, 2)  # the table, and the cluster that it was to refer to


def store(image: Qcow2Image) -> None:
    image.write_at(0, b"2" * (3 << 20))


def zero(image: Qcow2Image) -> None:
    image.write_zeroes(0, 3 << 20, unmap=False)


def compress(image: Qcow2Image) -> None:
    size = image.header.cluster_size
    blob = image.compress(memoryview(b"2" * size))
    assert blob is not None
    image.write_compressed([(offset, blob) for offset in range(0, 3 << 20, size)])


@pytest.mark.parametrize("change", [store, zero, compress])
@pytest.mark.parametrize("options", ["default", "table moves", "extended"])
def test_bitmaps_have_what_a_failing_command_has_changed(
    tmp_path: Path, options: str, change: Callable[[Qcow2Image], None]
) -> None:
    diskwright.create(tmp_path / "image", "qcow2", SIZE, **IMAGES[options])
    with diskwright.open(tmp_path / "image", "qcow2", writable=True) as found:
        assert isinstance(found, Qcow2Image)
        found.write_at(0, b"1" * (1 << 20))
        add_bitmap(found, Bitmap("b", 65536, enabled=True))
    start = (tmp_path / "image").read_bytes()
    node = FailingNode(start, -1)
    with opened(node, writable=True) as image:
        change(image)
    for fails in range(0, len(node.calls), max(1, len(node.calls) // 20)):
        node = FailingNode(start, fails)
        image = opened(node, writable=True)
        attempt(lambda image=image: change(image))  # type: ignore[misc]
        attempt(image.close)
        after = opened(MemoryNode(node.data), writable=False)
        bitmap = next(bitmap for bitmap in list_bitmaps(after) if bitmap.name == "b")
        changed = after.read_at(0, 1 << 20) != b"1" * (1 << 20)
        assert not changed or bitmap.inconsistent or list(bitmap_ranges(after, "b")), fails


def carry_out(node: FailingNode, writes: list[tuple[int, bytes]], done: list[bool]) -> None:
    """Write everything whatever fails, with a flush now and then.

    :param done: which of the writes have succeeded.
    """
    image = opened(node, writable=True)
    for number, (offset, data) in enumerate(writes):
        done.append(attempt(lambda offset=offset, data=data: image.write_at(offset, data)))  # type: ignore[misc]
        if number % 4 == 3:
            attempt(image.flush)
    if not attempt(image.flush):
        image.flush()
    attempt(image.close)


def attempt(action: Callable[[], object]) -> bool:
    try:
        action()
    except (ImageError, OSError) as error:
        assert "No space left" in str(error)  # noqa: PT017 - it may as well succeed
        return False
    return True
