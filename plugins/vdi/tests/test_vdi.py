"""VDI: what is written on disk, what is refused, what is found to be wrong, in agreement with the real qemu-img."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from diskwright import blocks
from diskwright.context import Context
from diskwright.engine.checking import ChecksUnsupported, check
from diskwright.errors import ImageError, InvalidImage, InvalidOption
from diskwright.extent import Extent, ExtentTable, Flag, Kind
from diskwright.facts import CheckResult
from diskwright.graph import OpenRequest, open_format
from diskwright.hookspecs import CreateOptions
from diskwright.node import Node
from diskwright.testing import MemoryNode, RecordingNode, qemu_img
from diskwright_vdi import image as image_module
from diskwright_vdi.image import VdiImage
from diskwright_vdi.layout import HEADER, HEADER_SIZE

MIB = 1 << 20
UUIDS = slice(0x188, 0x1A8)


def created(size: int, *, static: bool = False) -> MemoryNode:
    node = MemoryNode(writable=True)

    def no_child(name: str, size: int, preallocation: str) -> Node:
        raise AssertionError(name)

    Context().formats.call("create", "vdi", target=node, options=CreateOptions("x", size, {"static": static}, no_child))
    return node


def opened(node: Node, *, writable: bool = False) -> VdiImage:
    image = open_format(Context(), node, "x.vdi", "vdi", OpenRequest(writable=writable))
    assert isinstance(image, VdiImage)
    return image


def extents(image: VdiImage) -> list[Extent]:
    return [extent for table in image.extents() if isinstance(table, ExtentTable) for extent in table]


def checked(image: VdiImage) -> CheckResult:
    result = Context().formats.call("check", "vdi", image=image, repair=None)
    assert isinstance(result, CheckResult)
    return result


def test_header_is_one_sector() -> None:
    assert HEADER.sizeof() == HEADER_SIZE


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("size", [0, 512, MIB, 3 * MIB + 512, 20 * MIB])
def test_new_file_is_that_of_qemu_img(tmp_path: Path, size: int, static: bool) -> None:
    path = tmp_path / "theirs"
    qemu_img("create", "-q", "-f", "vdi", "-o", f"static={'on' if static else 'off'}", path, size)
    ours, theirs = created(size, static=static).data, bytearray(path.read_bytes())
    assert ours[UUIDS] != created(size, static=static).data[UUIDS]
    ours[UUIDS] = theirs[UUIDS]
    assert ours == theirs


def test_too_large() -> None:
    with pytest.raises(InvalidOption, match=r"^Unsupported VDI image size \(size is 0x2010000000000, max supported is"):
        created(513 << 40)


def test_large_disk_is_mapped_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "WINDOW", 1 << 12)
    monkeypatch.setattr(image_module, "MAX_CHANGED", 4)
    node = created(1 << 40)
    image = opened(node, writable=True)
    wanted = {}
    for number in range(16):
        offset = (number * 7 % 16) * (64 << 30) + number * 4096
        wanted[offset] = bytes([number + 1]) * 100
        image.write_at(offset, wanted[offset])
        assert image.block_map.changed < 4
    image.close()
    image = opened(node)
    assert checked(image) == CheckResult()
    assert {offset: image.read_at(offset, 100) for offset in wanted} == wanted
    assert sum(extent.length for extent in extents(image) if extent.kind is Kind.DATA) == 16 * MIB
    assert sum(extent.length for extent in extents(image)) == 1 << 40


def test_neighbours_in_disk_and_file_are_one_extent() -> None:
    node = created(8 * MIB)
    image = opened(node, writable=True)
    image.write_at(2 * MIB, bytes([1]) * 3 * MIB)
    image.write_at(MIB, b"x")
    assert extents(image) == [
        Extent(0, MIB, Kind.ZERO, node),
        Extent(MIB, MIB, Kind.DATA, node, 1024 + 3 * MIB),
        Extent(2 * MIB, 3 * MIB, Kind.DATA, node, 1024),
        Extent(5 * MIB, 3 * MIB, Kind.ZERO, node),
    ]


def test_static_image_may_have_holes() -> None:
    node = created(2 * MIB, static=True)
    assert extents(opened(node)) == [Extent(0, 2 * MIB, Kind.DATA, node, 1024, Flag.SPARSE)]


def test_data_reaches_the_file_before_the_map_and_the_map_before_the_header() -> None:
    node = RecordingNode(created(4 * MIB).data)
    image = opened(node, writable=True)
    image.write_at(0, b"x")
    assert [offset for offset, _ in node.steps] == [1024]
    image.flush()
    assert [offset for offset, _ in node.steps] == [1024, 0x200, 0x184]
    image.close()


def test_block_that_the_header_does_not_count_is_not_overwritten() -> None:
    """As after a crash between the last two steps of a flush."""
    node = created(4 * MIB)
    image = opened(node, writable=True)
    image.write_at(0, b"first")
    image.close()
    struct.pack_into("<I", node.data, 0x184, 0)
    image = opened(node, writable=True)
    image.write_at(MIB, b"second")
    image.close()
    image = opened(node)
    assert image.read_at(0, 5) + image.read_at(MIB, 6) == b"firstsecond"
    assert checked(image) == CheckResult()


def test_full_image_is_not_written_past_its_end() -> None:
    node = created(2 * MIB)
    struct.pack_into("<I", node.data, 0x184, 2)
    with pytest.raises(InvalidImage, match="all of the 2 blocks are in use"):
        opened(node, writable=True).write_at(0, b"x")


@pytest.mark.parametrize(
    ("offset", "code", "value"),
    [
        (0x40, "<I", 0x12345678),
        (0x44, "<I", 0x00010002),
        (0x154, "<I", 513),
        (0x158, "<I", 1025),
        (0x168, "<I", 4096),
        (0x178, "<I", 2 * MIB),
        (0x170, "<Q", 5 * MIB),
        (0x1A8, "<I", 1),
        (0x1B8, "<I", 1),
    ],
)
def test_refusals_are_those_of_qemu_img(tmp_path: Path, offset: int, code: str, value: int) -> None:
    path = tmp_path / "x.vdi"
    node = created(4 * MIB)
    struct.pack_into(code, node.data, offset, value)
    path.write_bytes(node.data)
    theirs = qemu_img("info", "-f", "vdi", path, check=False)
    with pytest.raises(ImageError) as caught:
        Context().open(str(path), "vdi")
    ours = str(caught.value)
    assert theirs.returncode == 1
    assert ours.replace("VDI: ", "") == theirs.stderr.strip().removeprefix("qemu-img: ")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0x17C, 512, "512 extra bytes for each block"),
        (0x180, 0x1FFFFF81, "too many blocks"),
        (0x180, 0x1FFFFF80, "header, block map and blocks overlap"),
        (0x154, 0, "header, block map and blocks overlap"),
        (0x154, 1024, "header, block map and blocks overlap"),
    ],
)
def test_what_cannot_be_is_refused(offset: int, value: int, message: str) -> None:
    node = created(4 * MIB)
    struct.pack_into("<I", node.data, offset, value)
    with pytest.raises(ImageError, match=message):
        opened(node)


def test_map_outside_of_the_file_is_refused() -> None:
    node = created(4 * MIB)
    struct.pack_into("<II", node.data, 0x154, 1 << 20, 2 << 20)
    with pytest.raises(InvalidImage, match="block map at offset 1048576, 16 bytes, is outside the file of 1024 bytes"):
        opened(node)


def test_block_behind_the_end_of_the_file_is_refused() -> None:
    node = created(4 * MIB, static=True)
    del node.data[3 * MIB :]
    image = opened(node)
    assert image.read_at(0, 1 * MIB) == bytes(MIB)
    with pytest.raises(InvalidImage, match="block at offset .* is outside the file"):
        image.read_at(0, 4 * MIB)


def test_discarded_blocks_read_as_zeros() -> None:
    node = created(4 * MIB, static=True)
    node.data[1024:] = b"x" * (4 * MIB)
    struct.pack_into("<I", node.data, 0x204, 0xFFFFFFFE)
    image = opened(node)
    assert image.read_at(MIB, MIB) == bytes(MIB)
    assert image.read_at(0, MIB) == b"x" * MIB


Damage = Callable[[bytearray], None]
DAMAGES: dict[str, Damage] = {
    "none": lambda data: None,
    "twice": lambda data: struct.pack_into("<I", data, 0x204, 0),
    "three times": lambda data: struct.pack_into("<II", data, 0x204, 0, 0),
    "too large": lambda data: struct.pack_into("<I", data, 0x208, 9),
    "unallocated": lambda data: struct.pack_into("<I", data, 0x208, 0xFFFFFFFF),
    "discarded": lambda data: struct.pack_into("<I", data, 0x208, 0xFFFFFFFE),
    "count": lambda data: struct.pack_into("<I", data, 0x184, 1),
    "all": lambda data: struct.pack_into("<IIII", data, 0x200, 3, 3, 4, 5),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_finds_what_qemu_img_finds(tmp_path: Path, damage: str) -> None:
    node = created(4 * MIB, static=True)
    DAMAGES[damage](node.data)
    path = tmp_path / "x.vdi"
    path.write_bytes(node.data)
    theirs = qemu_img("check", "-f", "vdi", path, check=False)
    result = checked(opened(node))
    assert sorted(result.findings) == sorted(line for line in theirs.stderr.splitlines() if line.startswith("ERROR"))
    assert result.corruptions == len(result.findings)
    assert theirs.returncode == (2 if result.corruptions else 0)


def test_check_finds_blocks_behind_the_end_of_the_file() -> None:
    node = created(4 * MIB, static=True)
    del node.data[2 * MIB :]
    result = checked(opened(node))
    assert result.findings == [
        "ERROR: block index 2 is behind the end of the file, is 2",
        "ERROR: block index 3 is behind the end of the file, is 3",
    ]


def test_findings_are_counted_but_not_all_kept() -> None:
    node = created(20_000 * MIB)
    image = opened(node)
    node.data[0x200 : 0x200 + 80_000] = bytes(80_000)
    result = checked(image)
    assert result.corruptions == 20_001
    assert len(result.findings) == result.MAX_FINDINGS


@pytest.mark.parametrize("repair", ["leaks", "all"])
def test_nothing_can_be_repaired(repair: str) -> None:
    with pytest.raises(ChecksUnsupported):
        check(Context(), opened(created(MIB)), repair)
