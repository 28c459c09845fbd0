"""Snapshot tables with too much in them, or too little: what check says, and that a repair keeps what can be kept."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import diskwright
from diskwright.context import default_context
from diskwright.errors import InvalidImage
from diskwright.facts import CheckResult
from diskwright.hookspecs import OpenOptions
from diskwright.node import Node
from diskwright.testing import RecordingNode
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.repair import repair

HINT = "You can force-remove {} with qemu-img check -r all"
ENTRY = struct.Struct(">QIHHIIQII")


@pytest.fixture
def path(tmp_path: Path, qemu_img: Callable[..., str], qemu_io: Callable[..., str]) -> Path:
    """An image with the snapshots a, b and c, and its snapshot table at the end of the file, moved there."""
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "1M")
    for number, name in enumerate("abc"):
        qemu_io(path, f"write -P {number + 1} {number * 64}k 64k")
        qemu_img("snapshot", "-c", name, path)
    return path


def entries(data: bytes) -> list[tuple[tuple[int, ...], bytes]]:
    """Fields of the snapshots, and what follows them."""
    place, found = int.from_bytes(data[64:72], "big"), []
    for _ in range(int.from_bytes(data[60:64], "big")):
        fields = ENTRY.unpack_from(data, place)
        start = place + ENTRY.size
        place = start + fields[8] + fields[2] + fields[3]
        found.append((fields, data[start + fields[8] : place]))
        place += -place % 8
    return found


def write_table(path: Path, extras: list[int], more: int = 0) -> None:
    """Let the snapshots have extra data of these lengths, in a table behind the end of the file.

    :param more: how many empty ones follow.
    """
    data = bytearray(path.read_bytes())
    data += bytes(-len(data) % 4096)
    table = b""
    for (fields, names), extra in zip(entries(data), extras, strict=True):
        known = struct.pack(">QQQ", 0, 1 << 20, (1 << 64) - 1).ljust(extra, b"x")[:extra]
        entry = ENTRY.pack(*fields[:8], extra) + known + names
        entry += bytes(-len(entry) % 8)
        table += entry
    table += ENTRY.pack(*bytes(9)) * more
    data[60:64] = (len(extras) + more).to_bytes(4, "big")
    data[64:72] = len(data).to_bytes(8, "big")
    path.write_bytes(data + table + bytes(-len(table) % 4096))


def names(path: Path) -> list[str]:
    with diskwright.open(path, "qcow2") as image:
        assert isinstance(image, Qcow2Image)
        return [entry.public.name for entry in image.snapshots]


def repaired(path: Path, mode: str = "all") -> CheckResult:
    context = default_context()
    with context.open(str(path), "qcow2", writable=True, check=True) as image:
        result: CheckResult = context.formats.call("check", "qcow2", image=image, repair=mode)
    return result


def test_too_much_extra_data(path: Path, qemu_img: Callable[..., str], tmp_path: Path) -> None:
    write_table(path, [24, 5000, 1024])
    with pytest.raises(InvalidImage, match="Could not open .*: Too much extra metadata in snapshot table entry 1") as e:
        names(path)
    assert e.value.hint == HINT.format("this extra metadata")
    before = path.read_bytes()
    found = diskwright.check(path)
    assert found.failure == "File too large"
    assert (
        str(found.cause) == "ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry 1"
    )
    assert path.read_bytes() == before
    assert repaired(path, "leaks").failure == "File too large"
    assert path.read_bytes() == before
    result = repaired(path)
    assert result.findings[0] == "Discarding too much extra metadata in snapshot table entry 1 (5000 > 1024)"
    assert (result.corruptions, result.leaks, result.check_errors) == (result.corruptions_fixed, result.leaks_fixed, 0)
    qemu_img("check", path)
    assert names(path) == ["a", "b", "c"]
    assert [fields[8] for fields, _ in entries(path.read_bytes())] == [24, 1024, 1024]
    for number in range(3):
        raw = tmp_path / "raw"
        qemu_img("convert", "-l", "abc"[number], "-O", "raw", path, raw)
        data = raw.read_bytes()
        assert [data[i << 16] for i in range(4)] == [i + 1 if i <= number else 0 for i in range(4)]


@pytest.mark.parametrize("number", [0, 1])
def test_a_table_at_a_place_that_cannot_be(path: Path, qemu_img: Callable[..., str], number: int) -> None:
    data = bytearray(path.read_bytes())
    offset = int.from_bytes(data[64:72], "big")
    data[offset + 8 : offset + 1008] = data[offset : offset + 1000]
    data[64:72] = (offset + 8).to_bytes(8, "big")
    if not number:
        data[60:64] = bytes(4)
    path.write_bytes(data)
    for mode in (None, "leaks", "all"):
        found = diskwright.check(path, repair=mode)
        assert found.failure == "Invalid argument"
        assert str(found.cause) == "ERROR snapshot table offset invalid"


def test_too_many(path: Path, qemu_img: Callable[..., str]) -> None:
    write_table(path, [24, 24, 24], 65536)
    with pytest.raises(InvalidImage, match="Snapshot table too large"):
        names(path)
    found = diskwright.check(path)
    assert found.failure == "File too large"
    assert found.cause is not None
    assert str(found.cause) == "ERROR snapshot table too large"
    assert found.cause.hint == HINT.format("all 3 overhanging snapshots")
    result = repaired(path)
    assert result.findings[0] == "Discarding 3 overhanging snapshots"
    assert not result.check_errors
    assert names(path)[:3] == ["a", "b", "c"]
    assert len(names(path)) == 65536
    qemu_img("check", path)


def test_incomplete_entries(path: Path, qemu_img: Callable[..., str]) -> None:
    write_table(path, [0, 24, 8])
    found = diskwright.check(path).findings
    assert found[:2] == [f"ERROR snapshot table entry {number} is incomplete" for number in (0, 2)]
    result = repaired(path)
    assert result.findings[:2] == [f"Repairing snapshot table entry {number} is incomplete" for number in (0, 2)]
    qemu_img("check", path)
    assert [fields[8] for fields, _ in entries(path.read_bytes())] == [24, 24, 24]
    assert names(path) == ["a", "b", "c"]


@pytest.mark.parametrize("extras", [[24, 5000, 24], [0, 24, 8]])
def test_power_fails(path: Path, extras: list[int]) -> None:
    """However far it came, another repair ends it, and no snapshot is lost."""

    def opened(node: Node) -> Qcow2Image:
        def no_child(name: str, role: str) -> Node:
            raise AssertionError(name)

        image = Qcow2Image(node, OpenOptions("disk", True, False, {}, no_child, check=True))
        image.bind("qcow2", lambda image, offset, length: image.map_range(offset, length))  # type: ignore[attr-defined]
        return image

    write_table(path, extras)
    node = RecordingNode(path.read_bytes())
    image = opened(node)
    disk = image.read_at(0, image.size)
    assert not repair(image, "all").check_errors
    chance = random.Random(2)
    for count in range(len(node.steps) + 1):
        for left in (node.after(count), node.after_power_cut(count, chance)):
            repair(opened(left), "all")
            image = opened(left)
            assert not repair(image, "all").findings
            assert [entry.public.name for entry in image.snapshots] == ["a", "b", "c"]
            assert image.read_at(0, image.size) == disk
