"""A qcow2 image as a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from diskwright.bounded import BoundedReader
from diskwright.errors import InvalidImage, InvalidOption, UnsupportedOperation
from diskwright.facts import Description, Limits, Snapshot
from diskwright.hookspecs import OpenOptions
from diskwright.node import SECTOR, Buffer, Node, Placement, WritableImage, read_through

from .header import Header
from .layout import Compatible, CryptMethod, Incompatible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diskwright.extent import Extent, ExtentTable
    from diskwright_luks.header import Header as LuksHeader

    from .bitmap_record import BitmapRecorder
    from .bitmaps import BitmapEntry
    from .crypt import Encryption
    from .l2 import L2Tables, Table
    from .runtime import Runtime
    from .snapshots import MendedTable, SnapshotEntry
    from .writer import ImageWriter

_STALE_V2 = (
    "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap "
    "support; so now they must all be considered inconsistent"
)
_STALE_V3 = "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"


class Qcow2Image(WritableImage):
    """An opened qcow2 image.

    :ivar header: the header as it is in the file, or will be after the next flush.
    :ivar reader: for metadata in :attr:`file`.
    :ivar data_node: the node that guest clusters stand in: :attr:`file`, or the external data file.
    :ivar stored_bitmaps: names of the bitmaps that have been stored since the image was opened.
    :ivar crypt: the cipher of an encrypted image, ``None`` if it was opened to be described only.
    :ivar mended: the snapshot table as a repair that is under way leaves it, see :func:`.snapshots.mend_snapshots`.
    """

    crypt: Encryption | None = None
    mended: MendedTable | None = None
    stored_bitmaps: set[str]

    def __init__(self, source: Node, options: OpenOptions) -> None:
        super().__init__()
        self.filename = options.filename
        self.stored_bitmaps = set()
        self.read_only = not options.writable
        self.file = source
        self._warn = options.warn
        self.reader = BoundedReader(source, "qcow2")
        self.header = header = Header.read(self.reader, repairing=options.check)
        self.backing_file = header.backing_file
        self.backing_format = header.backing_format
        self.cluster_size = header.cluster_size
        self.subcluster_size = header.subcluster_size
        self.encrypted = header.crypt_method != CryptMethod.NONE
        self.data_node = source
        self._values, self._discard = options.values, options.discard
        if options.values:
            from .encryption import require_format

            _ = self.runtime  # what is wrong with them is an error of opening
            require_format(header, options.values)
        luks = self.luks
        self._require_bitmaps(options)
        if "data-file" in options.children:
            if not header.has_data_file:
                raise InvalidOption("'data-file' can only be set for images with an external data file")
            self.data_node = options.children["data-file"]
        if options.describe_only:
            return
        if options.writable and not options.check and header.incompatible_features & Incompatible.CORRUPT:
            raise InvalidImage("qcow2: Image is corrupt; cannot be opened read/write", filename=self.file.filename)
        _ = self.l2  # what cannot be read is an error of opening
        if not options.check:
            self._require_snapshots()
        if header.has_data_file and self.data_node is self.file:
            if not header.data_file:
                raise InvalidImage("'data-file' is required for this image", filename=source.filename)
            self.data_node = options.open_child(header.data_file, "data-file")
        if self.encrypted:
            from .encryption import require_package

            require_package()
            from .crypt import open_encryption

            self.crypt = open_encryption(self, luks, options.values, options.secret)

    def _require_bitmaps(self, options: OpenOptions) -> None:
        """Refuse broken bitmaps; whether the entries of their tables are sound a check finds out by itself."""
        if self.header.stale_bitmaps:
            options.warn(_STALE_V2 if self.header.version == 2 else _STALE_V3)
        if self.bitmaps and not options.check:
            from .bitmap_ops import require_tables

            require_tables(self)

    def _require_snapshots(self) -> None:
        """Refuse a snapshot table that cannot be, without reading it."""
        if self.header.nb_snapshots:
            from .snapshots import require_table

            require_table(self.reader, self.header)

    def make_clean(self) -> None:
        """Repair an image that was not closed cleanly; to be called before it is changed for the first time.

        :raises InvalidImage: it cannot be repaired.
        """
        if self.header.incompatible_features & Incompatible.DIRTY:
            from .repair import repair

            found = repair(self, "all").findings
            if found:
                self._warn("".join(f"{line}\n" for line in found))
            if self.header.incompatible_features & Incompatible.DIRTY:
                raise InvalidImage("qcow2: Could not repair dirty image", filename=self.file.filename)

    @cached_property
    def runtime(self) -> Runtime:
        """How the image is to be handled while it is open."""
        from .runtime import Runtime

        return Runtime.from_values(self.header, self._values, discard=self._discard)

    @cached_property
    def luks(self) -> LuksHeader | None:
        """The LUKS header, see :func:`.encryption.read_luks_header`."""
        if self.header.crypto is None:
            return None
        from .encryption import read_luks_header

        return read_luks_header(self.reader, self.header)

    @property
    def cipher(self) -> Encryption | None:
        """What guest clusters are encrypted with; ``None`` if they are not.

        :raises UnsupportedOperation: they are, but the image was not unlocked.
        """
        if self.encrypted and self.crypt is None:
            raise UnsupportedOperation(f"'{self.filename}' was opened without its key, to be described only")
        return self.crypt

    @property
    def size(self) -> int:
        """Virtual disk size, bytes."""
        return self.header.disk_size

    @cached_property
    def l2(self) -> L2Tables:
        """The active L1 table and the L2 tables behind it."""
        from .l2 import L2Tables

        return L2Tables(self.reader, self.header, self.runtime.l2_cache)

    @property
    def l1(self) -> Table:
        """The active L1 table in native byte order."""
        return self.l2.l1

    @cached_property
    def snapshots(self) -> list[SnapshotEntry]:
        """The internal snapshots, as the table in the file lists them."""
        if self.mended is not None:
            return self.mended.entries
        if not self.header.nb_snapshots:
            return []
        from .snapshots import read_snapshots

        try:
            return read_snapshots(self.reader, self.header)
        except InvalidImage as error:
            raise error.in_context(f"Could not open '{self.filename}'") from error

    @cached_property
    def bitmaps(self) -> list[BitmapEntry]:
        """The persistent dirty bitmaps, as the directory in the file lists them."""
        if self.header.bitmaps is None:
            return []
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

    def own_limits(self) -> Limits:
        """Space is given back in clusters; the ciphers work on sectors."""
        sector = SECTOR if self.encrypted else 1
        return Limits(sector, discard_alignment=self.cluster_size, write_zeroes_alignment=self.subcluster_size)

    def map_range(self, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """The map of a guest range, see the ``block_status`` hook."""
        from .mapping import map_range

        if self.encrypted:
            from .crypt import hide_places

            return hide_places(map_range(self, offset, length))
        return map_range(self, offset, length)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Read guest bytes through all layers; short reads take a short way."""
        from .reading import read_simply

        view = memoryview(buffer).cast("B")
        if not read_simply(self, offset, view):
            read_through(self, offset, view)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """Read guest bytes from compressed or encrypted clusters; threads may call this in parallel."""
        if (cipher := self.cipher) is not None:
            from .crypt import read_encoded

            read_encoded(self, cipher, offset, buffer)
            return
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
        header = self.header
        v3 = header.version > 2
        facts: dict[str, Any] = {
            "compat": "1.1" if v3 else "0.10",
            "compression-type": header.compression_type.name.lower(),
        }
        if v3:
            facts["lazy-refcounts"] = bool(header.compatible_features & Compatible.LAZY_REFCOUNTS)
        if self.bitmaps:
            from .bitmaps import describe_bitmaps

            facts["bitmaps"] = describe_bitmaps(self.bitmaps)
        facts["refcount-bits"] = header.refcount_bits
        if header.has_data_file and header.data_file:
            facts["data-file"] = header.data_file
        if self.encrypted:
            from .encryption import describe

            facts["encrypt"] = describe(self)
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

        self.make_clean()
        return ImageWriter(self)

    def restart(self, **fields: Any) -> None:
        """Forget all tables in memory: other ones count from now on.

        :param fields: header fields that have changed with them.
        """
        self.header = self.header.replace(**fields)
        for name in ("l2", "snapshots", "writer"):
            self.__dict__.pop(name, None)
        if "recorder" in self.__dict__ and self.recorder.marks:
            self.recorder.note_size()
        else:
            for name in ("bitmaps", "recorder"):
                self.__dict__.pop(name, None)

    @contextmanager
    def recording(self, offset: int, length: int) -> Iterator[None]:
        """Hold the lock while a guest range changes, and let the enabled bitmaps know of it."""
        with self.lock:
            _ = self.writer  # the image is sound from here on
            self.recorder.begin()
            self.recorder.add(offset, length)  # before: some of it may have changed when the rest fails
            yield

    @property
    def stands_on_another(self) -> bool:
        """Whether another layer may show where this one has nothing.

        It may do so for whoever opens the image otherwise: with a layer that options name, or without one that the
        header names.
        """
        return self.backing is not None or self.backing_file is not None or self.header.backing_file is not None

    @cached_property
    def recorder(self) -> BitmapRecorder:
        """What keeps the enabled bitmaps current."""
        from .bitmap_record import BitmapRecorder

        return BitmapRecorder(self)

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Find host clusters for a guest range; new ones unless the image owns the present ones alone."""
        writer = self.writer
        self.recorder.begin()
        placements = writer.allocate(offset, length)
        # Not when they are linked: what has its place already is written over, and may be when that fails.
        self.recorder.add(offset, length)
        return placements if self.cipher is None else self.cipher.cover(placements)

    def link(self, placements: Sequence[Placement]) -> None:
        """Let the L2 tables refer to what has been written."""
        self.writer.link(placements if self.cipher is None else self.cipher.uncover(placements))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a guest range read as zeros, by L2 entries where that is possible."""
        from .zeroing import write_zeroes

        with self.recording(offset, length):
            write_zeroes(self, self.writer, offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give up the whole clusters of a guest range; they read as zeros then, or stay as they are."""
        from .zeroing import discard

        with self.recording(offset, length):
            discard(self, self.writer, offset, length)

    def compress(self, data: memoryview) -> bytes | None:
        """One cluster compressed as this image does it; ``None`` if that does not make it smaller."""
        from .codec import compress
        from .encryption import refuse_compression

        refuse_compression(self)

        return compress(self.header.compression_type, data, self.header.cluster_size)

    def write_compressed(self, clusters: Sequence[tuple[int, bytes]]) -> None:
        """Store compressed clusters, each with its guest offset, a multiple of the cluster size."""
        with self.lock:
            writer = self.writer
            self.recorder.begin()
            for offset, _ in clusters:
                self.recorder.add(offset, min(self.header.cluster_size, self.size - offset))
            writer.write_compressed(clusters)

    def new_reads_zero(self) -> bool:
        """Whether all reads as zeros after creation: with preallocation, if the file that it took space in does."""
        preallocated = bool(self.header.has_data_file or self.l1.any())
        return self.data_node.new_reads_zero() and not self.encrypted if preallocated else True

    def flush(self) -> None:
        """Write back all metadata, in an order that keeps the image sound at every instant."""
        if "writer" in self.__dict__:
            with self.lock:
                self.writer.flush()
        else:
            for node in self.children().values():
                node.flush()

    def save(self) -> None:
        """Write back everything, the bitmaps that were kept current included; they are marked as complete then."""
        self.flush()
        if "recorder" in self.__dict__ and self.recorder.marks:
            from .bitmap_ops import store_recorded

            with self.lock:
                store_recorded(self)

    def release(self) -> None:
        """Write back what is left, and close the files of the image."""
        try:
            failed = "writer" in self.__dict__ and self.writer.failed
            if not failed and ("writer" in self.__dict__ or "recorder" in self.__dict__):
                if "writer" in self.__dict__:
                    self.writer.give_back_unlinked()
                self.save()
        finally:
            for node in self.children().values():
                node.close()
