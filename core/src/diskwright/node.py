"""The data plane contract: everything that holds bytes is a :class:`Node`.

A protocol driver's ``open`` returns a :class:`Node` (a file, an export), a format driver's an :class:`Image`. What a
node can do is what its class implements: there are no ``supports_x`` flags, the core asks with ``isinstance`` against
the protocols of :mod:`.abilities`. These methods never cross pluggy; they are called from several threads at once.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple, Self, TypeAlias

from .abilities import AlwaysCompressing as AlwaysCompressing
from .abilities import Appending as Appending
from .abilities import Bytes as Bytes
from .abilities import Compressing as Compressing
from .abilities import Discarding as Discarding
from .abilities import Lockable as Lockable
from .abilities import Permission as Permission
from .abilities import Truncatable as Truncatable
from .abilities import Writable as Writable
from .abilities import Zeroing as Zeroing
from .buffers import is_zero
from .errors import ImageError, InvalidImage
from .extent import Extent, ExtentTable, Kind
from .facts import Limits

Buffer: TypeAlias = bytearray | memoryview
"""Something writable that :meth:`Node.read_into` fills."""

BlockStatus: TypeAlias = Callable[["Node", int, int], Iterable[Extent | ExtentTable]]
"""A driver's ``block_status`` hook, ready to be called with a node, an offset and a length."""

SECTOR = 512
"""Virtual sizes are whole sectors of this many bytes."""


class Node(ABC):
    """Bytes with a size, addressed by offset.

    :ivar filename: the name a user knows it by.
    :ivar driver: the registered name of the driver that opened it; the core sets it.
    :ivar read_only: whether it was opened for reading only.
    :ivar may_unmap: whether space may be given back to what the node stands on, as its option ``discard`` says; without
        it, discarding does nothing, and zeros keep their space.
    :ivar metadata_budget: bytes of metadata that may still be read of it, ``None`` for any number.
    :ivar one_at_a_time: whether several threads at once get no more done: reads are copies from memory, and the system
        lets one thread at a time write.
    """

    filename: str = ""
    driver: str = ""
    read_only: bool = True
    may_unmap: bool = True
    metadata_budget: int | None = None
    one_at_a_time: bool = False
    _closed: bool = False
    _block_status: BlockStatus | None = None

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes."""

    @abstractmethod
    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill the whole buffer from ``offset`` on; bytes behind the end of the node read as zeros.

        :raises OSError: the system cannot read.
        :raises InvalidImage: the format's structures do not lead to the bytes.
        """

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, as :meth:`read_into` gives them."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def bind(
        self, driver: str, block_status: Callable[[Node, int, int], Iterable[Extent | ExtentTable]] | None
    ) -> None:
        """Core only: note which driver opened this node and how to ask that driver for its map."""
        self.driver = driver
        self._block_status = block_status

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent | ExtentTable]:
        """The map of a guest range, this layer only, as the driver's ``block_status`` hook yields it.

        Without that hook the whole range is data that only the node itself can read.

        :param length: bytes; up to the end of the node if None.
        """
        if length is None:
            length = self.size - offset
        if length <= 0:
            return iter(())
        if self._block_status is None:
            return iter((self._unmapped(offset, length),))
        return iter(self._block_status(self, offset, length))

    def _unmapped(self, offset: int, length: int) -> Extent:
        return Extent(offset, length, Kind.DATA, self, offset)

    def children(self) -> dict[str, Node]:
        """The nodes this one stands on, by role (``file``, ``data-file``), backing layers excluded."""
        return {}

    def identity(self) -> Hashable | None:
        """Equal for two nodes exactly if they are the same file or device; ``None`` if that cannot be known."""
        return None

    def allocated_size(self) -> int | None:
        """Bytes that the node takes where it is stored, ``None`` if that cannot be known."""
        return None

    def own_limits(self) -> Limits:
        """What requests to this node should look like, apart from what the nodes below it want."""
        return Limits()

    def limits(self) -> Limits:
        """What requests to this node should look like."""
        return reduce(Limits.over, (child.limits() for child in self.children().values()), self.own_limits())

    def new_reads_zero(self) -> bool:
        """Whether a node just created reads as zeros everywhere, so that zeros need not be written."""
        return False

    def flush(self) -> None:
        """Everything written so far survives a power cut once this returns.

        :raises OSError: it might not.
        """

    def note_event(self, name: str) -> None:
        """The driver above tells what it is about to do; of interest to error injection only.

        :param name: the step it is at, as blkdebug's rules name them. For most steps, and for ``none``, that means that
            its next request is about its metadata; some are no requests (:data:`diskwright_debug.rules.NO_REQUEST`).
        """

    def release(self) -> None:
        """Let go of what this node holds, children included; what a driver overrides. Called at most once.

        A writable node first writes back what it still holds.
        """

    def close(self) -> None:
        """Close the node and all that it stands on. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except (OSError, ImageError):
            if error is None:  # what failed first is what the user has to know
                raise


class Image(Node):
    """What a format driver's ``open`` returns: a disk made of one layer, with perhaps a backing layer below.

    A driver sets the attributes in its constructor; the core opens the backing layer and attaches it.

    :ivar file: the node that the image stands in.
    :ivar backing_file: name of the backing file as the image states it, ``None`` without one.
    :ivar backing_format: its format as the image states it, ``None`` if it does not say.
    :ivar backing: the opened backing layer; absent extents are read from it, and zeros behind its end.
    :ivar cluster_size: bytes in which the format allocates, ``None`` where it does not.
    :ivar subcluster_size: bytes of the smallest part of a cluster that can be there by itself, ``None`` if that is all
        of it.
    :ivar encrypted: whether guest data is encrypted.
    :ivar detect_zeroes: ``on``: zeros that are written are stored as such, without being written as data; ``unmap``:
        and their space is given back; ``off``: they are data as any other.
    """

    file: Node
    backing_file: str | None = None
    backing_format: str | None = None
    backing: Node | None = None
    cluster_size: int | None = None
    subcluster_size: int | None = None
    encrypted: bool = False
    detect_zeroes: str = "off"

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Read guest bytes through all layers; this default follows the map."""
        read_through(self, offset, memoryview(buffer).cast("B"))

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with guest bytes of a range that the map calls encoded. Threads may call it in parallel.

        :raises InvalidImage: the encoded bytes are damaged.
        """
        raise NotImplementedError(f"{type(self).__name__} maps encoded extents without a way to read them")

    def _unmapped(self, offset: int, length: int) -> Extent:
        return Extent(offset, length, Kind.ENCODED)

    def children(self) -> dict[str, Node]:
        return {"file": self.file}

    def identity(self) -> Hashable | None:
        return self.file.identity()

    def allocated_size(self) -> int | None:
        sizes = [child.allocated_size() for child in self.children().values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def flush(self) -> None:
        self.file.flush()

    def release(self) -> None:
        self.file.close()

    def close(self) -> None:
        """Close this layer and all layers below it, one after the other: chains may be longer than Python's stack."""
        layer: Node | None = self
        failures = []
        while layer is not None:
            below = layer.backing if isinstance(layer, Image) else None
            try:
                Node.close(layer)
            except Exception as error:  # the other layers are closed all the same
                failures.append(error)
            layer = below
        if failures:
            raise failures[0]


class Placement(NamedTuple):
    """Where guest bytes about to be written go.

    :ivar offset: guest offset, bytes.
    :ivar length: bytes, > 0.
    :ivar node: the node to write the bytes to, verbatim.
    :ivar node_offset: bytes from the start of ``node``.
    :ivar head: so many bytes before ``offset`` belong to the same newly allocated space and must be written too, with
        what they read as now.
    :ivar tail: the same behind the range.
    """

    offset: int
    length: int
    node: Node
    node_offset: int
    head: int = 0
    tail: int = 0


class WritableImage(Image):
    """An image that can be written: it says where bytes go, the caller writes them, then the image links them.

    ``allocate`` and ``link`` are called under :attr:`lock`, the data is written outside of it, so that several threads
    can write different clusters at once. Until ``link`` returns, the image reads as before.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    @abstractmethod
    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Find places for a guest range, reusing what the image already owns alone.

        :returns: placements in guest order that cover exactly the range.
        :raises InvalidImage: following the tables would overwrite metadata.
        """

    @abstractmethod
    def link(self, placements: Sequence[Placement]) -> None:
        """The data has been written: make the guest see it. Metadata may stay in memory until ``flush``."""

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write guest bytes of any alignment, one write after the other; :mod:`.engine.copy` writes in parallel."""
        view = memoryview(data).cast("B")
        if not self.store_zeros(offset, view):
            self.write_verbatim(offset, view)

    def write_verbatim(self, offset: int, data: Bytes) -> None:
        """Write guest bytes as such even if zeros are looked for: the image has them itself then."""
        view = memoryview(data).cast("B")
        with self.lock:
            placements = self.allocate(offset, len(view))
            write_placed(self, placements, offset, view)
            self.link(placements)

    def store_zeros(self, offset: int, view: memoryview) -> bool:
        """If zeros are looked for and these bytes are nothing else, store them as such.

        :returns: whether that is done.
        """
        if self.detect_zeroes == "off" or not isinstance(self, Zeroing) or not is_zero(view):
            return False
        with self.lock:
            self.write_zeroes(offset, len(view), unmap=self.detect_zeroes == "unmap" and self.may_unmap)
        return True


def write_placed(image: Image, placements: Iterable[Placement], start: int, data: memoryview) -> None:
    """Write guest bytes where an image placed them, with the rest of their clusters around them.

    :param start: guest offset of the first byte of the data; it may have more than what was placed.
    """
    for placement in placements:
        first = placement.offset - start
        _write_placement(image, placement, data[first : first + placement.length])


def write_beside(image: WritableImage, ranges: Iterable[tuple[int, int]], start: int, data: memoryview) -> None:
    """Write ranges of guest bytes while other threads write others: places are found for all of them before any.

    :param ranges: of the data; no two of them may be in the same cluster.
    :param start: guest offset of the first byte of the data.
    """
    with image.lock:
        placements = [p for first, last in ranges for p in image.allocate(start + first, last - first)]
    write_placed(image, placements, start, data)
    with image.lock:
        image.link(placements)


def _write_placement(image: Image, placement: Placement, data: memoryview) -> None:
    # Not isinstance with the protocol: with Python 3.11 that takes longer than writing a cluster.
    write_at = getattr(placement.node, "write_at", None)
    if write_at is None:
        raise InvalidImage(f"'{placement.node.filename}' cannot be written", filename=placement.node.filename)
    if placement.head or placement.tail:
        placement.node.note_event("cow_read")
        before = image.read_at(placement.offset - placement.head, placement.head)
        after = image.read_at(placement.offset + placement.length, placement.tail)
        data = memoryview(b"".join((before, data, after)))
        placement.node.note_event("cow_write")
    write_at(placement.node_offset - placement.head, data)


def read_through(top: Image, offset: int, buffer: memoryview) -> None:
    """Fill a buffer with guest bytes, looking down the backing layers where a layer has none; zeros below the last."""
    pending: list[tuple[Node, int, memoryview]] = [(top, offset, buffer)]
    while pending:
        layer, start, view = pending.pop()
        inside = min(len(view), max(0, layer.size - start))
        view[inside:] = bytes(len(view) - inside)
        view = view[:inside]
        for extent in _singly(layer.extents(start, inside)):
            part = view[extent.offset - start : extent.end - start]
            below = layer.backing if isinstance(layer, Image) else None
            if extent.kind is not Kind.ABSENT or below is None:
                read_extent(layer, extent, part)
            elif isinstance(below, Image) and below.backing is not None:
                pending.append((below, extent.offset, part))
            else:
                # The last layer need not be mapped, and may have a shorter way.
                read_padded(below, extent.offset, part)


def read_padded(layer: Node, offset: int, buffer: memoryview) -> None:
    """Fill a buffer from a layer, and with zeros behind its end."""
    inside = min(len(buffer), max(0, layer.size - offset))
    if inside:
        layer.read_into(offset, buffer[:inside])
    if inside < len(buffer):
        buffer[inside:] = bytes(len(buffer) - inside)


def read_extent(layer: Node, extent: Extent, buffer: memoryview) -> None:
    """Fill a buffer from one extent of a layer's own map; absent reads as zeros here."""
    if extent.kind is Kind.DATA and extent.node is not None and extent.node_offset is not None:
        extent.node.read_into(extent.node_offset, buffer)
    elif extent.kind is Kind.ENCODED:
        if not isinstance(layer, Image):
            raise InvalidImage(f"'{layer.filename}' maps encoded extents but is no image", filename=layer.filename)
        layer.read_encoded(extent.offset, buffer)
    else:
        buffer[:] = bytes(len(buffer))


def all_nodes(top: Node) -> Iterator[Node]:
    """A node, everything it stands on, and all layers below."""
    pending = [top]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.children().values())
        if isinstance(node, Image) and node.backing is not None:
            pending.append(node.backing)


def _singly(items: Iterable[Extent | ExtentTable]) -> Iterator[Extent]:
    for item in items:
        if isinstance(item, ExtentTable):
            yield from item
        else:
            yield item
