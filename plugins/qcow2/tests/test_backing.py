"""Other names of backing files, and layers that are emptied, checked with the real tools."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.errors import InvalidOption
from diskwright.node import Node
from diskwright.testing import MemoryNode, RecordingNode, open_node
from diskwright.trees import OptionString
from diskwright_qcow2.backing import set_backing
from diskwright_qcow2.check import check
from diskwright_qcow2.empty import make_empty
from diskwright_qcow2.image import Qcow2Image

MIB = 1 << 20
KINDS = {
    "default": "",
    "small clusters": "cluster_size=512",
    "version 2": "compat=0.10",
    "extended": "extended_l2=on",
    "bits": "refcount_bits=2,cluster_size=4k",
    "zstd": "compression_type=zstd",
}


def call(path: Path, hook: str, **values: Any) -> None:
    with diskwright.open(path, "qcow2", writable=True, backing=False) as image:
        default_context().formats.call(hook, "qcow2", image=image, **values)


def described(qemu_img: Any, path: Path) -> Any:
    info = json.loads(qemu_img("info", "-U", "--output=json", path))
    for key in ("filename", "actual-size", "children", "full-backing-filename"):
        info.pop(key, None)
    return info


@pytest.mark.parametrize("kind", KINDS)
def test_names_like_the_real_one(tmp_path: Path, qemu_img: Any, kind: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    options = ["-o", KINDS[kind]] if KINDS[kind] else []
    for name in ("base", "b", "a long name of a base"):
        qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "1M")
    for path in (ours, theirs):
        qemu_img("create", "-q", "-f", "qcow2", *options, "-b", "base", "-F", "qcow2", path, "1M")
    for name, format in (("b", "qcow2"), ("a long name of a base", "raw"), ("", ""), ("base", "qcow2")):
        call(ours, "set_backing", backing_file=name or None, backing_format=format or None)
        qemu_img("rebase", "-u", "-b", name, *(("-F", format) if format else ()), theirs)
        assert described(qemu_img, ours) == described(qemu_img, theirs)
        qemu_img("check", "-q", ours)
        assert ours.read_bytes() == theirs.read_bytes()


def test_unknown_extensions_stay(tmp_path: Path, qemu_img: Any) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "1M")
    data = bytearray(path.read_bytes())
    data[112:136] = struct.pack(">II8sII", 0x12345678, 5, b"hello", 0, 0)
    path.write_bytes(data)
    call(path, "set_backing", backing_file="base", backing_format="raw")
    with diskwright.open(path, "qcow2", backing=False) as image:
        assert isinstance(image, Qcow2Image)
        assert [(e.type, e.data) for e in image.header.unknown_extensions] == [(0x12345678, b"hello")]
        assert (image.backing_file, image.backing_format) == ("base", "raw")
    assert described(qemu_img, path)["backing-filename"] == "base"


def test_refuses_names_that_do_not_fit(tmp_path: Path, qemu_img: Any) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
    before = path.read_bytes()
    for length in (400, 1024):
        with pytest.raises(InvalidOption, match="No space left in the file header"):
            call(path, "set_backing", backing_file="n" * length, backing_format="raw")
    assert path.read_bytes() == before
    call(path, "set_backing", backing_file="n" * 350, backing_format="raw")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("snapshots", [False, True])
def test_empties_a_layer(tmp_path: Path, qemu_img: Any, qemu_io: Any, kind: str, snapshots: bool) -> None:
    base, path, old = tmp_path / "base", tmp_path / "image", tmp_path / "old"
    options = ["-o", KINDS[kind]] if KINDS[kind] else []
    qemu_img("create", "-q", "-f", "qcow2", base, "4M")
    qemu_io(base, "write -P 9 0 4M")
    qemu_img("create", "-q", "-f", "qcow2", *options, "-b", "base", "-F", "qcow2", path, "4M")
    qemu_io(path, "write -P 1 0 3M")
    if snapshots:
        qemu_img("snapshot", "-c", "s", path)
        qemu_io(path, "write -P 2 1M 3M")
    call(path, "make_empty")
    with diskwright.open(path, "qcow2") as image:
        assert image.read_at(0, image.size) == b"\x09" * (4 * MIB)
    qemu_img("compare", "-q", base, path)
    qemu_img("check", "-q", path)
    if snapshots:
        qemu_img("convert", "-l", "s", "-O", "raw", path, old)
        assert old.read_bytes() == b"\1" * (3 * MIB) + b"\x09" * MIB
        qemu_img("snapshot", "-a", "s", path)
        qemu_img("check", "-q", path)
    else:
        qemu_img("create", "-q", "-f", "qcow2", *options, "-b", "base", "-F", "qcow2", old, "4M")
        assert path.stat().st_size <= old.stat().st_size + (1 << 16)
    qemu_io(path, "write -P 3 1M 1M")
    qemu_img("check", "-q", path)


def opened(node: Node, *, writable: bool = False) -> Qcow2Image:
    image = open_node(node, "qcow2", writable=writable)
    assert isinstance(image, Qcow2Image)
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_power_fails_anywhere(tmp_path: Path, qemu_img: Any, qemu_io: Any, kind: str) -> None:
    path = tmp_path / "image"
    options = ["-o", KINDS[kind]] if KINDS[kind] else []
    qemu_img("create", "-q", "-f", "qcow2", *options, path, "4M")
    qemu_io(path, "write -P 1 0 3M")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 2 1M 2M")
    node = RecordingNode(path.read_bytes())
    before = b"\1" * MIB + b"\2" * (2 * MIB) + bytes(MIB)
    image = opened(node, writable=True)
    make_empty(image)
    set_backing(image, "base", "raw")
    image.close()
    chance = random.Random(5)
    seen = set()
    for count in range(len(node.steps) + 1):
        for left in (node.after(count), node.after_power_cut(count, chance)):
            after = opened(left, writable=False)
            result = check(after)
            assert not result.corruptions, (count, result.findings[:3])
            found = after.read_at(0, after.size)
            assert found in (before, bytes(4 * MIB))
            assert len(after.snapshots) == 1
            seen.add((found == before, after.backing_file))
    assert seen == {(True, None), (False, None), (False, "base")}


def test_failed_writes_leave_the_old_layer(tmp_path: Path, qemu_img: Any, qemu_io: Any) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    qemu_io(path, "write -P 1 0 3M")

    class FailingNode(MemoryNode):
        left = 0

        def write_at(self, offset: int, data: Any) -> None:
            if self.left <= 0:
                raise OSError(28, "No space left on device")
            self.left -= 1
            super().write_at(offset, data)

    for number in range(4):
        node = FailingNode(path.read_bytes(), writable=True)
        node.left = number
        image = opened(node, writable=True)
        with pytest.raises(OSError, match="No space"):
            make_empty(image)
        image.close()
        after = opened(MemoryNode(node.data), writable=False)
        assert not check(after).corruptions
        assert after.read_at(0, 3 * MIB) == b"\1" * (3 * MIB)


@pytest.mark.parametrize("above", ["driver=raw", "driver=raw,offset=4096", "driver=copy-on-read", "driver=blkdebug"])
def test_an_overlay_below_another_node_is_the_whole_disk(tmp_path: Path, qemu_img: Any, above: str) -> None:
    """Whatever stands on it, and by whichever format or filter, reads what the layers below have."""
    base, top, back = tmp_path / "base", tmp_path / "top", tmp_path / "back"
    content = random.Random(7).randbytes(MIB)
    base.write_bytes(content)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    role = "image" if above == "driver=blkdebug" else "file"
    name = f"{above},{role}.driver=qcow2,{role}.file.filename={top}"
    context = diskwright.Context()
    if not any(
        kind.knows(name.partition(",")[0].removeprefix("driver=")) for kind in (context.formats, context.filters)
    ):
        pytest.skip("the filter is not installed")
    if above == "driver=copy-on-read":
        with context.open(OptionString(name), writable=True) as image:
            assert image.read_at(0, MIB) == content
        qemu_img("convert", "-f", "qcow2", "-O", "raw", top, back)
    else:
        diskwright.convert(OptionString(name), back, format="raw", context=context)
    assert back.read_bytes() == content[4096 if "offset" in above else 0 :]
