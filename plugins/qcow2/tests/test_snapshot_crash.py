"""Snapshots and crashes: after each write, and with any of those lost that nothing made durable, all is sound."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import default_context
from diskwright.errors import NodeIOError
from diskwright.node import Bytes, Node
from diskwright.testing import MemoryNode, RecordingNode, open_node
from diskwright_qcow2.check import check
from diskwright_qcow2.image import Qcow2Image

SIZE = 1 << 20
KINDS = [
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=64",
    "compat=0.10,cluster_size=512",
    "extended_l2=on,cluster_size=16k",
]


def opened(node: Node, *, writable: bool = False) -> Qcow2Image:
    image = open_node(node, "qcow2", writable=writable)
    assert isinstance(image, Qcow2Image)
    return image


def call(hook: str, image: object, **arguments: Any) -> Any:
    return default_context().formats.call(hook, "qcow2", image=image, **arguments)


def contents(node: Node) -> tuple[bytes, dict[str, bytes]]:
    """The disk, and what it was at each snapshot."""
    image = opened(node, writable=False)
    kept = {}
    for snapshot in call("snapshot_list", image):
        kept[snapshot.name] = call("snapshot_view", image, snapshot=snapshot).read_at(0, SIZE)
    return image.read_at(0, image.size), kept


def prepared(path: Path, qemu_img: Callable[..., str], options: str) -> bytes:
    """An image with two snapshots and a disk that differs from both, with some clusters compressed."""
    rng = random.Random(2)
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    node = MemoryNode(path.read_bytes(), writable=True)
    image = opened(node, writable=True)
    size = image.header.cluster_size
    for name in ("one", "two", ""):
        image.write_at(rng.randrange(SIZE // 2), rng.randbytes(SIZE // 5))
        blob = image.compress(memoryview(b"text" * (size // 4)))
        assert blob is not None
        image.write_compressed([(rng.randrange(SIZE // size) * size, blob)])
        if name:
            call("snapshot_create", image, name=name)
    image.save()
    return bytes(node.data)


def change(image: Qcow2Image, hook: str) -> None:
    listed = call("snapshot_list", image)
    call(hook, image, **({"name": "new"} if hook == "snapshot_create" else {"snapshot": listed[0]}))


@pytest.mark.parametrize("hook", ["snapshot_create", "snapshot_apply", "snapshot_delete"])
@pytest.mark.parametrize("options", KINDS)
def test_every_crash_leaves_the_old_or_the_new(
    tmp_path: Path, qemu_img: Callable[..., str], options: str, hook: str
) -> None:
    """Before the one write that switches, all is as it was; after it, all is new; never is anything leaked."""
    path = tmp_path / "disk.qcow2"
    node = RecordingNode(prepared(path, qemu_img, options))
    before = contents(node)
    image = opened(node, writable=True)
    change(image, hook)
    after = contents(node)
    assert before != after
    chance = random.Random(1)
    switched = False
    for count in range(len(node.steps) + 1):
        for crashed in (node.after(count), node.after_power_cut(count, chance)):
            result = check(opened(crashed, writable=False))
            assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0), (count, result.findings)
        found = contents(node.after(count))
        assert found in ((after,) if switched else (before, after)), count
        switched = found == after
    assert switched
    for count in {0, len(node.steps) // 2, *range(len(node.steps) - 2, len(node.steps) + 1)}:
        path.write_bytes(node.after(count).data)
        qemu_img("check", path)


class FullNode(MemoryNode):
    """A file that has no room from some write on."""

    left = 0

    def write_at(self, offset: int, data: Bytes) -> None:
        if not self.left:
            raise NodeIOError("", OSError(28, "No space left on device"))
        self.left -= 1
        super().write_at(offset, data)


@pytest.mark.parametrize("hook", ["snapshot_create", "snapshot_apply", "snapshot_delete"])
def test_no_space_is_no_harm(tmp_path: Path, qemu_img: Callable[..., str], hook: str) -> None:
    """Whichever write fails, the image, also the one that is open, is as before and can be changed later."""
    start = prepared(tmp_path / "disk.qcow2", qemu_img, "cluster_size=4k")
    before = contents(MemoryNode(start))
    for room in range(100):
        node = FullNode(start, writable=True)
        node.left = room
        image = opened(node, writable=True)
        with suppress(NodeIOError):
            change(image, hook)
            assert room > 3
            return
        assert contents(node) == before
        assert image.read_at(0, SIZE) == before[0]
        node.left = 1000
        change(image, hook)
        assert contents(node) != before
        assert check(opened(node, writable=False)).corruptions == 0
    pytest.fail("it never succeeds")
