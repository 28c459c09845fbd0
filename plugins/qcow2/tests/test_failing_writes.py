"""A write that fails once, anywhere, and what is written after it: the image is sound, at worst clusters leak."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.errors import ImageError
from diskwright.hookspecs import OpenOptions
from diskwright.node import SECTOR, Bytes, Node
from diskwright.testing import MemoryNode
from diskwright_qcow2 import refcount
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


def opened(node: Node, *, writable: bool) -> Qcow2Image:
    def no_child(name: str, role: str) -> Node:
        raise AssertionError(name)

    image = Qcow2Image(node, OpenOptions("disk", writable, False, {}, no_child))
    image.bind("qcow2", lambda image, offset, length: image.map_range(offset, length))  # type: ignore[attr-defined]
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
