"""The qcow2 header as one checked value, and the header cluster built from it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from diskwright.errors import InvalidImage, InvalidOption, UnsupportedFeature
from diskwright.node import SECTOR
from diskwright.record import Record

from . import layout
from .extensions import (
    BitmapDirectory,
    CryptoPointer,
    Extension,
    ExtensionContext,
    Extensions,
    build_extension,
    build_feature_names,
    feature_names,
)
from .layout import Autoclear, Compatible, CompressionType, CryptMethod, ExtensionType, Incompatible

if TYPE_CHECKING:
    from diskwright.bounded import BoundedReader

_MAX_INT64 = 2**63 - 1
_MAX_L1_INDEX = 2**31 - 1


class Header(Record):
    """Header fields and extensions of an image; all of them are within their limits.

    What follows from them is computed once, as reading and writing ask for it all the time.

    :ivar size: virtual disk size as stored, bytes; see :attr:`disk_size`.
    :ivar l1_size: entries of the active L1 table, VM state included.
    :ivar stale_bitmaps: whether the image has bitmaps that were not kept current, so that they are none any more.
    :ivar unknown_fields: header bytes behind those known here, kept on rewriting.
    :ivar unknown_extensions: header extensions not known here, kept on rewriting.
    """

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    crypt_method: CryptMethod = CryptMethod.NONE
    incompatible_features: Incompatible = Incompatible.NONE
    compatible_features: Compatible = Compatible.NONE
    autoclear_features: Autoclear = Autoclear.NONE
    refcount_order: int = layout.DEFAULT_REFCOUNT_ORDER
    compression_type: CompressionType = CompressionType.ZLIB
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    crypto: CryptoPointer | None = None
    bitmaps: BitmapDirectory | None = None
    stale_bitmaps: bool = False
    unknown_fields: bytes = b""
    unknown_extensions: tuple[Extension, ...] = ()

    @cached_property
    def cluster_size(self) -> int:
        """Bytes."""
        return 1 << self.cluster_bits

    @cached_property
    def disk_size(self) -> int:
        """Virtual disk size in whole sectors, bytes."""
        return self.size - self.size % SECTOR

    @cached_property
    def extended_l2(self) -> bool:
        """Whether L2 entries carry a subcluster bitmap."""
        return bool(self.incompatible_features & Incompatible.EXTENDED_L2)

    @cached_property
    def subcluster_size(self) -> int:
        """Smallest unit of allocation, bytes: the cluster without extended L2 entries."""
        return self.cluster_size // layout.SUBCLUSTERS if self.extended_l2 else self.cluster_size

    @cached_property
    def l2_entry_size(self) -> int:
        """Bytes."""
        return layout.L2_ENTRY_SIZE_EXTENDED if self.extended_l2 else layout.L2_ENTRY_SIZE

    @cached_property
    def l2_entries(self) -> int:
        """Clusters that one L2 table maps."""
        return self.cluster_size // self.l2_entry_size

    @cached_property
    def l1_coverage(self) -> int:
        """Guest bytes that one L1 entry maps."""
        return self.l2_entries << self.cluster_bits

    @cached_property
    def l1_entries_needed(self) -> int:
        """L1 entries that the disk takes; those behind them map VM state."""
        return -(-self.size // self.l1_coverage)

    @cached_property
    def refcount_bits(self) -> int:
        """Width of a refcount, bits."""
        return 1 << self.refcount_order

    @cached_property
    def refcount_block_entries(self) -> int:
        """Host clusters that one refcount block covers."""
        return self.cluster_size * 8 // self.refcount_bits

    @cached_property
    def has_data_file(self) -> bool:
        """Whether guest clusters stand in an external data file."""
        return bool(self.incompatible_features & Incompatible.DATA_FILE)

    @cached_property
    def raw_data_file(self) -> bool:
        """Whether the external data file is a raw image of the disk."""
        return bool(self.autoclear_features & Autoclear.RAW_DATA_FILE)

    @classmethod
    def read(cls, reader: BoundedReader, *, repairing: bool = False) -> Header:
        """Read and check the header of the image that starts at offset 0.

        :param repairing: put up with pointers to a refcount table or a snapshot table that cannot be.
        :raises InvalidImage: a field is out of range, contradicts another or points nowhere.
        :raises UnsupportedFeature: the image needs a version or feature that is not known here.
        """
        fields = _read_fields(reader)
        features, extensions = _read_features(reader, fields)
        header = cls(
            version=fields["version"],
            cluster_bits=fields["cluster_bits"],
            size=fields["size"],
            l1_size=fields["l1_size"],
            l1_table_offset=fields["l1_table_offset"],
            refcount_table_offset=fields["refcount_table_offset"],
            refcount_table_clusters=fields["refcount_table_clusters"],
            nb_snapshots=fields["nb_snapshots"],
            snapshots_offset=fields["snapshots_offset"],
            crypt_method=CryptMethod(fields["crypt_method"]),
            incompatible_features=features,
            compatible_features=Compatible(fields["compatible_features"]),
            autoclear_features=Autoclear(fields["autoclear_features"]),
            refcount_order=fields["refcount_order"],
            compression_type=CompressionType(fields["compression_type"]),
            backing_file=_backing_name(reader, fields),
            backing_format=extensions.backing_format,
            data_file=extensions.data_file,
            crypto=extensions.crypto,
            bitmaps=extensions.bitmaps,
            stale_bitmaps=extensions.stale_bitmaps,
            unknown_fields=fields["unknown_fields"],
            unknown_extensions=extensions.unknown,
        )
        if not repairing:
            header.validate_tables()
        header.validate_l1()
        return header

    def validate_tables(self) -> None:
        """Check size and place of the refcount table and the snapshot table.

        :raises InvalidImage: naming the table.
        """
        if self.refcount_table_clusters == 0:
            raise InvalidImage("Image does not contain a reference count table")
        cluster = self.cluster_size
        self._validate_table(
            "Reference count table",
            self.refcount_table_offset,
            self.refcount_table_clusters * cluster,
            layout.MAX_REFCOUNT_TABLE_BYTES,
        )
        smallest = layout.SNAPSHOT_FIELDS.size
        self._validate_table(
            "Snapshot table", self.snapshots_offset, self.nb_snapshots * smallest, layout.MAX_SNAPSHOTS * smallest
        )

    def validate_l1(self) -> None:
        """Check size and place of the active L1 table, and the data file's flags.

        :raises InvalidImage: naming what is wrong.
        """
        l1_bytes = self.l1_size * layout.L1_ENTRY_SIZE
        self._validate_table("Active L1 table", self.l1_table_offset, l1_bytes, layout.MAX_L1_BYTES)
        if self.l1_entries_needed > _MAX_L1_INDEX:
            raise InvalidImage("Image is too big")
        if self.l1_size < self.l1_entries_needed:
            raise InvalidImage("L1 table is too small")
        if self.raw_data_file and not self.has_data_file:
            raise InvalidImage("data-file-raw requires a data file")

    def _validate_table(self, name: str, offset: int, length: int, limit: int) -> None:
        if length > limit:
            raise InvalidImage(f"{name} too large")
        if offset + length > _MAX_INT64 or offset % self.cluster_size:
            raise InvalidImage(f"{name} offset invalid")

    def build(self, *, feature_names: bool = True, name_at: int | None = None) -> bytes:
        """The whole header cluster: header, extensions and backing file name, the rest zeros.

        :param feature_names: whether the image is to name its features, where it can.
        :param name_at: where the backing file name stands, bytes; right behind the extensions if not told.
        :raises InvalidOption: they do not fit into a cluster.
        """
        name = self.backing_name
        extensions = self.build_extensions(feature_names=feature_names)
        place = self.header_length + len(extensions) if name_at is None else name_at
        if len(name) > layout.MAX_BACKING_NAME or place + len(name) > self.cluster_size:
            raise InvalidOption("No space left in the file header")
        head: bytes = layout.HEADER.build(
            {
                "magic": layout.MAGIC,
                "version": self.version,
                "backing_file_offset": place if name else 0,
                "backing_file_size": len(name),
                "cluster_bits": self.cluster_bits,
                "size": self.size,
                "crypt_method": self.crypt_method,
                "l1_size": self.l1_size,
                "l1_table_offset": self.l1_table_offset,
                "refcount_table_offset": self.refcount_table_offset,
                "refcount_table_clusters": self.refcount_table_clusters,
                "nb_snapshots": self.nb_snapshots,
                "snapshots_offset": self.snapshots_offset,
            }
        )
        head += self._build_v3() + extensions
        return (head.ljust(place, b"\0") + name).ljust(self.cluster_size, b"\0")

    @property
    def backing_name(self) -> bytes:
        """Name of the backing file as it is stored; empty without one."""
        return (self.backing_file or "").encode("utf-8", "surrogateescape")

    @property
    def header_length(self) -> int:
        """Bytes of the header proper, as :meth:`build` lays it out."""
        return layout.HEADER_LENGTH_V2 if self.version == 2 else layout.HEADER_LENGTH + len(self.unknown_fields)

    def _build_v3(self) -> bytes:
        if self.version == 2:
            return b""
        tail: bytes = layout.HEADER_V3.build(
            {
                "incompatible_features": self.incompatible_features,
                "compatible_features": self.compatible_features,
                "autoclear_features": self.autoclear_features,
                "refcount_order": self.refcount_order,
                "header_length": self.header_length,
            }
        )
        additional: bytes = layout.HEADER_ADDITIONAL.build(
            {"compression_type": self.compression_type, "padding": bytes(7)}
        )
        return tail + additional + self.unknown_fields

    def build_extensions(self, *, feature_names: bool = True) -> bytes:
        """All extensions as :meth:`build` lays them out, with the end marker."""
        parts: list[tuple[int, bytes]] = []
        if self.backing_format:
            parts.append((ExtensionType.BACKING_FORMAT, self.backing_format.encode("utf-8", "surrogateescape")))
        if self.data_file:
            parts.append((ExtensionType.DATA_FILE, self.data_file.encode("utf-8", "surrogateescape")))
        if self.crypto:
            data = layout.CRYPTO_EXTENSION.build({"offset": self.crypto.offset, "length": self.crypto.length})
            parts.append((ExtensionType.CRYPTO, data))
        if feature_names and self.version > 2 and self.cluster_size >= layout.MIN_CLUSTER_SIZE_FOR_FEATURE_NAMES:
            parts.append((ExtensionType.FEATURE_NAMES, build_feature_names()))
        if self.bitmaps:
            data = layout.BITMAPS_EXTENSION.build(
                {
                    "nb_bitmaps": self.bitmaps.number,
                    "reserved": 0,
                    "bitmap_directory_size": self.bitmaps.size,
                    "bitmap_directory_offset": self.bitmaps.offset,
                }
            )
            parts.append((ExtensionType.BITMAPS, data))
        parts.extend((extension.type, extension.data) for extension in self.unknown_extensions)
        parts.append((ExtensionType.END, b""))
        return b"".join(build_extension(type, data) for type, data in parts)


def _read_fields(reader: BoundedReader) -> dict[str, Any]:
    """All header fields by name; those a version 2 header lacks have the values that it implies."""
    size = reader.node.size
    if size < len(layout.MAGIC) or reader.bytes(0, len(layout.MAGIC), "header") != layout.MAGIC:
        raise InvalidImage("Image is not in qcow2 format")
    if size < layout.HEADER.sizeof():
        raise InvalidImage("qcow2 header too short")
    fields: dict[str, Any] = vars(reader.structure(layout.HEADER, 0, "header"))
    if fields["version"] not in layout.VERSIONS:
        raise UnsupportedFeature(f"Unsupported qcow2 version {fields['version']}")
    if not layout.MIN_CLUSTER_BITS <= fields["cluster_bits"] <= layout.MAX_CLUSTER_BITS:
        raise InvalidImage(f"Unsupported cluster size: 2^{fields['cluster_bits']}")
    fields |= {
        "incompatible_features": 0,
        "compatible_features": 0,
        "autoclear_features": 0,
        "refcount_order": layout.DEFAULT_REFCOUNT_ORDER,
        "header_length": layout.HEADER_LENGTH_V2,
        "compression_type": CompressionType.ZLIB,
        "unknown_fields": b"",
    }
    if fields["version"] > 2:
        fields |= vars(reader.structure(layout.HEADER_V3, layout.HEADER_LENGTH_V2, "header"))
        _read_additional(reader, fields)
    if fields["backing_file_offset"] > 1 << fields["cluster_bits"]:
        raise InvalidImage("Invalid backing file offset")
    return fields


def _read_additional(reader: BoundedReader, fields: dict[str, Any]) -> None:
    length = fields["header_length"]
    if length < layout.HEADER_LENGTH_V3_MIN:
        raise InvalidImage("qcow2 header too short")
    if length > 1 << fields["cluster_bits"]:
        raise InvalidImage("qcow2 header exceeds cluster size")
    if length > layout.HEADER_LENGTH_V3_MIN:
        # The first of the additional fields is a single byte: a header may end behind any of them.
        fields["compression_type"] = reader.bytes(layout.HEADER_LENGTH_V3_MIN, 1, "header")[0]
    if length > layout.HEADER_LENGTH:
        fields["unknown_fields"] = reader.bytes(layout.HEADER_LENGTH, length - layout.HEADER_LENGTH, "header")


def _read_features(reader: BoundedReader, fields: dict[str, Any]) -> tuple[Incompatible, Extensions]:
    features = Incompatible(fields["incompatible_features"])
    # Plain integers: the complement of a flag does not cover bits without a name.
    unknown = int(features) & ~int(Incompatible.SUPPORTED)
    if unknown:
        raise UnsupportedFeature(f"Unsupported qcow2 feature(s): {_unknown_names(reader, fields, unknown)}")
    _validate_features(fields, features)
    context = ExtensionContext(
        cluster_size=1 << fields["cluster_bits"],
        crypt_method=fields["crypt_method"],
        bitmaps_valid=bool(fields["autoclear_features"] & Autoclear.BITMAPS),
    )
    return features, Extensions.parse(_extension_area(reader, fields), context)


def _validate_features(fields: dict[str, Any], features: Incompatible) -> None:
    compression = fields["compression_type"]
    if compression not in tuple(CompressionType):
        raise UnsupportedFeature(f"qcow2: unknown compression type: {compression}")
    flagged = bool(features & Incompatible.COMPRESSION_TYPE)
    if flagged != (compression != CompressionType.ZLIB):
        must = "must not" if flagged else "must"
        raise InvalidImage(f"qcow2: Compression type incompatible feature bit {must} be set")
    subcluster = (1 << fields["cluster_bits"]) // layout.SUBCLUSTERS
    if features & Incompatible.EXTENDED_L2 and subcluster < layout.MIN_SUBCLUSTER_SIZE:
        raise InvalidImage(f"Unsupported subcluster size: {subcluster}")
    if fields["refcount_order"] > layout.MAX_REFCOUNT_ORDER:
        raise InvalidImage("Reference count entry width too large; may not exceed 64 bits")
    if fields["crypt_method"] not in tuple(CryptMethod):
        raise UnsupportedFeature(f"Unsupported encryption method {fields['crypt_method']}")


def _extension_area(reader: BoundedReader, fields: dict[str, Any]) -> bytes:
    start = fields["header_length"]
    end = min(fields["backing_file_offset"] or 1 << fields["cluster_bits"], reader.node.size)
    return reader.bytes(start, max(0, end - start), "header extensions") if start < end else b""


def _unknown_names(reader: BoundedReader, fields: dict[str, Any], mask: int) -> str:
    """Names of the features in the mask, from the image's own table where it has them."""
    parts = []
    for (type, bit), name in feature_names(_extension_area(reader, fields)).items():
        if type == 0 and bit < 64 and mask >> bit & 1:
            parts.append(name)
            mask &= ~(1 << bit)
    if mask:
        parts.append(f"Unknown incompatible feature: {mask:x}")
    return ", ".join(parts)


def _backing_name(reader: BoundedReader, fields: dict[str, Any]) -> str | None:
    offset, length = fields["backing_file_offset"], fields["backing_file_size"]
    if offset == 0:
        return None
    if length > min(layout.MAX_BACKING_NAME, (1 << fields["cluster_bits"]) - offset):
        raise InvalidImage("Backing file name too long")
    name = reader.bytes(offset, length, "backing file name").decode("utf-8", "surrogateescape")
    return name or None
