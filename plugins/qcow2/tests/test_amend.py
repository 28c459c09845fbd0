"""Amending, checked with the real tools: content, consistency, messages, and what ``info`` says."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.engine.copy import no_progress
from diskwright.errors import ImageError
from diskwright.hookspecs import OpenOptions
from diskwright.node import Node
from diskwright.testing import MemoryNode, RecordingNode, find_qemu_img
from diskwright_qcow2.amend import amend
from diskwright_qcow2.check import check
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.options import AMEND_OPTIONS

MIB = 1 << 20
SIZE = 3 * MIB
KINDS = {
    "default": "",
    "512": "cluster_size=512",
    "4k": "cluster_size=4k",
    "version 2": "compat=v2,cluster_size=4k",
    "lazy": "lazy_refcounts=on",
}
CHANGES: list[dict[str, Any]] = [
    {"compat": "v3"},
    {"lazy_refcounts": True, "compat": "1.1"},
    {"refcount_bits": 64, "compat": "v3"},
    {"refcount_bits": 4, "lazy_refcounts": False},
    {"size": 5 * MIB},
    {"refcount_bits": 16, "compat": "v2"},
    {"refcount_bits": 2, "compat": "v3", "lazy_refcounts": True},
    {"refcount_bits": 32, "size": 2 * MIB},
    {"refcount_bits": 16, "compat": "0.10", "size": SIZE},
    {},
]


def amended(path: Path, **values: Any) -> None:
    context = default_context()
    with context.open(str(path), "qcow2", writable=True) as image:
        context.formats.call("amend", "qcow2", image=image, values=values, force=False, progress=no_progress)


def option_text(values: dict[str, Any]) -> str:
    shown = {True: "on", False: "off"}
    return ",".join(f"{name}={shown[value] if isinstance(value, bool) else value}" for name, value in values.items())


def described(qemu_img: Any, path: Path) -> Any:
    info = json.loads(qemu_img("info", "-U", "--output=json", path))
    for key in ("filename", "actual-size", "children", "full-backing-filename", "snapshots"):
        info.pop(key, None)
    return info


def content(path: Path) -> bytes:
    with diskwright.open(path, "qcow2") as image:
        return image.read_at(0, image.size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("snapshot", [False, True])
def test_like_the_real_one(
    tmp_path: Path, qemu_img: Any, qemu_io: Any, pattern: Any, kind: str, snapshot: bool
) -> None:
    ours, theirs, raw, old = (tmp_path / name for name in ("ours", "theirs", "raw", "old"))
    model = pattern(SIZE, 1)
    raw.write_bytes(model)
    for path in (ours, theirs):
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *(["-o", KINDS[kind]] if KINDS[kind] else []), raw, path)
        if snapshot:
            qemu_img("snapshot", "-c", "s", path)
            qemu_io(path, "write -P 3 1M 64k")
    if snapshot:
        model = model[:MIB] + b"\3" * 65536 + model[MIB + 65536 :]
    for values in CHANGES:
        if snapshot and "size" in values:
            continue
        if values:
            qemu_img("amend", "-f", "qcow2", "-o", option_text(values), theirs)
        amended(ours, **values)
        model = model[: values.get("size", len(model))].ljust(values.get("size", len(model)), b"\0")
        qemu_img("check", "-q", ours)
        assert content(ours) == model
        assert described(qemu_img, ours) == described(qemu_img, theirs)
        if snapshot:
            qemu_img("convert", "-l", "s", "-O", "raw", ours, old)
            assert old.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("kind", ["default", "512"])
@pytest.mark.parametrize("has_backing", [False, True])
def test_downgrade_keeps_zeros(tmp_path: Path, qemu_img: Any, qemu_io: Any, kind: str, has_backing: bool) -> None:
    base, path, old = tmp_path / "base", tmp_path / "image", tmp_path / "old"
    qemu_img("create", "-q", "-f", "qcow2", base, "3M")
    qemu_io(base, "write -P 9 0 3M")
    backing = ["-b", "base", "-F", "qcow2"] if has_backing else []
    options = ["-o", KINDS[kind]] if KINDS[kind] else []
    qemu_img("create", "-q", "-f", "qcow2", *options, *backing, path, "3M")
    qemu_io(path, "write -P 1 0 1M", "write -z 512k 1M", "write -z -u 2M 256k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 2 600k 100k", "write -z 100k 100k")
    qemu_img("convert", "-l", "s", "-O", "raw", path, old)
    before, before_snapshot = content(path), old.read_bytes()
    amended(path, compat="v2")
    qemu_img("check", "-q", path)
    assert content(path) == before
    qemu_img("convert", "-l", "s", "-O", "raw", path, old)
    assert old.read_bytes() == before_snapshot
    assert described(qemu_img, path)["format-specific"]["data"]["compat"] == "0.10"
    qemu_img("compare", "-q", path, path)


REFUSED = [
    ("", {"compat": "0.9"}),
    ("", {"compat": "v2", "lazy_refcounts": True}),
    ("", {"compat": "v2", "refcount_bits": 8}),
    ("", {"refcount_bits": 3}),
    ("", {"refcount_bits": 0}),
    ("", {"refcount_bits": 128}),
    ("", {"data_file": "x"}),
    ("", {"data_file_raw": True}),
    ("", {"backing_file": "x"}),
    ("", {"size": 1000}),
    ("compat=v2", {"lazy_refcounts": True}),
    ("compat=v2", {"refcount_bits": 8}),
    ("refcount_bits=8", {"compat": "v2"}),
    ("extended_l2=on", {"compat": "v2"}),
    ("data_file=data", {"compat": "v2"}),
    ("data_file=data", {"data_file_raw": True}),
]


@pytest.mark.parametrize(("options", "values"), REFUSED)
def test_refuses_like_the_real_one(tmp_path: Path, qemu_img: Any, options: str, values: dict[str, Any]) -> None:
    path = tmp_path / "image"
    options = options.replace("data_file=data", f"data_file={tmp_path / 'data'}")
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, "1M")
    before = path.read_bytes()
    program = find_qemu_img()
    assert program
    done = subprocess.run(
        [program, "amend", "-f", "qcow2", "-o", option_text(values), path], capture_output=True, text=True, check=False
    )
    with pytest.raises(ImageError) as caught:
        amended(path, **values)
    assert done.stderr.splitlines()[0].removeprefix("qemu-img: ") == str(caught.value)
    assert path.read_bytes() == before


def test_refuses_a_width_that_the_references_do_not_fit_in(tmp_path: Path, qemu_img: Any, qemu_io: Any) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write 0 64k")
    for name in "abc":
        qemu_img("snapshot", "-c", name, path)
    before = path.read_bytes()
    with pytest.raises(ImageError, match="Cannot decrease refcount entry width to 2 bits: Cluster at offset 0x.* of 4"):
        amended(path, refcount_bits=2)
    assert path.read_bytes() == before
    amended(path, refcount_bits=4)
    qemu_img("check", "-q", path)


def test_other_refusals(tmp_path: Path, qemu_img: Any) -> None:
    path, raw = tmp_path / "image", tmp_path / "raw"
    raw.write_bytes(b"text" * 65536)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, path)
    with pytest.raises(ImageError, match="zstd compression type and existing compressed clusters"):
        amended(path, compat="v2")
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("snapshot", "-c", "s", path)
    with pytest.raises(ImageError, match="Internal snapshots prevent downgrade of image"):
        amended(path, compat="v2", size=2 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("bitmap", "--add", path, "b")
    with pytest.raises(ImageError, match="persistent bitmaps"):
        amended(path, compat="v2")
    qemu_img("check", "-q", path)


def test_data_file(tmp_path: Path, qemu_img: Any, qemu_io: Any) -> None:
    path, data = tmp_path / "image", tmp_path / "data"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", path, "1M")
    qemu_io(path, "write -P 1 0 1M")
    amended(path, data_file_raw=False, refcount_bits=1)
    qemu_img("check", "-q", path)
    data.rename(tmp_path / "other")
    with default_context().open(str(path), "qcow2", describe_only=True) as image:
        assert isinstance(image, Qcow2Image)
        assert not image.header.raw_data_file
    (tmp_path / "other").rename(data)
    amended(path, data_file="")
    assert "data-file" not in described(qemu_img, path)["format-specific"]["data"]


def test_backing_file_may_be_named_as_it_is(tmp_path: Path, qemu_img: Any) -> None:
    base, path = tmp_path / "base", tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", path)
    amended(path, backing_file="base", backing_fmt="qcow2", refcount_bits=8)
    with pytest.raises(ImageError, match="Cannot amend the backing file"):
        amended(path, backing_file="base")


def test_old_snapshots_get_what_version_3_needs(tmp_path: Path, qemu_img: Any, qemu_io: Any) -> None:
    """Snapshots of the first writers have no extra data."""
    path, old = tmp_path / "image", tmp_path / "old"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=v2", path, "1M")
    qemu_io(path, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "s", path)
    data = bytearray(path.read_bytes())
    table = int.from_bytes(data[64:72], "big")
    extra = int.from_bytes(data[table + 36 : table + 40], "big")
    data[table + 36 : table + 40] = bytes(4)
    del data[table + 40 : table + 40 + extra]
    data[table + 48 : table + 48] = bytes(extra)
    path.write_bytes(data)
    amended(path, compat="v3", refcount_bits=8)
    qemu_img("check", "-q", path)
    qemu_img("convert", "-l", "s", "-O", "raw", path, old)
    assert old.read_bytes() == b"\1" * MIB


def test_options_in_the_order_of_the_real_one() -> None:
    assert [option.name for option in AMEND_OPTIONS] == [
        "size",
        "compat",
        "backing_file",
        "backing_fmt",
        "data_file",
        "data_file_raw",
        "lazy_refcounts",
        "refcount_bits",
        "encrypt.state",
        "encrypt.new-secret",
        "encrypt.old-secret",
        "encrypt.keyslot",
        "encrypt.iter-time",
    ]


def opened(node: Node, *, writable: bool) -> Qcow2Image:
    def no_child(name: str, role: str) -> Node:
        raise AssertionError(name)

    image = Qcow2Image(node, OpenOptions("disk", writable, False, {}, no_child))
    image.bind("qcow2", lambda image, offset, length: image.map_range(offset, length))  # type: ignore[attr-defined]
    image.backing = MemoryNode(b"\x09" * SIZE) if image.backing_file is not None else None
    return image


@pytest.mark.parametrize("kind", ["default", "512"])
@pytest.mark.parametrize("values", [{"refcount_bits": 64}, {"compat": "v2"}, {"size": SIZE, "refcount_bits": 8}])
def test_power_fails_anywhere(tmp_path: Path, qemu_img: Any, qemu_io: Any, kind: str, values: dict[str, Any]) -> None:
    base, path = tmp_path / "base", tmp_path / "image"
    base.write_bytes(b"\x09" * SIZE)
    options = ["-o", KINDS[kind]] if KINDS[kind] else []
    qemu_img("create", "-q", "-f", "qcow2", *options, "-b", "base", "-F", "raw", path, "3M")
    qemu_io(path, "write -P 1 0 1M", "write -z 512k 300k", "write -z -u 2M 256k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 2 600k 100k", "write -z 100k 100k")
    node = RecordingNode(path.read_bytes())
    before = content(path)
    image = opened(node, writable=True)
    amend(image, values)
    image.close()
    chance = random.Random(3)
    points = range(len(node.steps) + 1)
    for count in points[:: max(1, len(points) // 40)]:
        for left in (node.after(count), node.after_power_cut(count, chance)):
            after = opened(left, writable=False)
            found = check(after)
            assert not found.corruptions, (count, found.findings[:3])
            assert after.read_at(0, after.size) == before
    path.write_bytes(node.data)
    qemu_img("check", "-q", path)
    assert content(path) == before


class FailingNode(MemoryNode):
    """A file on a device that is full after some writes."""

    left = 0

    def write_at(self, offset: int, data: Any) -> None:
        if self.left <= 0:
            raise OSError(28, "No space left on device")
        self.left -= 1
        super().write_at(offset, data)


@pytest.mark.parametrize(
    "values", [{"refcount_bits": 64}, {"compat": "v2"}, {"size": 2 * SIZE}, {"lazy_refcounts": True}]
)
def test_no_space(tmp_path: Path, qemu_img: Any, qemu_io: Any, values: dict[str, Any]) -> None:
    """Whichever write fails, the content stays and nothing is corrupt."""
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, str(SIZE))
    qemu_io(path, "write -P 1 0 1M", "write -z 512k 300k")
    start = path.read_bytes()
    before = content(path)
    for number in range(200):
        node = FailingNode(start, writable=True)
        node.left = number
        image = opened(node, writable=True)
        failed = False
        try:
            amend(image, values)
        except OSError:
            failed = True
        try:
            image.close()
        except OSError:
            failed = True
        after = opened(MemoryNode(node.data), writable=False)
        assert not check(after).corruptions
        assert after.read_at(0, SIZE) == before
        if not failed:
            return
    pytest.fail("it never succeeded")
