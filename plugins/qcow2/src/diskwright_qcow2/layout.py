"""On-disk structures, constants and limits of qcow2, one group per section of docs/interop/qcow2.rst. Big-endian.

The structures are declared in :mod:`.structures`, with what their fields mean; here they stand in the form in which
they are read and built. Sequences of integers (L1, L2, refcount and bitmap tables) are read as numpy arrays of the
dtypes declared here.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from diskwright.packed import PackedStruct

# Header

MAGIC = b"QFI\xfb"
VERSIONS = (2, 3)

HEADER = PackedStruct(
    ">",
    magic="4s",
    version="I",
    backing_file_offset="Q",
    backing_file_size="I",
    cluster_bits="I",
    size="Q",
    crypt_method="I",
    l1_size="I",
    l1_table_offset="Q",
    refcount_table_offset="Q",
    refcount_table_clusters="I",
    nb_snapshots="I",
    snapshots_offset="Q",
)
BACKING_FILE_OFFSET_FIELD = 8
"""Where the place of the backing file's name stands in the header, bytes."""
REFCOUNT_TABLE_FIELD = 48
"""The same of the refcount table's place, which its size follows."""
HEADER_LENGTH_V2 = 72

HEADER_V3 = PackedStruct(
    ">",
    incompatible_features="Q",
    compatible_features="Q",
    autoclear_features="Q",
    refcount_order="I",
    header_length="I",
)
INCOMPATIBLE_FIELD = 72
"""Where the incompatible features stand in a version 3 header, bytes."""
AUTOCLEAR_FIELD = 88
"""The same of the autoclear features."""
HEADER_LENGTH_V3_MIN = 104

# Additional fields

HEADER_ADDITIONAL = PackedStruct(
    ">",
    compression_type="B",
    padding="7s",
)
HEADER_LENGTH = 112
"""Length of all fields known here, bytes."""

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_REFCOUNT_ORDER = 6
DEFAULT_REFCOUNT_ORDER = 4
"""16 bits, the only width of version 2."""
MAX_BACKING_NAME = 1023
"""bytes"""
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20


class CryptMethod(IntEnum):
    """How guest clusters are encrypted."""

    NONE = 0
    AES = 1
    LUKS = 2


class CompressionType(IntEnum):
    """Codec of all compressed clusters of an image."""

    ZLIB = 0
    """raw deflate"""
    ZSTD = 1


class Incompatible(IntFlag):
    """Features without which the image cannot be read correctly."""

    NONE = 0
    DIRTY = 1 << 0
    """refcounts may be wrong: the image was not closed cleanly"""
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION_TYPE = 1 << 3
    EXTENDED_L2 = 1 << 4

    SUPPORTED = (1 << 5) - 1


class Compatible(IntFlag):
    """Features that may be ignored."""

    NONE = 0
    LAZY_REFCOUNTS = 1 << 0


class Autoclear(IntFlag):
    """Features whose bit is cleared by a writer that does not know them."""

    NONE = 0
    BITMAPS = 1 << 0
    RAW_DATA_FILE = 1 << 1

    SUPPORTED = (1 << 2) - 1


# Header extensions

EXTENSION_HEADER = PackedStruct(
    ">",
    type="I",
    length="I",
)


class ExtensionType(IntEnum):
    """Header extensions known here; others are kept as they are."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    CRYPTO = 0x0537BE77
    DATA_FILE = 0x44415441


MAX_BACKING_FORMAT = 15
"""bytes"""

# Feature name table

FEATURE_NAME = PackedStruct(
    ">",
    type="B",
    bit="B",
    name="46s",
)
FEATURE_NAMES = (
    # Feature type (0 incompatible, 1 compatible, 2 autoclear), bit, name.
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)
MIN_CLUSTER_SIZE_FOR_FEATURE_NAMES = 8192
"""In smaller clusters the table would take the room of the backing file name."""

# Bitmaps extension

BITMAPS_EXTENSION = PackedStruct(
    ">",
    nb_bitmaps="I",
    reserved="I",
    bitmap_directory_size="Q",
    bitmap_directory_offset="Q",
)
MAX_BITMAPS = 65535
MAX_BITMAP_DIRECTORY_BYTES = MAX_BITMAPS * 1024

# Full disk encryption header pointer

CRYPTO_EXTENSION = PackedStruct(
    ">",
    offset="Q",
    length="Q",
)

# Host cluster management

REFCOUNT_TABLE_DTYPE = ">u8"
REFCOUNT_TABLE_ENTRY_SIZE = 8
REFCOUNT_TABLE_OFFSET_MASK = 0xFFFFFFFFFFFFFE00
REFCOUNT_TABLE_RESERVED_MASK = 0x1FF

# Cluster mapping

L1_DTYPE = ">u8"
L1_ENTRY_SIZE = 8
L2_DTYPE = ">u8"
L2_ENTRY_SIZE = 8
L2_ENTRY_SIZE_EXTENDED = 16
"""The entry proper and the subcluster allocation bitmap, one 64-bit integer each."""

OFLAG_COPIED = 1 << 63
"""The refcount is exactly one: may be written in place."""
OFLAG_COMPRESSED = 1 << 62
OFLAG_ZERO = 1 << 0
"""The cluster reads as zeros (version 3, standard entries only)."""
OFFSET_MASK = 0x00FFFFFFFFFFFE00
"""Host offset in L1 entries, standard L2 entries and bitmap table entries."""
L1_RESERVED_MASK = 0x7F000000000001FF
L2_RESERVED_MASK = 0x3F000000000001FE
"""of standard cluster descriptors"""
MAX_HOST_OFFSET = 1 << 56

SUBCLUSTERS = 32
"""Subclusters of a cluster with extended L2 entries."""
MIN_SUBCLUSTER_SIZE = 512
SUBCLUSTERS_ALLOCATED_MASK = (1 << 32) - 1
"""Bits 0-31 of the bitmap: subcluster n is allocated."""
SUBCLUSTERS_ZERO_SHIFT = 32
"""Bits 32-63 of the bitmap: subcluster n - 32 reads as zeros."""

# Compressed cluster descriptor

COMPRESSED_SECTOR = 512
"""The length of compressed data is counted in units of this many bytes."""


def compressed_size_shift(cluster_bits: int) -> int:
    """Bit of a compressed cluster descriptor where the count of additional sectors starts; below is the host offset."""
    return 62 - (cluster_bits - 8)


def compressed_location(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Host offset and length, both in bytes, that a compressed L2 entry states."""
    shift = compressed_size_shift(cluster_bits)
    offset = entry & ((1 << shift) - 1)
    additional = (entry & (OFLAG_COMPRESSED - 1)) >> shift
    return offset, (additional + 1) * COMPRESSED_SECTOR - offset % COMPRESSED_SECTOR


def compressed_descriptor(offset: int, length: int, cluster_bits: int) -> int:
    """The L2 entry of ``length`` > 0 bytes of compressed data at host ``offset``."""
    additional = (offset % COMPRESSED_SECTOR + length - 1) // COMPRESSED_SECTOR
    return OFLAG_COMPRESSED | additional << compressed_size_shift(cluster_bits) | offset


# Snapshots


SNAPSHOT_FIELDS = struct.Struct(">QIHHIIQII")
"""The fields of an entry, without their names: tables may have tens of thousands."""
SNAPSHOT_EXTRA_FIELDS = struct.Struct(">QQQ")
"""The extra data known here."""
SNAPSHOT_EXTRA_MIN_V3 = 16
"""Version 3 requires the size of the VM state and of the disk, bytes."""
SNAPSHOT_ALIGNMENT = 8
NO_ICOUNT = 0xFFFFFFFFFFFFFFFF
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20
MAX_SNAPSHOT_EXTRA_BYTES = 1024
MAX_SNAPSHOT_ID_BYTES = 127
MAX_SNAPSHOT_NAME_BYTES = 255

# Bitmaps

BITMAP_DIRECTORY_ENTRY = PackedStruct(
    ">",
    bitmap_table_offset="Q",
    bitmap_table_size="I",
    flags="I",
    type="B",
    granularity_bits="B",
    name_size="H",
    extra_data_size="I",
)
BITMAP_ALIGNMENT = 8
BITMAP_TYPE_DIRTY_TRACKING = 1
BITMAP_TABLE_DTYPE = ">u8"
BITMAP_TABLE_ENTRY_SIZE = 8
BITMAP_TABLE_ALL_ONES = 1
"""In an entry without offset: the bits of that cluster are all ones."""
BITMAP_TABLE_RESERVED_MASK = 0xFF000000000001FE
MIN_BITMAP_GRANULARITY_BITS, MAX_BITMAP_GRANULARITY_BITS = 9, 31
MAX_BITMAP_NAME_BYTES = 1023
MAX_BITMAP_TABLE_ENTRIES = 1 << 27
MAX_BITMAP_BYTES = 512 << 20
"""of one bitmap's data"""


class BitmapFlag(IntFlag):
    """State of a persistent bitmap."""

    IN_USE = 1 << 0
    """not saved correctly: the contents cannot be relied on"""
    AUTO = 1 << 1
    """to be kept up to date by whoever writes the image"""
    EXTRA_DATA_COMPATIBLE = 1 << 2

    SUPPORTED = IN_USE | AUTO
