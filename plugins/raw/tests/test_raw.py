"""Raw disks: ranges of files, odd lengths, and what the file below is asked to do."""

import json
from pathlib import Path

import numpy as np
import pytest

import diskwright
from diskwright.context import Context
from diskwright.engine.mapping import map_image
from diskwright.errors import ImageError, InvalidOption
from diskwright.extent import Extent, Kind
from diskwright.graph import OpenRequest, open_format
from diskwright.hookspecs import CreateOptions, no_secrets
from diskwright.node import Image, Node
from diskwright.testing import MemoryNode, qemu_img
from diskwright_raw.image import RawImage
from diskwright_raw.plugin import RawDriver

CONTENT = bytes(range(250)) * 4


def opened(node: Node, *, writable: bool = False, **options: str) -> RawImage:
    image = open_format(Context(), node, "disk.raw", "raw", OpenRequest(writable=writable, options=options))
    assert isinstance(image, RawImage)
    return image


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 1000])
def test_size_is_rounded_up_to_sectors(length: int) -> None:
    image = opened(MemoryNode(CONTENT[:length]))
    assert image.size == -(-length // 512) * 512
    assert image.read_at(0, image.size + 10) == CONTENT[:length].ljust(image.size + 10, b"\0")


def test_tail_is_mapped_as_a_hole() -> None:
    node = MemoryNode(CONTENT)
    image = opened(node)
    assert list(image.extents()) == [
        Extent(0, 1000, Kind.DATA, node, 0),
        Extent(1000, 24, Kind.ZERO, node, 1000),
    ]
    assert list(image.extents(1010, 3)) == [Extent(1010, 3, Kind.ZERO, node, 1010)]


def test_range_of_a_file() -> None:
    node = MemoryNode(bytes(300) + CONTENT + b"behind" * 100, writable=True)
    image = opened(node, writable=True, offset="300", size="512")
    assert image.size == 512
    assert image.read_at(500, 20) == CONTENT[500:512] + bytes(8)
    assert list(image.extents(12, 100)) == [Extent(12, 100, Kind.DATA, node, 312)]
    image.write_at(510, b"ab")
    assert node.data == bytes(300) + CONTENT[:510] + b"ab" + CONTENT[512:] + b"behind" * 100
    with pytest.raises(ImageError, match="No space left on device"):
        image.write_at(511, b"ab")
    with pytest.raises(InvalidOption, match="^Cannot resize fixed-size raw disks$"):
        image.truncate(1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": "2000"}, "Offset (2000) cannot be greater than size of the containing file (1024)"),
        ({"size": "1000"}, "Specified size is not multiple of 512"),
        (
            {"offset": "512", "size": "1024"},
            "The sum of offset (512) and size (1024) has to be smaller or equal to the  actual size of the containing "
            "file (1024)",
        ),
        ({"offset": "-1"}, "Value '-1' is out of range for parameter 'offset'"),
        ({"size": "much"}, "Parameter 'size' expects a non-negative number below 2^64"),
    ],
)
def test_ranges_that_do_not_fit(options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        opened(MemoryNode(CONTENT), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (512, 0), (512, 512), (1, 512), (511, 1024)])
def test_map_agrees_with_qemu_img(tmp_path: Path, offset: int, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT * 3)
    options = {"offset": str(offset)} | ({"size": str(size)} if size else {})
    described = ",".join(f"{name}={value}" for name, value in options.items())
    shown = qemu_img("map", "--output=json", "--image-opts", f"driver=raw,{described},file.filename={path}")
    with Context().open(str(path), "raw", options=options) as image:
        ours = [
            (e.offset, e.length, e.kind is Kind.ZERO, e.node_offset) for e in image.extents() if isinstance(e, Extent)
        ]
    theirs = [(e["start"], e["length"], e["zero"], e["offset"]) for e in json.loads(shown.stdout)]
    assert ours == theirs


@pytest.mark.parametrize("tail", [1, 511, 600])
def test_past_the_page_cache_the_last_block_is_mapped_whole(tmp_path: Path, tail: int) -> None:
    path, whole = tmp_path / "disk", 64 << 10
    with path.open("wb") as file:
        file.seek(whole)
        file.write(b"x" * (whole - tail))
    described = {}
    for direct in ("on", "off"):
        name = f"driver=raw,file.filename={path},cache.direct={direct}"
        described[direct] = json.loads(qemu_img("map", "--output=json", "--image-opts", name).stdout)
        tree = {"driver": "raw", "file.filename": str(path), "cache.direct": direct}
        with Context().open("json:" + json.dumps(tree)) as image:
            rows = np.concatenate([table.rows for table in map_image(image)])
        assert rows[["start", "length"]].tolist() == [(row["start"], row["length"]) for row in described[direct]]
    assert described["on"] != described["off"]


def test_zeroing_without_help_from_the_file() -> None:
    node = MemoryNode(b"x" * (3 << 20), writable=True)
    image = opened(node, writable=True)
    image.write_zeroes(5, (2 << 20) + 5, unmap=True)
    assert node.data == b"x" * 5 + bytes((2 << 20) + 5) + b"x" * ((1 << 20) - 10)
    image.discard(0, 5)
    assert node.data[:5] == b"xxxxx"


def test_holes_made_and_filled(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (1 << 20))
    with Context().open(str(path), "raw", writable=True) as image:
        assert isinstance(image, RawImage)
        image.write_zeroes(65536, 65536, unmap=True)
        image.truncate(2 << 20)
        assert image.size == 2 << 20
        assert image.read_at(65530, 12) == b"xxxxxx" + bytes(6)
    assert path.stat().st_size == 2 << 20


class FixedNode(Node):
    """A node of 1024 bytes that can neither be written nor resized."""

    @property
    def size(self) -> int:
        return 1024

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        buffer[:] = bytes(len(buffer))


def test_files_that_can_do_less() -> None:
    image = opened(FixedNode())
    with pytest.raises(InvalidOption):
        image.truncate(2048)
    with pytest.raises(ImageError, match="Read-only file system$"):
        image.write_at(0, b"x")
    options = CreateOptions("x", 2048, {}, lambda name, size, preallocation: FixedNode())
    with pytest.raises(InvalidOption, match="cannot be made larger$"):
        RawDriver().create(FixedNode(), options)
    assert RawDriver().create(FixedNode(), CreateOptions("x", 1024, {}, options.create_child))


def test_image_inside_an_image(tmp_path: Path) -> None:
    """A raw range of a formatted disk reads through that disk's backing layers too."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.write_bytes(b"below" * 1024)
    qemu_img("create", "-q", "-f", "qcow2", "-b", lower, "-F", "raw", upper)
    with Context().open(str(upper)) as disk:
        assert isinstance(disk, Image)
        assert opened(disk, offset="512").read_at(0, 1024) == (b"below" * 1024)[512:1536]


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_create_agrees_with_qemu_img(tmp_path: Path, mode: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    diskwright.create(str(ours), "raw", 1 << 20, preallocation=mode)
    qemu_img("create", "-q", "-f", "raw", "-o", f"preallocation={mode}", theirs, 1 << 20)
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_blocks == theirs.stat().st_blocks


@pytest.mark.parametrize("size", [0, 1, 512, 1000])
def test_measure(size: int) -> None:
    context = Context()
    measured = context.formats.call("measure", "raw", size=size, values={}, ranges=[], source=None, secret=no_secrets)
    shown = json.loads(qemu_img("measure", "-O", "raw", "--size", size, "--output=json").stdout)
    assert (measured.required, measured.fully_allocated) == (shown["required"], shown["fully-allocated"])


class TestGuessedFormat:
    """What is written to a disk whose format was guessed cannot turn it into an image of another format."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Path:
        path = tmp_path / "disk.img"
        path.write_bytes(bytes(65536))
        return path

    @pytest.mark.parametrize(
        ("offset", "data"), [(0, b"QFI\xfb\0\0\0\3"), (0, bytes(3000).replace(bytes(8), b"vhdxfile", 1)), (4, b"fi")]
    )
    def test_headers_are_refused(self, disk: Path, offset: int, data: bytes) -> None:
        if offset:  # only together with what is there
            disk.write_bytes(b"vhdx\0\0le" + bytes(65528))
        before = disk.read_bytes()
        with diskwright.open(disk, writable=True) as image, pytest.raises(OSError, match="Operation not permitted"):
            image.write_at(offset, data)  # type: ignore[attr-defined]
        assert disk.read_bytes() == before

    def test_anything_else_is_written(self, disk: Path) -> None:
        with diskwright.open(disk, writable=True) as image:
            for offset, data in ((0, b"hello"), (4096, b"QFI\xfb\0\0\0\3"), (2040, b"x" * 100)):
                image.write_at(offset, data)  # type: ignore[attr-defined]
                assert image.read_at(offset, len(data)) == data

    def test_who_names_the_format_may_write_anything(self, disk: Path) -> None:
        with diskwright.open(disk, "raw", writable=True) as image:
            image.write_at(0, b"QFI\xfb\0\0\0\3")  # type: ignore[attr-defined]
        assert disk.read_bytes()[:4] == b"QFI\xfb"
