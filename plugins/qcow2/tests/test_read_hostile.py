"""Tables that point where they cannot end in one error, in bounded time and memory."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

from diskwright.errors import ImageError, InvalidImage
from diskwright.extent import Extent, Kind, tabulate
from diskwright.hookspecs import OpenOptions
from diskwright.node import Image, Node
from diskwright_qcow2 import layout
from diskwright_qcow2.codec import compress
from diskwright_qcow2.header import Header
from diskwright_qcow2.image import Qcow2Image
from diskwright_qcow2.layout import Autoclear, CompressionType, Incompatible

MakeNode = Callable[[bytes], Node]
CLUSTER = 512
L1, L2, DATA = 3 * CLUSTER, 4 * CLUSTER, 5 * CLUSTER
SMALL = Header(
    version=3,
    cluster_bits=9,
    size=64 * CLUSTER,
    l1_size=1,
    l1_table_offset=L1,
    refcount_table_offset=CLUSTER,
    refcount_table_clusters=1,
)
TEXT = (b"some guest data " * 32)[:CLUSTER]


def stored_image(entry: int, *, header: Header = SMALL, l1_entry: int = L2 | layout.OFLAG_COPIED) -> bytes:
    """A file of six clusters: one L2 table, whose first entry is given, and one cluster of data."""
    tables = bytes(2 * CLUSTER) + struct.pack(">Q", l1_entry).ljust(CLUSTER, b"\0")
    return header.build() + tables + struct.pack(">Q", entry).ljust(CLUSTER, b"\0") + TEXT


def opened(node: Node) -> Image:
    def no_child(name: str, role: str) -> Node:
        raise AssertionError((name, role))

    image = Qcow2Image(node, OpenOptions("memory", False, False, {}, no_child))
    image.bind("qcow2", lambda image, offset, length: image.map_range(offset, length))  # type: ignore[attr-defined]
    return image


def all_extents(image: Image) -> list[Extent]:
    return [extent for table in tabulate(image.extents()) for extent in table]


def test_sound_image_reads(memory_node: MakeNode) -> None:
    image = opened(memory_node(stored_image(DATA | layout.OFLAG_COPIED)))
    assert image.read_at(0, 1024) == TEXT.ljust(1024, b"\0")
    data, absent = all_extents(image)
    assert data == Extent(0, CLUSTER, Kind.DATA, image.file, DATA)
    assert (absent.offset, absent.end, absent.kind, absent.node_offset) == (CLUSTER, image.size, Kind.ABSENT, None)


def test_file_may_end_inside_the_last_cluster(memory_node: MakeNode) -> None:
    image = opened(memory_node(stored_image(DATA)[: DATA + 100]))
    assert image.read_at(0, CLUSTER) == TEXT[:100].ljust(CLUSTER, b"\0")


@pytest.mark.parametrize(
    ("entry", "bits", "message"),
    [
        (DATA + CLUSTER, 9, r"Cluster offset 0xc00 is behind the end of the file \(L2 offset: 0x800, L2 index: 0x0\)"),
        (1 << 55, 9, "is behind the end of the file"),
        (layout.OFLAG_COMPRESSED | 1 << 40, 9, "Compressed cluster at offset 0x10000000000 is behind the end"),
        (layout.OFLAG_COMPRESSED | DATA, 9, "Compressed cluster at offset 0xa00 is damaged"),
        (layout.OFLAG_COMPRESSED | (1 << 61) | DATA, 9, "is behind the end of the file"),
    ],
)
def test_bad_l2_entries(memory_node: MakeNode, entry: int, bits: int, message: str) -> None:
    image = opened(memory_node(stored_image(entry)))
    with pytest.raises(InvalidImage, match=message):
        image.read_at(0, 1024)


def test_unaligned_entries(memory_node: MakeNode) -> None:
    header = SMALL.replace(cluster_bits=10, size=1 << 16, l1_table_offset=2048, refcount_table_offset=1024)
    for l1_entry, entry, message in (
        (4096 + 512, 0, r"L2 table offset 0x1200 unaligned \(L1 index: 0x0\)"),
        (3072, 512, r"Cluster allocation offset 0x200 unaligned \(L2 offset: 0xc00, L2 index: 0x0\)"),
        (3072, 512 | 1, "Preallocated zero cluster offset 0x200 unaligned"),
    ):
        data = header.build() + bytes(1024) + struct.pack(">Q", l1_entry).ljust(1024, b"\0")
        data += struct.pack(">Q", entry).ljust(8192, b"\0")
        with pytest.raises(InvalidImage, match=message):
            all_extents(opened(memory_node(data)))


def test_zero_flag_needs_version_3(memory_node: MakeNode) -> None:
    assert all_extents(opened(memory_node(stored_image(1))))[0].kind is Kind.ZERO
    image = opened(memory_node(stored_image(1, header=SMALL.replace(version=2))))
    with pytest.raises(InvalidImage, match="Zero cluster entry found in pre-v3 image"):
        image.read_at(0, 512)


def test_l2_table_outside_the_file(memory_node: MakeNode) -> None:
    for l1_entry in (1 << 40, len(stored_image(0))):
        image = opened(memory_node(stored_image(0, l1_entry=l1_entry)))
        with pytest.raises(InvalidImage, match="L2 table 0 at offset"):
            image.read_at(0, 512)


def test_conflicting_subcluster_bits(memory_node: MakeNode) -> None:
    header = SMALL.replace(
        cluster_bits=14,
        size=1 << 20,
        l1_table_offset=2 << 14,
        refcount_table_offset=1 << 14,
        incompatible_features=Incompatible.EXTENDED_L2,
    )
    for entry, bitmap in ((4 << 14, 1 << 32 | 1), (0, 1), (4 << 14, (1 << 64) - 1)):
        data = header.build() + bytes(1 << 14) + struct.pack(">Q", 3 << 14).ljust(1 << 14, b"\0")
        data += struct.pack(">QQ", entry, bitmap).ljust(1 << 15, b"\0")
        with pytest.raises(InvalidImage, match="Invalid cluster entry found"):
            all_extents(opened(memory_node(data)))


def test_data_file_contradictions(memory_node: MakeNode) -> None:
    header = SMALL.replace(
        incompatible_features=Incompatible.DATA_FILE,
        autoclear_features=Autoclear.RAW_DATA_FILE,
        data_file="x",
    )
    for entry, message in (
        (layout.OFLAG_COMPRESSED | DATA, "Compressed cluster entry found in image with external data file"),
        (CLUSTER | layout.OFLAG_COPIED, "External data file host cluster offset 0x200 does not match guest"),
    ):
        node = memory_node(stored_image(entry, header=header))
        image = Qcow2Image(node, OpenOptions("memory", False, False, {}, lambda name, role: memory_node(bytes(99999))))
        with pytest.raises(InvalidImage, match=message):
            list(image.map_range(0, image.size))


def test_missing_sector_padding_of_compressed_data_is_tolerated(memory_node: MakeNode) -> None:
    blob = compress(CompressionType.ZLIB, TEXT, CLUSTER)
    assert blob is not None
    data = stored_image(layout.compressed_descriptor(DATA, len(blob), 9))[:DATA]
    assert opened(memory_node(data + blob)).read_at(0, CLUSTER) == TEXT
    with pytest.raises(InvalidImage, match="Compressed cluster at offset 0xa00 is damaged"):
        opened(memory_node(data + blob[:-4])).read_at(0, CLUSTER)
    with pytest.raises(InvalidImage, match="is behind the end"):
        opened(memory_node(data)).read_at(0, CLUSTER)


def test_image_cut_anywhere_is_one_error_or_reads(memory_node: MakeNode) -> None:
    data = stored_image(DATA)
    messages = []
    for length in range(0, len(data), 37):
        try:
            opened(memory_node(data[:length])).read_at(0, 4096)
        except ImageError as error:
            messages.append(str(error))
    assert len(messages) > DATA // 37 - 2
    assert not any("\n" in message for message in messages)


def test_one_l2_table_used_many_times_is_refused_at_once(memory_node: MakeNode) -> None:
    count = 1 << 20
    header = SMALL.replace(size=count * 64 * CLUSTER, l1_size=count, l1_table_offset=5 * CLUSTER)
    table = struct.pack(">64Q", *(DATA + CLUSTER * (n % 2) for n in range(64)))
    data = header.build() + bytes(3 * CLUSTER) + table + struct.pack(">Q", L2) * count
    started = time.monotonic()
    with pytest.raises(InvalidImage, match="L2 table at offset 0x800 is used by several L1 entries"):
        all_extents(opened(memory_node(data)))
    assert time.monotonic() - started < 3
