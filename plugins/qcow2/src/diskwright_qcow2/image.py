"""A qcow2 image as a node."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidImage, UnsupportedFeature
from diskwright.hookspecs import Description, OpenOptions, Snapshot
from diskwright.node import Buffer, Node, Placement, WritableImage, read_through

from .header import Header
from .layout import Compatible, CryptMethod, Incompatible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diskwright.extent import Extent, ExtentTable

    from .bitmaps import BitmapEntry
    from .l2 import L2Tables, Table
    from .snapshots import SnapshotEntry
    from .writer import ImageWriter

_ENCRYPTION_NAMES = {CryptMethod.AES: "aes", CryptMethod.LUKS: "luks"}


class Qcow2Image(WritableImage):
    """An opened qcow2 image.

    :ivar header: the header as it is in the file, or will be after the next flush.
    :ivar reader: for metadata in :attr:`file`.
    :ivar data_node: the node that guest clusters stand in: :attr:`file`, or the external data file.
    """

    def __init__(self, source: Node, options: OpenOptions) -> None:
        super().__init__()
        self.filename = options.filename
        self.read_only = not options.writable
        self.file = source
        self.reader = BoundedReader(source, "qcow2")
        self.header = header = Header.read(self.reader)
        self.backing_file = header.backing_file
        self.backing_format = header.backing_format
        self.cluster_size = header.cluster_size
        self.encrypted = header.crypt_method != CryptMethod.NONE
        self.data_node = source
        if options.describe_only:
            return
        if self.encrypted:
            name = _ENCRYPTION_NAMES[header.crypt_method]
            raise UnsupportedFeature(f"qcow2: encrypted images (encryption format '{name}') are not supported")
        if options.writable:
            self._require_clean()
        _ = self.l2, self.snapshots  # what they cannot read is an error of opening
        if header.has_data_file:
            if not header.data_file:
                raise InvalidImage("'data-file' is required for this image", filename=source.filename)
            self.data_node = options.open_child(header.data_file, "data-file")

    def _require_clean(self) -> None:
        features = self.header.incompatible_features
        if features & Incompatible.CORRUPT:
            raise InvalidImage("qcow2: Image is corrupt; cannot be opened read/write", filename=self.file.filename)
        if features & Incompatible.DIRTY:
            raise UnsupportedFeature("qcow2: Image was not closed cleanly; it cannot be written before it is repaired")

    @property
    def size(self) -> int:
        """Virtual disk size, bytes."""
        return self.header.disk_size

    @cached_property
    def l2(self) -> L2Tables:
        """The active L1 table and the L2 tables behind it."""
        from .l2 import L2Tables

        return L2Tables(self.reader, self.header)

    @property
    def l1(self) -> Table:
        """The active L1 table in native byte order."""
        return self.l2.l1

    @cached_property
    def snapshots(self) -> list[SnapshotEntry]:
        """The internal snapshots, as the table in the file lists them."""
        from .snapshots import read_snapshots

        return read_snapshots(self.reader, self.header)

    @cached_property
    def bitmaps(self) -> list[BitmapEntry]:
        """The persistent dirty bitmaps, as the directory in the file lists them."""
        from .bitmaps import read_bitmaps

        return read_bitmaps(self.reader, self.header)

    @cached_property
    def metadata_preallocated(self) -> bool:
        """Whether clusters that are allocated in the tables may be holes of the file; looked up once."""
        from .preallocation import is_metadata_preallocated

        return is_metadata_preallocated(self)

    def children(self) -> dict[str, Node]:
        if self.data_node is self.file:
            return {"file": self.file}
        return {"file": self.file, "data-file": self.data_node}

    def map_range(self, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """The map of a guest range, see the ``block_status`` hook."""
        from .mapping import map_range

        return map_range(self, offset, length)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Read guest bytes through all layers; short reads take a short way."""
        from .reading import read_simply

        view = memoryview(buffer).cast("B")
        if not read_simply(self, offset, view):
            read_through(self, offset, view)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """Read guest bytes from compressed clusters; threads may call this in parallel."""
        from .reading import read_compressed

        read_compressed(self, offset, buffer)

    def snapshot_list(self) -> Sequence[Snapshot]:
        """The internal snapshots in the order of the table."""
        return [entry.public for entry in self.snapshots]

    def describe(self) -> Description:
        """What ``info`` shows, in the order of QEMU's output."""
        return Description(
            specific=self._specific(),
            dirty=bool(self.header.incompatible_features & Incompatible.DIRTY),
            cluster_size=self.cluster_size,
        )

    def _specific(self) -> dict[str, Any]:
        from .bitmaps import describe_bitmaps

        header = self.header
        v3 = header.version > 2
        facts: dict[str, Any] = {
            "compat": "1.1" if v3 else "0.10",
            "compression-type": header.compression_type.name.lower(),
        }
        if v3:
            facts["lazy-refcounts"] = bool(header.compatible_features & Compatible.LAZY_REFCOUNTS)
        if self.bitmaps:
            facts["bitmaps"] = describe_bitmaps(self.bitmaps)
        facts["refcount-bits"] = header.refcount_bits
        if header.has_data_file and header.data_file:
            facts["data-file"] = header.data_file
        if self.encrypted:
            facts["encrypt"] = {"format": _ENCRYPTION_NAMES[header.crypt_method]}
        if header.has_data_file:
            facts["data-file-raw"] = header.raw_data_file
        if v3:
            facts["corrupt"] = bool(header.incompatible_features & Incompatible.CORRUPT)
            facts["extended-l2"] = header.extended_l2
        return facts

    @cached_property
    def writer(self) -> ImageWriter:
        """What changes the image; using it marks the image as in use where the format asks for that."""
        from .writer import ImageWriter

        return ImageWriter(self)

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Find host clusters for a guest range; new ones unless the image owns the present ones alone."""
        return self.writer.allocate(offset, length)

    def link(self, placements: Sequence[Placement]) -> None:
        """Let the L2 tables refer to what has been written."""
        self.writer.link(placements)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a guest range read as zeros, by L2 entries where that is possible."""
        from .zeroing import write_zeroes

        with self.lock:
            write_zeroes(self, self.writer, offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give up the whole clusters of a guest range; they read as zeros then, or stay as they are."""
        from .zeroing import discard

        with self.lock:
            discard(self, self.writer, offset, length)

    def compress(self, data: memoryview) -> bytes | None:
        """One cluster compressed as this image does it; ``None`` if that does not make it smaller."""
        from .codec import compress

        return compress(self.header.compression_type, data, self.header.cluster_size)

    def write_compressed(self, offset: int, blob: bytes) -> None:
        """Store the compressed cluster at guest ``offset``, a multiple of the cluster size."""
        with self.lock:
            self.writer.write_compressed(offset, blob)

    def new_reads_zero(self) -> bool:
        """Whether all reads as zeros after creation: with preallocation, if the file that it took space in does."""
        preallocated = bool(self.header.has_data_file or self.l1.any())
        return self.data_node.new_reads_zero() if preallocated else True

    def flush(self) -> None:
        """Write back all metadata, in an order that keeps the image sound at every instant."""
        if "writer" in self.__dict__:
            with self.lock:
                self.writer.flush()
        else:
            for node in self.children().values():
                node.flush()

    def release(self) -> None:
        """Write back what is left, and close the files of the image."""
        try:
            if "writer" in self.__dict__ and not self.writer.failed:
                self.flush()
        finally:
            for node in self.children().values():
                node.close()
