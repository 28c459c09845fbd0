"""Resizing, checked with the real tools: content, consistency, and what ``info`` says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.errors import ImageError, InvalidOption
from diskwright.hookspecs import OpenOptions
from diskwright.node import Node
from diskwright.testing import MemoryNode, RecordingNode
from diskwright_qcow2.check import check
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.resize import resize

MIB = 1 << 20
KINDS = {
    "default": "",
    "small clusters": "cluster_size=512",
    "4k": "cluster_size=4k,refcount_bits=1",
    "version 2": "compat=0.10,cluster_size=4k",
    "extended": "extended_l2=on,cluster_size=16k",
    "64 bits": "refcount_bits=64,cluster_size=1k",
}
STEPS = [3 * MIB + 512, 40 * MIB, MIB + 1536, 1536, 5 * MIB + 512]


def create(qemu_img: Callable[..., str], path: Path, options: str, *args: object) -> None:
    qemu_img("create", "-q", "-f", "qcow2", *(("-o", options) if options else ()), *args)


def resized(path: Path, size: int, preallocation: str = "off") -> None:
    with diskwright.open(path, "qcow2", writable=True) as image:
        default_context().formats.call("resize", "qcow2", image=image, size=size, preallocation=preallocation)


def described(qemu_img: Callable[..., str], path: Path) -> Any:
    info = json.loads(qemu_img("info", "--output=json", path))
    for key in ("filename", "actual-size", "children", "full-backing-filename"):
        info.pop(key, None)
    return info


def content(path: Path) -> bytes:
    with diskwright.open(path, "qcow2") as image:
        return image.read_at(0, image.size)


@pytest.mark.parametrize("kind", KINDS)
def test_grows_and_shrinks_like_the_real_one(tmp_path: Path, qemu_img: Any, pattern: Any, kind: str) -> None:
    ours, theirs, raw = tmp_path / "ours", tmp_path / "theirs", tmp_path / "raw"
    model = pattern(2 * MIB, 1)
    raw.write_bytes(model)
    options = ["-o", KINDS[kind]] if KINDS[kind] else []
    for path in (ours, theirs):
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, path)
    for size in STEPS:
        resized(ours, size)
        qemu_img("resize", "-q", "--shrink", theirs, str(size))
        model = model[:size].ljust(size, b"\0")
        raw.write_bytes(model)
        qemu_img("check", "-q", ours)
        qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw, ours)
        assert content(ours) == model
        assert described(qemu_img, ours) == described(qemu_img, theirs)
        assert ours.stat().st_size <= theirs.stat().st_size + 32 * 65536


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "version 2"])
def test_snapshots_survive(tmp_path: Path, qemu_img: Any, pattern: Any, kind: str) -> None:
    if "refcount_bits=1" in KINDS[kind]:
        pytest.skip("one bit has no room for snapshots")
    path, raw, old = tmp_path / "image", tmp_path / "raw", tmp_path / "old"
    raw.write_bytes(pattern(2 * MIB, 2))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *(("-o", KINDS[kind]) if KINDS[kind] else ()), raw, path)
    qemu_img("snapshot", "-c", "s", path)
    for size in STEPS:
        resized(path, size)
        qemu_img("check", "-q", path)
        qemu_img("convert", "-l", "s", "-O", "raw", path, old)
        found = old.read_bytes()[: 2 * MIB]  # the real tool shows as much of it as the disk is long now
        assert found == raw.read_bytes()[: len(found)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("former", [MIB, MIB + 5 * 512])
def test_grows_over_a_longer_backing_file(tmp_path: Path, qemu_img: Any, qemu_io: Any, kind: str, former: int) -> None:
    base, path, raw = tmp_path / "base", tmp_path / "image", tmp_path / "raw"
    below = random.Random(3).randbytes(3 * MIB)
    raw.write_bytes(below)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, base)
    options = ",".join(filter(None, ("backing_fmt=qcow2,backing_file=base", KINDS[kind])))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(former))
    qemu_io(path, "write -P 7 4k 8k")
    resized(path, 5 * MIB)
    model = bytearray(below[:former].ljust(5 * MIB, b"\0"))
    model[4096:12288] = b"\7" * 8192
    assert content(path) == model
    raw.write_bytes(model)
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw, path)
    qemu_img("check", "-q", path)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("kind", ["default", "small clusters", "extended", "version 2"])
def test_preallocates_what_is_new(tmp_path: Path, qemu_img: Any, qemu_io: Any, kind: str, mode: str) -> None:
    path = tmp_path / "image"
    create(qemu_img, path, KINDS[kind], path, str(MIB))
    qemu_io(path, "write -P 5 0 1M", "discard 512k 512k")  # there are free clusters with old bytes in them
    resized(path, 3 * MIB + 512, mode)
    qemu_img("check", "-q", path)
    assert content(path) == (b"\5" * (MIB // 2)).ljust(3 * MIB + 512, b"\0")
    extents = json.loads(qemu_img("map", "--output=json", path))
    assert all("offset" in extent for extent in extents if extent["start"] >= MIB)
    if mode != "metadata":
        assert path.stat().st_blocks * 512 >= 2 * MIB


@pytest.mark.parametrize("raw_file", ["on", "off"])
def test_data_file(tmp_path: Path, qemu_img: Any, qemu_io: Any, raw_file: str) -> None:
    path, data = tmp_path / "image", tmp_path / "data"
    create(qemu_img, path, f"data_file={data},data_file_raw={raw_file}", path, str(MIB))
    qemu_io(path, "write -P 5 0 1M")
    with data.open("ab") as file:
        file.write(b"stale" * 1000)
    resized(path, 2 * MIB)
    assert content(path) == (b"\5" * MIB).ljust(2 * MIB, b"\0")
    qemu_img("check", "-q", path)
    if raw_file == "on":
        assert data.read_bytes() == (b"\5" * MIB).ljust(2 * MIB, b"\0")
    resized(path, MIB // 2)
    qemu_img("check", "-q", path)
    assert content(path) == b"\5" * (MIB // 2)
    if raw_file == "on":
        assert data.stat().st_size == MIB // 2


def test_large_sizes_are_instant(tmp_path: Path, qemu_img: Any) -> None:
    path = tmp_path / "image"
    create(qemu_img, path, "", path, "1M")
    resized(path, 64 << 40)
    qemu_img("check", "-q", path)
    resized(path, MIB)
    qemu_img("check", "-q", path)
    with pytest.raises(ImageError, match="Failed to grow the L1 table: File too large"):
        resized(path, 1 << 62)
    qemu_img("check", "-q", path)


def test_refusals(tmp_path: Path, qemu_img: Any) -> None:
    path = tmp_path / "image"
    create(qemu_img, path, "compat=0.10", path, "1M")
    with pytest.raises(InvalidOption, match="Preallocation can't be used for shrinking an image"):
        resized(path, 512, "full")
    with pytest.raises(InvalidOption, match="multiple of 512"):
        resized(path, 513)
    qemu_img("snapshot", "-c", "s", path)
    before = path.read_bytes()
    with pytest.raises(InvalidOption, match="Can't resize a v2 image which has snapshots"):
        resized(path, 2 * MIB)
    assert path.read_bytes() == before


@pytest.mark.parametrize("entry", [0x30200, 1 << 40, 0])
def test_shrinking_without_refcounts_changes_nothing(tmp_path: Path, qemu_img: Any, entry: int) -> None:
    """The size is not changed before it is known that what is cut off can be given back."""
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "8M")
    with path.open("r+b") as file:
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write(entry.to_bytes(8, "big"))
    before = path.read_bytes()
    with pytest.raises(ImageError):
        resized(path, MIB)
    assert path.read_bytes()[24:32] == before[24:32]


def opened(node: Node, backing: Node | None, *, writable: bool) -> Qcow2Image:
    def no_child(name: str, role: str) -> Node:
        raise AssertionError(name)

    image = Qcow2Image(node, OpenOptions("disk", writable, False, {}, no_child))
    image.bind("qcow2", lambda image, offset, length: image.map_range(offset, length))  # type: ignore[attr-defined]
    if image.backing_file is not None:
        image.backing = backing
    return image


@pytest.mark.parametrize("kind", ["default", "small clusters", "extended", "version 2"])
@pytest.mark.parametrize("size", [8 * MIB + 512, 512 * 1025])
@pytest.mark.parametrize("has_backing", [False, True])
def test_power_fails_anywhere(
    tmp_path: Path, qemu_img: Any, qemu_io: Any, kind: str, size: int, has_backing: bool
) -> None:
    """The disk is the old one or the new one, whatever part of the last writes got through."""
    path, base = tmp_path / "image", tmp_path / "base"
    below = MemoryNode(random.Random(4).randbytes(3 * MIB))
    base.write_bytes(below.data)
    options = ["-o", KINDS[kind]] if KINDS[kind] else []
    backing = ["-b", "base", "-F", "raw"] if has_backing else []
    qemu_img("create", "-q", "-f", "qcow2", *options, *backing, path, str(MIB + 1536))
    qemu_io(path, "write -P 5 0 500k", "write -P 6 700k 4k")
    start = path.read_bytes()
    old_node = opened(MemoryNode(start), below, writable=False)
    old = old_node.read_at(0, old_node.size)
    node = RecordingNode(start)
    image = opened(node, below, writable=True)
    resize(image, size, "off")
    image.close()
    chance = random.Random(5)
    points = range(len(node.steps) + 1)
    sizes = set()
    for count in points[:: max(1, len(points) // 40)]:
        for left in (node.after(count), node.after_power_cut(count, chance)):
            after = opened(left, below, writable=False)
            found = check(after)
            assert not found.corruptions, (count, found.findings[:3])
            assert after.read_at(0, after.size) == old[: after.size].ljust(after.size, b"\0")
            sizes.add(after.size)
    assert sizes == {MIB + 1536, size}
    path.write_bytes(node.data)
    qemu_img("check", "-q", path)


class FailingNode(RecordingNode):
    """A file on a device that is full after some writes."""

    left = 0

    def write_at(self, offset: int, data: Any) -> None:
        if self.left <= 0:
            raise OSError(28, "No space left on device")
        self.left -= 1
        super().write_at(offset, data)


@pytest.mark.parametrize("size", [40 * MIB, 512])
def test_no_space(tmp_path: Path, qemu_img: Any, qemu_io: Any, size: int) -> None:
    path = tmp_path / "image"
    create(qemu_img, path, "cluster_size=512", path, str(MIB))
    qemu_io(path, "write -P 5 0 500k")
    start = path.read_bytes()
    for number in range(12):
        node = FailingNode(start)
        node.left = number
        image = opened(node, None, writable=True)
        failed = False
        try:
            resize(image, size, "off")
        except OSError:
            failed = True
        try:
            image.close()
        except OSError:
            failed = True
        after = opened(MemoryNode(node.data), None, writable=False)
        assert not check(after).corruptions
        kept = min(after.size, 500 << 10)
        assert after.read_at(0, kept) == b"\5" * kept
        if not failed:
            assert after.size == size
            return
