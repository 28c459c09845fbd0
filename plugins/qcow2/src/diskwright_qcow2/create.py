"""Creating qcow2 images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidOption
from diskwright.hookspecs import CreateOptions, OpenOptions
from diskwright.node import Node, Truncatable, Writable
from diskwright.record import Record

from . import layout
from .allocate import ClusterAllocator, Run
from .encryption import NewEncryption
from .extensions import CryptoPointer
from .header import Header
from .layout import Autoclear, Compatible, CompressionType, CryptMethod, Incompatible
from .options import DEFAULT_CLUSTER_SIZE
from .order import Disk
from .refcount import RefcountBlocks, pack_refcounts, unpack_refcounts

TOO_LARGE = "The image size is too large for file format 'qcow2' (try using a larger cluster size)"

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_PREALLOCATIONS = {mode: mode for mode in ("off", "metadata", "falloc", "full")}

T = TypeVar("T")
_COMPRESSION_TYPES = {"zlib": CompressionType.ZLIB, "zstd": CompressionType.ZSTD}
_V3_NEEDED = "compatibility level 1.1 and above (use version=v3 or greater)"
_SMALLEST_EXTENDED_CLUSTER = layout.SUBCLUSTERS * layout.MIN_SUBCLUSTER_SIZE


class Plan(Record):
    """Creation options after all rules have been applied.

    :ivar preallocation: ``off``, ``metadata``, ``falloc`` or ``full``.
    """

    version: int
    cluster_size: int
    extended_l2: bool
    preallocation: str
    compression: CompressionType
    backing_file: str | None
    backing_format: str | None
    data_file: str | None
    data_file_raw: bool
    lazy_refcounts: bool
    refcount_bits: int
    encryption: NewEncryption | None = None

    @classmethod
    def from_options(cls, options: CreateOptions) -> Plan:
        """Check the options one by one and together.

        :raises InvalidOption: one is out of range, or two contradict each other.
        """
        plan = cls(
            version=_choice("version", _VERSIONS, options.get("compat", "v3")),
            cluster_size=options.get("cluster_size", DEFAULT_CLUSTER_SIZE),
            extended_l2=options.get("extended_l2", False),
            preallocation=_preallocation(options),
            compression=_choice("compression-type", _COMPRESSION_TYPES, options.get("compression_type", "zlib")),
            backing_file=options.get("backing_file") or None,
            backing_format=options.get("backing_fmt") or None,
            data_file=options.get("data_file") or None,
            data_file_raw=options.get("data_file_raw", False),
            lazy_refcounts=options.get("lazy_refcounts", False),
            refcount_bits=options.get("refcount_bits", 1 << layout.DEFAULT_REFCOUNT_ORDER),
            encryption=NewEncryption.from_options(options.values),
        )
        plan._check_clusters()
        plan._check_data_file()
        plan._check_backing()
        plan._check_version()
        return plan

    def _check_clusters(self) -> None:
        size = self.cluster_size
        bits = size.bit_length() - 1
        if size.bit_count() != 1 or not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
            raise InvalidOption("Cluster size must be a power of two between 512 and 2048k")
        if self.extended_l2:
            if self.version < 3:
                raise InvalidOption(f"Extended L2 entries are only supported with {_V3_NEEDED}")
            if size < _SMALLEST_EXTENDED_CLUSTER:
                raise InvalidOption(
                    "Extended L2 entries are only supported with cluster sizes of at least "
                    f"{_SMALLEST_EXTENDED_CLUSTER} bytes"
                )

    def _check_data_file(self) -> None:
        if self.data_file_raw and self.data_file is None:
            raise InvalidOption("data-file-raw requires data-file")
        if self.data_file_raw and self.backing_file is not None:
            raise InvalidOption("Backing file and data-file-raw cannot be used at the same time")
        if self.data_file is not None and self.version < 3:
            raise InvalidOption(f"External data files are only supported with {_V3_NEEDED}")

    def _check_backing(self) -> None:
        if self.backing_file is None:
            if self.backing_format is not None:
                raise InvalidOption("Backing format cannot be used without backing file")
            return
        if self.preallocation != "off" and not self.extended_l2:
            raise InvalidOption("Backing file and preallocation can only be used at the same time if extended_l2 is on")
        if len(self.backing_file.encode("utf-8", "surrogateescape")) > layout.MAX_BACKING_NAME:
            with_format = f" with format '{self.backing_format}'" if self.backing_format else ""
            raise InvalidOption(f"Could not assign backing file '{self.backing_file}'{with_format}: Invalid argument")
        if len((self.backing_format or "").encode("utf-8", "surrogateescape")) > layout.MAX_BACKING_FORMAT:
            raise InvalidOption(f"Parameter 'backing-fmt' does not accept value '{self.backing_format}'")

    def _check_version(self) -> None:
        bits = self.refcount_bits
        if self.lazy_refcounts and self.version < 3:
            raise InvalidOption(f"Lazy refcounts only supported with {_V3_NEEDED}")
        if bits.bit_count() != 1 or bits > 1 << layout.MAX_REFCOUNT_ORDER:
            raise InvalidOption("Refcount width must be a power of two and may not exceed 64 bits")
        if bits != 1 << layout.DEFAULT_REFCOUNT_ORDER and self.version < 3:
            raise InvalidOption(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above "
                "(use version=v3 or greater)"
            )
        if self.compression is not CompressionType.ZLIB and self.version < 3:
            raise InvalidOption(f"Non-zlib compression type is only supported with {_V3_NEEDED}")

    def header(self, size: int) -> Header:
        """The header of the new image before its L1 table has a place.

        :param size: virtual size, bytes.
        :raises InvalidOption: no L1 table may be that large.
        """
        incompatible = Incompatible(0)
        if self.data_file is not None:
            incompatible |= Incompatible.DATA_FILE
        if self.compression is not CompressionType.ZLIB:
            incompatible |= Incompatible.COMPRESSION_TYPE
        if self.extended_l2:
            incompatible |= Incompatible.EXTENDED_L2
        luks_size = self.encryption.header_size if self.encryption else 0
        header = Header(
            version=self.version,
            cluster_bits=self.cluster_size.bit_length() - 1,
            size=size,
            l1_size=0,
            l1_table_offset=0,
            refcount_table_offset=self.cluster_size,
            refcount_table_clusters=1,
            crypt_method=self.encryption.method if self.encryption else CryptMethod.NONE,
            incompatible_features=incompatible,
            compatible_features=Compatible.LAZY_REFCOUNTS if self.lazy_refcounts else Compatible(0),
            autoclear_features=Autoclear.RAW_DATA_FILE if self.data_file_raw else Autoclear(0),
            refcount_order=self.refcount_bits.bit_length() - 1,
            compression_type=self.compression,
            backing_file=self.backing_file,
            backing_format=self.backing_format,
            data_file=self.data_file,
            crypto=CryptoPointer(0, luks_size) if luks_size else None,
        )
        if header.l1_entries_needed * layout.L1_ENTRY_SIZE > layout.MAX_L1_BYTES:
            raise InvalidOption(TOO_LARGE)
        return header.replace(l1_size=header.l1_entries_needed)


def create(target: Node, options: CreateOptions) -> None:
    """Make an empty node a qcow2 image, see the ``create`` hook."""
    plan = Plan.from_options(options)
    header = plan.header(options.size)
    header.build()  # names that do not fit are refused before anything is written
    luks = plan.encryption.build(options.secret) if plan.encryption else b""
    data_file = None
    if plan.data_file is not None:
        reserved = plan.preallocation if plan.preallocation in ("falloc", "full") else "off"
        data_file = options.create_child(plan.data_file, options.size, reserved)
        # A user may have named it with a protocol's prefix; names in images are plain names.
        header = header.replace(data_file=data_file.filename or plan.data_file)
    _lay_out(target, header, luks)
    if plan.preallocation != "off" and options.size:
        _preallocate(target, options, plan, data_file)
    target.flush()


def _lay_out(target: Node, header: Header, luks: bytes) -> None:
    """Write refcount structures, L1 table and header, the header last: without it there is no image yet.

    :param luks: the start of the LUKS header, if there is to be one.
    """
    disk = Disk(target)
    size = header.cluster_size
    disk.write(size, (2 * size).to_bytes(8, "big").ljust(size, b"\0"))
    counts = unpack_refcounts(bytes(size), header.refcount_order)
    counts[:3] = 1
    disk.write(2 * size, pack_refcounts(counts, header.refcount_order))
    blocks = RefcountBlocks(header, BoundedReader(target, "qcow2"), disk.write)
    allocator = ClusterAllocator(blocks, lambda _: None)
    if header.l1_size:
        clusters = -(-header.l1_size * layout.L1_ENTRY_SIZE // size)
        header = header.replace(l1_table_offset=allocator.take_contiguous(clusters).first * size)
    end = header.l1_table_offset + header.l1_size * layout.L1_ENTRY_SIZE
    if header.crypto is not None:
        run = allocator.take_contiguous(-(-header.crypto.length // size))
        header = header.replace(crypto=header.crypto.replace(offset=run.first * size))
        disk.write(run.first * size, luks)
        end = run.end * size
    if (moved := allocator.moved_table) is not None:
        for run in (Run(1, 1), *allocator.outgrown):
            blocks.subtract(np.arange(run.first, run.end))
        blocks.table_offset, blocks.table_clusters = moved.first * size, moved.length
        header = header.replace(
            refcount_table_offset=blocks.table_offset, refcount_table_clusters=blocks.table_clusters
        )
    blocks.write_blocks()
    blocks.write_table()
    if end > target.size:
        extend(target, end, "off")
    disk.barrier()
    disk.write(0, header.build())


def extend(target: Node, size: int, preallocation: str) -> None:
    """Let the file grow by zeros to ``size`` bytes."""
    if isinstance(target, Truncatable):
        target.truncate(size, preallocation)
    elif isinstance(target, Writable):
        chunk = 1 << 20
        for position in range(target.size, size, chunk):
            target.write_at(position, bytes(min(chunk, size - position)))


def _preallocate(target: Node, options: CreateOptions, plan: Plan, data_file: Node | None) -> None:
    """Give all guest clusters a place in the new image."""
    from .image import Qcow2Image

    def open_child(name: str, role: str) -> Node:
        return target if data_file is None else data_file

    # Nothing is written to the clusters: an encrypted image need not be unlocked for that.
    image = Qcow2Image(target, OpenOptions(options.filename, True, plan.encryption is not None, {}, open_child))
    image.data_node = target if data_file is None else data_file
    mode = plan.preallocation if plan.preallocation in ("falloc", "full") else "off"
    coverage = image.header.l1_coverage
    for start in range(0, image.size, coverage):
        end = image.writer.reserve(start, min(image.size, start + coverage))
        if data_file is None and end > target.size:
            extend(target, end, mode)
    image.flush()


def _choice(name: str, choices: Mapping[str, T], value: str) -> T:
    """What a name stands for.

    :param name: the option's name in QEMU's own words, for the message.
    """
    if value not in choices:
        raise InvalidOption(f"Parameter '{name}' does not accept value '{value}'")
    return choices[value]


def _preallocation(options: CreateOptions) -> str:
    mode = _choice("preallocation", _PREALLOCATIONS, options.get("preallocation", "off"))
    # A raw data file is always complete: so are the tables that lead to it.
    return "metadata" if mode == "off" and options.get("data_file_raw") else mode
