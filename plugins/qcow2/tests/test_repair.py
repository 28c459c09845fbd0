"""Repairing damaged images: nothing is lost, and the real check finds nothing any more."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.facts import CheckResult
from diskwright.hookspecs import OpenOptions
from diskwright.node import Bytes, Node
from diskwright.testing import MemoryNode, RecordingNode, find_qemu_img, qemu_img
from diskwright_qcow2.check import check
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.repair import repair

MIB = 1 << 20
SIZE = 4 * MIB
KINDS = {
    "default": "",
    "small clusters": "cluster_size=512",
    "version 2": "compat=0.10",
    "extended": "extended_l2=on",
    "bits": "refcount_bits=2,cluster_size=4k",
    "64 bits": "refcount_bits=64,cluster_size=4k",
}
COPIED = 1 << 63


class Damage:
    """The bytes of an image, and what can be done to them."""

    def __init__(self, data: bytes, seed: int) -> None:
        self.data = bytearray(data)
        self.rng = random.Random(seed)
        self.cluster = 1 << self.u32(20)
        self.version = self.u32(4)
        self.extended = self.version > 2 and self.u64(72) & 16

    def u32(self, offset: int) -> int:
        return int(struct.unpack_from(">I", self.data, offset)[0])

    def u64(self, offset: int) -> int:
        return int(struct.unpack_from(">Q", self.data, offset)[0])

    def put(self, offset: int, value: int) -> None:
        struct.pack_into(">Q", self.data, offset, value)

    def l1(self) -> int:
        """Offset of an L1 entry that is in use."""
        start = self.u64(40)
        return self.rng.choice([o for o in range(start, start + 8 * self.u32(36), 8) if self.u64(o)])

    def l2(self, wanted: Callable[[int], bool] = bool) -> int:
        """Offset of an L2 entry that is in use."""
        step = 16 if self.extended else 8
        start = self.u64(40)
        tables = [self.u64(o) & (1 << 56) - 512 for o in range(start, start + 8 * self.u32(36), 8) if self.u64(o)]
        places = [o for t in tables for o in range(t, t + self.cluster, step) if wanted(self.u64(o))]
        return self.rng.choice(places)

    def block(self) -> int:
        """Offset of the first refcount block."""
        return self.u64(self.u64(48))


def counted_too_often(d: Damage) -> None:
    for _ in range(5):
        place = d.block() + d.rng.randrange(16 if d.cluster == 4096 else 64)
        d.data[place] |= 2


def not_counted(d: Damage) -> None:
    for _ in range(3):
        d.data[d.block() + d.rng.randrange(20)] = 0


def all_blocks_lost(d: Damage) -> None:
    d.put(d.u64(48), 0)


def block_outside(d: Damage) -> None:
    d.put(d.u64(48), 1 << 40)


def block_unaligned(d: Damage) -> None:
    d.put(d.u64(48), d.block() + 512 if d.cluster > 512 else d.block() | 1)


def no_table(d: Damage) -> None:
    struct.pack_into(">I", d.data, 56, 0)


def table_outside(d: Damage) -> None:
    d.put(48, 1 << 40)


def table_unaligned(d: Damage) -> None:
    d.put(48, d.u64(48) + 8)


def l1_flags(d: Damage) -> None:
    place = d.l1()
    d.put(place, d.u64(place) ^ COPIED)


def l2_flags(d: Damage) -> None:
    for _ in range(4):
        place = d.l2()
        d.put(place, d.u64(place) ^ COPIED)


def used_twice(d: Damage) -> None:
    other = d.u64(d.l2(lambda entry: bool(entry & COPIED)))
    place = d.l2(lambda entry: bool(entry & COPIED))
    d.put(place, other)


def dirty(d: Damage) -> None:
    counted_too_often(d)
    if d.version > 2:
        d.put(72, d.u64(72) | 1)


def corrupt(d: Damage) -> None:
    not_counted(d)
    if d.version > 2:
        d.put(72, d.u64(72) | 2)


def unknown_autoclear(d: Damage) -> None:
    counted_too_often(d)
    if d.version > 2:
        d.put(88, d.u64(88) | 64)


DAMAGES = [
    counted_too_often,
    not_counted,
    all_blocks_lost,
    block_outside,
    block_unaligned,
    no_table,
    table_outside,
    table_unaligned,
    l1_flags,
    l2_flags,
    used_twice,
    dirty,
    corrupt,
    unknown_autoclear,
]


def opened(node: Node, *, writable: bool, checking: bool = False) -> Qcow2Image:
    def no_child(name: str, role: str) -> Node:
        raise AssertionError(name)

    image = Qcow2Image(node, OpenOptions("disk", writable, False, {}, no_child, check=checking))
    image.bind("qcow2", lambda image, offset, length: image.map_range(offset, length))  # type: ignore[attr-defined]
    return image


def content(data: Bytes) -> bytes:
    image = opened(MemoryNode(data), writable=False, checking=True)
    return image.read_at(0, image.size)


def repaired(path: Path, mode: str) -> CheckResult:
    context = default_context()
    with context.open(str(path), "qcow2", writable=True, backing=False, check=True) as image:
        result: CheckResult = context.formats.call("check", "qcow2", image=image, repair=mode)
    return result


@pytest.fixture(scope="module", params=KINDS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pattern: Any) -> bytes:
    """An image with a snapshot and, if it can have one, a bitmap."""
    if find_qemu_img() is None:
        pytest.skip("qemu-img is not installed (Debian: qemu-utils)")
    folder = tmp_path_factory.mktemp("sound")
    path, raw = folder / "image", folder / "raw"
    options = KINDS[request.param]
    raw.write_bytes(pattern(SIZE, 1))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *(["-o", options] if options else []), raw, path)
    qemu_img("snapshot", "-c", "s", path)
    raw.write_bytes(pattern(SIZE, 2))
    qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", raw, path)
    if "0.10" not in options:
        qemu_img("bitmap", "--add", path, "b")
    qemu_img("check", "-q", path)
    return path.read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_repairs_all(sound: bytes, tmp_path: Path, damage: Callable[[Damage], None]) -> None:
    path, old = tmp_path / "image", tmp_path / "old"
    harmed = Damage(sound, 3)
    damage(harmed)
    path.write_bytes(harmed.data)
    disk = content(harmed.data)
    if damage is not used_twice:
        assert disk == content(sound)
    result = repaired(path, "all")
    assert result.corruptions == result.corruptions_fixed
    assert result.leaks == result.leaks_fixed
    assert not result.check_errors
    qemu_img("check", path)
    assert content(path.read_bytes()) == disk
    with diskwright.open(path, "qcow2", writable=True) as image:
        assert isinstance(image, Qcow2Image)
        assert [snapshot.public.name for snapshot in image.snapshots] == ["s"]
        assert [bitmap.name for bitmap in image.bitmaps] == (["b"] if harmed.version > 2 else [])
        assert not int(image.header.incompatible_features) & 3
        assert not int(image.header.autoclear_features) & ~3
    if damage is not used_twice:
        qemu_img("convert", "-l", "s", "-O", "raw", path, old)
        data = tmp_path / "sound"
        data.write_bytes(sound)
        before = tmp_path / "before"
        qemu_img("convert", "-l", "s", "-O", "raw", data, before)
        assert old.read_bytes() == before.read_bytes()


def test_repairs_leaks_only(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    harmed = Damage(sound, 3)
    counted_too_often(harmed)
    path.write_bytes(harmed.data)
    result = repaired(path, "leaks")
    assert result.leaks
    assert (result.corruptions_fixed, result.leaks_fixed) == (result.corruptions, result.leaks)
    done = [line for line in result.findings if line.startswith("Repairing ")]
    found = [line for line in result.findings if line not in done]
    # First what is wrong, then what is done about it; the COPIED flags come last.
    assert [line.replace("Leaked", "Repairing") for line in found] == done[: result.leaks]
    assert result.findings == found + done
    qemu_img("check", path)
    assert content(path.read_bytes()) == content(sound)


def test_leaves_corruptions_when_only_leaks_are_wanted(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    harmed = Damage(sound, 3)
    all_blocks_lost(harmed)
    path.write_bytes(harmed.data)
    result = repaired(path, "leaks")
    assert result.corruptions
    assert not result.corruptions_fixed
    assert path.read_bytes() == harmed.data
    assert not repaired(path, "all").check_errors
    qemu_img("check", path)


def test_sound_images_are_not_written(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(sound)
    for mode in ("leaks", "all"):
        assert repaired(path, mode).findings == []
    assert path.read_bytes() == sound


@pytest.mark.parametrize("seed", range(12))
def test_any_damage(sound: bytes, tmp_path: Path, seed: int) -> None:
    """Several at once."""
    path = tmp_path / "image"
    harmed = Damage(sound, seed)
    pointers = [all_blocks_lost, block_outside, block_unaligned, no_table, table_outside, table_unaligned]
    for damage in harmed.rng.sample([counted_too_often, not_counted, l1_flags, l2_flags, unknown_autoclear], 3):
        damage(harmed)
    harmed.rng.choice(pointers)(harmed)
    path.write_bytes(harmed.data)
    repaired(path, "all")
    qemu_img("check", path)
    assert content(path.read_bytes()) == content(sound)


@pytest.mark.parametrize("damage", [counted_too_often, not_counted, block_outside, l2_flags])
def test_power_fails_during_repair(sound: bytes, damage: Callable[[Damage], None]) -> None:
    """However far it came, all is there, and another repair ends it."""
    harmed = Damage(sound, 5)
    damage(harmed)
    node = RecordingNode(harmed.data)
    repair(opened(node, writable=True, checking=True), "all")
    chance = random.Random(1)
    for count in range(len(node.steps) + 1):
        for left in (node.after(count), node.after_power_cut(count, chance)):
            assert content(left.data) == content(sound)
            assert len(opened(left, writable=False, checking=True).snapshots) == 1
            repair(opened(left, writable=True, checking=True), "all")
            result = check(opened(left, writable=False))
            assert not result.findings
            assert content(left.data) == content(sound)


def test_dirty_images_are_repaired_before_they_are_written(sound: bytes, tmp_path: Path) -> None:
    harmed = Damage(sound, 3)
    if harmed.version == 2:
        pytest.skip("version 2 has no dirty bit")
    dirty(harmed)
    path = tmp_path / "image"
    path.write_bytes(harmed.data)
    with diskwright.open(path, "qcow2", writable=True) as image:
        assert path.read_bytes() == harmed.data
        image.write_at(0, b"x" * 512)  # type: ignore[attr-defined]
    qemu_img("check", path)
    assert content(path.read_bytes()) == b"x" * 512 + content(sound)[512:]


def test_impossible_entries(sound: bytes, tmp_path: Path) -> None:
    """Entries that contradict themselves are replaced; what can be read of their cluster stays."""
    harmed = Damage(sound, 3)
    if not harmed.extended:
        pytest.skip("only extended L2 entries can contradict themselves")
    place = harmed.l2()
    harmed.put(place + 8, harmed.u64(place + 8) | 3 << 32 | 3)
    path = tmp_path / "image"
    path.write_bytes(harmed.data)
    result = repaired(path, "all")
    assert result.corruptions == result.corruptions_fixed >= 1
    qemu_img("check", path)
    found, former = content(path.read_bytes()), content(sound)
    different = [offset for offset in range(0, SIZE, 2048) if found[offset:][:2048] != former[offset:][:2048]]
    assert len(different) <= 2


def test_unreadable_snapshot_table(sound: bytes, tmp_path: Path) -> None:
    """Nobody knows what the snapshots use: nothing is changed."""
    harmed = Damage(sound, 3)
    counted_too_often(harmed)
    harmed.put(64, 1 << 40)
    path = tmp_path / "image"
    path.write_bytes(harmed.data)
    result = repaired(path, "all")
    assert result.check_errors == 1
    assert not result.leaks_fixed
    assert path.read_bytes() == harmed.data


@pytest.mark.parametrize("damage", [counted_too_often, not_counted, l2_flags])
def test_no_space(sound: bytes, damage: Callable[[Damage], None]) -> None:
    """Whichever write fails, nothing is lost, and a repair with room ends it."""

    class FailingNode(MemoryNode):
        left = 0

        def write_at(self, offset: int, data: Bytes) -> None:
            if self.left <= 0:
                raise OSError(28, "No space left on device")
            self.left -= 1
            super().write_at(offset, data)

    harmed = Damage(sound, 5)
    damage(harmed)
    for number in range(6):
        node = FailingNode(harmed.data, writable=True)
        node.left = number
        try:
            repair(opened(node, writable=True, checking=True), "all")
        except OSError:
            assert content(node.data) == content(sound)
        node.left = 1000
        repair(opened(node, writable=True, checking=True), "all")
        assert not check(opened(node, writable=False)).findings
        assert content(node.data) == content(sound)
