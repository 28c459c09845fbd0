"""The steps that blkdebug's rules know happen where qcow2 takes them: a rule for each lets a command fail there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diskwright_debug", reason="the package diskwright-debug is not installed")

MIB = 1 << 20
SMALL = "cluster_size=512,refcount_bits=64"
"""64 clusters to a refcount block, and 64 blocks to a cluster of the table."""


class World:
    """Images to work on."""

    def __init__(self, folder: Path, inside: Callable[..., Any], qemu_img: Callable[..., Any]) -> None:
        self.inside, self.qemu_img = inside, qemu_img
        self.base, self.image, self.data = folder / "base", folder / "image", folder / "data"
        self.data.write_bytes(os.urandom(4 * MIB))

    def overlay(self) -> list[str]:
        """A write of a part of a cluster, the rest of which a lower layer has."""
        self.qemu_img("convert", "-f", "raw", "-O", "qcow2", self.data, self.base)
        self.qemu_img("create", "-q", "-f", "qcow2", "-b", self.base, "-F", "qcow2", self.image)
        return ["bench", "-w", "-c", "1", "-s", "512", "-o", "1024", "IMAGE"]

    def shared_table(self) -> list[str]:
        """A write to a table that a snapshot needs as it is."""
        self.qemu_img("convert", "-f", "raw", "-O", "qcow2", self.data, self.image)
        self.qemu_img("snapshot", "-c", "now", self.image)
        return ["bench", "-w", "-c", "1", "-s", "64k", "IMAGE"]

    def growing(self) -> list[str]:
        """More clusters than the refcount structures have room for."""
        self.qemu_img("create", "-q", "-f", "qcow2", "-o", SMALL, self.image, "4M")
        return ["convert", "-n", "-f", "raw", self.data, "TARGET"]

    def compressed(self) -> list[str]:
        """Compressed clusters are written."""
        self.data.write_bytes(b"text" * (MIB // 4))
        self.qemu_img("create", "-q", "-f", "qcow2", self.image, "1M")
        return ["convert", "-n", "-c", "-f", "raw", self.data, "TARGET"]

    def reading_compressed(self) -> list[str]:
        """Compressed clusters are read."""
        self.data.write_bytes(b"text" * (MIB // 4))
        self.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", self.data, self.image)
        return ["bench", "-c", "1", "IMAGE"]

    def larger(self) -> list[str]:
        """The L1 table has to grow."""
        self.qemu_img("create", "-q", "-f", "qcow2", self.image, "1M")
        return ["resize", "IMAGE", "1P"]

    def emptied(self) -> list[str]:
        """A layer that has been committed."""
        self.overlay()
        return ["commit", "IMAGE"]


EVENTS = [
    (World.overlay, "cluster_alloc"),
    (World.overlay, "cow_read"),
    (World.overlay, "cow_write"),
    (World.overlay, "write_aio"),
    (World.overlay, "l2_alloc_write"),
    (World.overlay, "l2_update"),
    (World.overlay, "l1_update"),
    (World.overlay, "refblock_update_part"),
    (World.shared_table, "l2_alloc_cow_read"),
    (World.shared_table, "l2_load"),
    (World.shared_table, "cluster_free"),
    (World.growing, "refblock_alloc"),
    (World.growing, "refblock_alloc_write"),
    (World.growing, "reftable_grow"),
    (World.growing, "reftable_update"),
    (World.growing, "refblock_alloc_write_blocks"),
    (World.growing, "refblock_alloc_write_table"),
    (World.growing, "refblock_alloc_switch_table"),
    (World.compressed, "cluster_alloc_bytes"),
    (World.compressed, "write_compressed"),
    (World.compressed, "l2_update_compressed"),
    (World.reading_compressed, "read_compressed"),
    (World.larger, "l1_grow_alloc_table"),
    (World.larger, "l1_grow_write_table"),
    (World.larger, "l1_grow_activate_table"),
    (World.emptied, "empty_image_prepare"),
]


@pytest.fixture
def world(tmp_path: Path, inside: Callable[..., Any], qemu_img: Callable[..., Any]) -> World:
    return World(tmp_path, inside, qemu_img)


@pytest.mark.parametrize(("scene", "event"), EVENTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_rule_for_each_step(world: World, scene: Callable[[World], list[str]], event: str) -> None:
    """The request that follows fails; the image is sound afterwards, apart from leaks."""
    arguments = scene(world)

    def run(rule: dict[str, Any]) -> Any:
        file = {"driver": "blkdebug", "image.filename": str(world.image), **rule}
        name = f"json:{json.dumps({'driver': 'qcow2', 'file': file})}"
        options = f"driver=qcow2,file.driver=blkdebug,file.image.filename={world.image}"
        options += "".join(
            f",file.inject-error.0.{key}={value}" for key, value in rule.get("inject-error", [{}])[0].items()
        )
        target = "TARGET" in arguments
        words = [{"IMAGE": name, "TARGET": options}.get(word, word) for word in arguments]
        return world.inside(words[0], *(["--target-image-opts"] if target else []), *words[1:])

    result = run({"inject-error": [{"event": event, "errno": 5}]})
    assert result.code == 1, result
    assert "Input/output error" in result.err
    assert world.qemu_img("check", world.image, code=None).code in (0, 3)
    assert run({}).code == 0


def test_table_entry_for_a_new_block(world: World) -> None:
    """Without a larger table, a new refcount block is entered in the one there is."""
    world.growing()
    rule = "file.inject-error.0.event=refblock_alloc_hookup,file.inject-error.0.errno=5"
    options = f"driver=qcow2,file.driver=blkdebug,file.image.filename={world.image},{rule}"
    assert "Input/output error" in world.inside("bench", "-w", "-c", "20", "-s", "4k", "--image-opts", options).err


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ("", {100, 201, 203}),
        ("take-child-perms.0=resize", {100, 103, 201, 203}),
        ("unshare-child-perms.0=consistent-read", {100, 200, 201, 203}),
        ("take-child-perms.0=resize,take-child-perms.1=write-unchanged", {100, 102, 103, 201, 203}),
    ],
)
def test_permissions_on_top(options: str, held: set[int], tmp_path: Path, qemu_img: Callable[..., Any]) -> None:
    """What rules say is done to the file shows in its locks."""
    from diskwright.context import Context
    from diskwright.trees import OptionString

    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    extra = "".join(f",file.{option}" for option in filter(None, options.split(",")))
    name = OptionString(f"driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename={path}{extra}")
    with Context().open(name):
        locks = Path("/proc/locks").read_text().splitlines()
    found = {
        byte
        for line in locks
        if f":{path.stat().st_ino} " in line
        for byte in range(int(line.split()[-2]), int(line.split()[-1]) + 1)
    }
    if not found:
        pytest.skip("the system does not show locks")
    assert found == held


def test_permissions_that_are_none(tmp_path: Path, inside: Callable[..., Any]) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    name = f"driver=raw,file.driver=blkdebug,file.image.filename={tmp_path}/disk"
    for options, message in (
        ("take-child-perms.0=write", "Block node is read-only"),
        ("take-child-perms.0=foo", "does not accept value 'foo'"),
        ("unshare-child-perms.1=write", "List indices are not contiguous, saw 1 elements but 1 largest index"),
    ):
        assert message in inside("info", "--image-opts", f"{name},file.{options}", code=1).err
