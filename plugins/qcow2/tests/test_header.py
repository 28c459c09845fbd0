"""The header: what is read from it, what is refused, and that rewriting keeps it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from diskwright.bounded import BoundedReader
from diskwright.errors import ImageError, InvalidImage, InvalidOption, UnsupportedFeature
from diskwright.node import Node
from diskwright.packed import PackedStruct
from diskwright.testing.packed import require_counterpart
from diskwright_qcow2 import layout, structures
from diskwright_qcow2.extensions import BitmapDirectory, CryptoPointer, Extension, build_extension
from diskwright_qcow2.header import Header
from diskwright_qcow2.layout import Autoclear, Compatible, CompressionType, CryptMethod, Incompatible

MakeNode = Callable[[bytes], Node]
PLAIN = Header(
    version=3,
    cluster_bits=16,
    size=1 << 30,
    l1_size=2,
    l1_table_offset=0x30000,
    refcount_table_offset=0x10000,
    refcount_table_clusters=1,
)


def read(make_node: MakeNode, data: bytes) -> Header:
    return Header.read(BoundedReader(make_node(data), "qcow2"))


def with_field(data: bytes, offset: int, format: str, value: int) -> bytes:
    raw = struct.pack(f">{format}", value)
    return data[:offset] + raw + data[offset + len(raw) :]


@pytest.mark.parametrize(
    "header",
    [
        PLAIN,
        PLAIN.replace(version=2),
        PLAIN.replace(cluster_bits=9, l1_size=1 << 15, backing_file="base.raw", backing_format="raw"),
        PLAIN.replace(backing_file="b\udcff\u00e4", size=12345, compatible_features=Compatible.LAZY_REFCOUNTS),
        PLAIN.replace(
            incompatible_features=Incompatible.DATA_FILE | Incompatible.EXTENDED_L2 | Incompatible.COMPRESSION_TYPE,
            autoclear_features=Autoclear.BITMAPS | Autoclear.RAW_DATA_FILE,
            compression_type=CompressionType.ZSTD,
            l1_size=8,
            data_file="x.raw",
            bitmaps=BitmapDirectory(3, 0x40000, 96),
        ),
        PLAIN.replace(crypt_method=CryptMethod.LUKS, crypto=CryptoPointer(0x50000, 0x1F8000)),
        PLAIN.replace(crypt_method=CryptMethod.AES, refcount_order=6),
        PLAIN.replace(
            unknown_fields=b"\1" * 16,
            unknown_extensions=(Extension(0x12345678, b"abc"), Extension(7, b"")),
            compatible_features=Compatible(1 << 63),
            autoclear_features=Autoclear(1 << 40),
        ),
    ],
)
def test_built_header_reads_back(header: Header, memory_node: MakeNode) -> None:
    data = header.build()
    assert len(data) == header.cluster_size
    assert read(memory_node, data) == header


def test_structures_have_the_sizes_of_the_specification() -> None:
    sizes = {
        structures.HEADER: 72,
        structures.HEADER_V3: 32,
        structures.HEADER_ADDITIONAL: 8,
        structures.FEATURE_NAME: 48,
        structures.BITMAPS_EXTENSION: 24,
        structures.CRYPTO_EXTENSION: 16,
        structures.SNAPSHOT_HEADER: 40,
        structures.SNAPSHOT_EXTRA: 24,
        structures.BITMAP_DIRECTORY_ENTRY: 24,
    }
    assert [declaration.sizeof() for declaration in sizes] == list(sizes.values())


@pytest.mark.parametrize("name", [name for name, value in vars(layout).items() if isinstance(value, PackedStruct)])
def test_what_is_read_with_is_what_is_declared(name: str) -> None:
    require_counterpart(getattr(layout, name), getattr(structures, name))


def test_derived_values() -> None:
    extended = PLAIN.replace(incompatible_features=Incompatible.EXTENDED_L2, l1_size=4)
    assert (PLAIN.l2_entries, PLAIN.l2_entry_size, PLAIN.subcluster_size) == (8192, 8, 65536)
    assert (extended.l2_entries, extended.l2_entry_size, extended.subcluster_size) == (4096, 16, 2048)
    assert (PLAIN.l1_coverage, PLAIN.l1_entries_needed) == (512 << 20, 2)
    assert (PLAIN.refcount_bits, PLAIN.refcount_block_entries) == (16, 32768)
    assert PLAIN.replace(size=1000).disk_size == 512


@pytest.mark.parametrize(
    ("offset", "format", "value", "message"),
    [
        (0, "I", 0, "Image is not in qcow2 format"),
        (4, "I", 4, "Unsupported qcow2 version 4"),
        (4, "I", 1, "Unsupported qcow2 version 1"),
        (8, "Q", 0x10001, "Invalid backing file offset"),
        (20, "I", 8, "Unsupported cluster size: 2^8"),
        (20, "I", 22, "Unsupported cluster size: 2^22"),
        (24, "Q", 2 << 30, "L1 table is too small"),
        (24, "Q", (1 << 64) - 1, "Image is too big"),
        (32, "I", 3, "Unsupported encryption method 3"),
        (32, "I", 2, "Missing CRYPTO header for crypt method 2"),
        (36, "I", (4 << 20) + 1, "Active L1 table too large"),
        (36, "I", 0, "L1 table is too small"),
        (40, "Q", 0x30001, "Active L1 table offset invalid"),
        (40, "Q", 0xFFFFFFFFFFFF0000, "Active L1 table offset invalid"),
        (48, "Q", 0x200, "Reference count table offset invalid"),
        (56, "I", 129, "Reference count table too large"),
        (56, "I", 0, "Image does not contain a reference count table"),
        (60, "I", 65537, "Snapshot table too large"),
        (64, "Q", 8, "Snapshot table offset invalid"),
        (72, "Q", 1 << 63, "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000"),
        (72, "Q", 8, "qcow2: Compression type incompatible feature bit must not be set"),
        (88, "Q", 2, "data-file-raw requires a data file"),
        (96, "I", 7, "Reference count entry width too large; may not exceed 64 bits"),
        (100, "I", 96, "qcow2 header too short"),
        (100, "I", 0x10008, "qcow2 header exceeds cluster size"),
        (104, "B", 1, "qcow2: Compression type incompatible feature bit must be set"),
        (104, "B", 2, "qcow2: unknown compression type: 2"),
    ],
)
def test_refused_fields(memory_node: MakeNode, offset: int, format: str, value: int, message: str) -> None:
    data = with_field(PLAIN.build(), offset, format, value)
    with pytest.raises((InvalidImage, UnsupportedFeature)) as caught:
        read(memory_node, data)
    assert str(caught.value) == message


def test_small_clusters_cannot_have_subclusters(memory_node: MakeNode) -> None:
    header = PLAIN.replace(cluster_bits=13, l1_size=1024, incompatible_features=Incompatible.EXTENDED_L2)
    with pytest.raises(InvalidImage, match="Unsupported subcluster size: 256"):
        read(memory_node, header.build())


def test_unknown_feature_is_named_by_the_image(memory_node: MakeNode) -> None:
    data = with_field(PLAIN.build(), 72, "Q", 0b11 << 9)
    table = layout.FEATURE_NAME.build({"type": 0, "bit": 9, "name": b"quantum clusters".ljust(46, b"\0")})
    extension = build_extension(layout.ExtensionType.FEATURE_NAMES, table)
    data = data[:112] + extension + bytes(8) + data[112 + len(extension) + 8 :]
    with pytest.raises(UnsupportedFeature) as caught:
        read(memory_node, data)
    assert str(caught.value) == ("Unsupported qcow2 feature(s): quantum clusters, Unknown incompatible feature: 400")
    cut = build_extension(layout.ExtensionType.FEATURE_NAMES, b"\0\x0aTest feature")
    data = data[:112] + extension + cut + bytes(8) + data[112 + len(extension) + len(cut) + 8 :]
    with pytest.raises(UnsupportedFeature, match=r": Test feature, Unknown incompatible feature: 200$"):
        read(memory_node, data)


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        (build_extension(0xE2792ACA, b"x" * 16), "ERROR: ext_backing_format: len=16 too large (>=16)"),
        (build_extension(0x0537BE77, bytes(16)), "CRYPTO header extension only expected with LUKS encryption method"),
        (build_extension(0x23852875, bytes(24)), "found bitmaps extension with zero bitmaps"),
        (build_extension(0x23852875, bytes(16)), "bitmaps_ext: Invalid extension length"),
        (
            build_extension(0x23852875, struct.pack(">IIQQ", 1, 1, 32, 0)),
            "bitmaps_ext: Reserved field is not zero",
        ),
        (
            build_extension(0x23852875, struct.pack(">IIQQ", 1, 0, 32, 512)),
            "bitmaps_ext: invalid bitmap directory offset",
        ),
        (struct.pack(">II", 5, 0xFFFFFFF0), "Header extension too large"),
    ],
)
def test_refused_extensions(memory_node: MakeNode, extension: bytes, message: str) -> None:
    data = PLAIN.replace(autoclear_features=Autoclear.BITMAPS).build()
    with pytest.raises(InvalidImage) as caught:
        read(memory_node, data[:112] + extension + bytes(8) + data[112 + len(extension) + 8 :])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        (build_extension(0x0537BE77, bytes(8)), "CRYPTO header extension size 8, but expected size 16"),
        (
            build_extension(0x0537BE77, struct.pack(">QQ", 512, 512)),
            "Encryption header offset '512' is not a multiple of cluster size '65536'",
        ),
    ],
)
def test_refused_luks_pointer(memory_node: MakeNode, extension: bytes, message: str) -> None:
    data = with_field(PLAIN.build(), 32, "I", 2)
    with pytest.raises(InvalidImage) as caught:
        read(memory_node, data[:112] + extension + bytes(8) + data[112 + len(extension) + 8 :])
    assert str(caught.value) == message


def test_bitmaps_that_no_autoclear_bit_vouches_for_are_ignored(memory_node: MakeNode) -> None:
    header = PLAIN.replace(bitmaps=BitmapDirectory(1, 0x40000, 32))
    assert read(memory_node, header.build()).bitmaps is None


def test_backing_file_name_too_long(memory_node: MakeNode) -> None:
    data = PLAIN.replace(backing_file="x").build()
    for length in (1024, 0xFFFFFFFF):
        with pytest.raises(InvalidImage, match="Backing file name too long"):
            read(memory_node, with_field(data, 16, "I", length))


def test_header_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidOption, match="No space left in the file header"):
        PLAIN.replace(cluster_bits=9, backing_file="x" * 400).build()
    with pytest.raises(InvalidOption, match="No space left in the file header"):
        PLAIN.replace(backing_file="x" * 1024).build()


def test_header_cut_anywhere_is_one_error_or_reads(memory_node: MakeNode) -> None:
    data = PLAIN.replace(backing_file="base.qcow2", backing_format="qcow2").build()
    messages = []
    for length in (*range(700), 1024, 4096):
        try:
            read(memory_node, data[:length])
        except ImageError as error:
            messages.append(str(error))
    assert len(messages) >= 112
    assert not any("\n" in message for message in messages)


def test_header_bytes_equal_those_of_the_real_tool(
    memory_node: MakeNode, qemu_img: Callable[..., str], tmp_path: object
) -> None:
    path = f"{tmp_path}/x.qcow2"
    for options in (
        "",
        "compat=v2",
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=2M,compression_type=zstd",
        "lazy_refcounts=on,refcount_bits=1",
        f"data_file={tmp_path}/d.raw,data_file_raw=on",
    ):
        backing = [] if "data_file" in options else ["-u", "-b", "some base", "-F", "qcow2"]
        qemu_img("create", "-q", "-f", "qcow2", "-o", options or "compat=v3", *backing, path, "64M")
        with open(path, "rb") as file:
            stored = file.read()
        header = read(memory_node, stored)
        assert header.build() == stored[: header.cluster_size], options
