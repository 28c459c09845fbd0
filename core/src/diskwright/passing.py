"""A disk that passes everything on to a node below it: the base of filters, and the disk that a protocol's node is.

A filter overrides what it wants to see. Where it watches reads, the map keeps the places of the bytes for whoever asks
where they are, but has them read through the filter.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from .errors import InvalidOption, UnsupportedOperation
from .extent import Extent, ExtentTable, Kind
from .node import (
    SECTOR,
    Buffer,
    Bytes,
    Image,
    Lockable,
    Node,
    Permission,
    Placement,
    Truncatable,
    Writable,
    WritableImage,
)
from .trees import JSON_PREFIX
from .zeroing import discard, make_zeros


class Passing(WritableImage):
    """The disk of the node below, unchanged.

    :ivar below: the node that everything is passed on to.
    :ivar role: what that node is to this one.
    :ivar watches_reads: whether data must be read through this node, not from where it stands.
    :ivar plain_name: a name other than ``json:`` by which the node can be opened again, ``None`` without one.
    :ivar said_by_name: the options that this name tells too.
    """

    watches_reads = False
    plain_name: str | None = None
    said_by_name: frozenset[str] = frozenset()

    def __init__(self, below: Node, *, role: str = "file", writable: bool = False) -> None:
        super().__init__()
        self.file = self.below = below
        self.role = role
        self.read_only = not writable
        self.filename = below.filename
        if isinstance(below, Image):
            self.backing = _seen_through(self, below) if self.watches_reads else below.backing
            self.cluster_size = below.cluster_size
            self.encrypted = below.encrypted

    @property
    def size(self) -> int:
        """Bytes, whole sectors: a last sector that a file holds in part ends in zeros."""
        return self.below.size + -self.below.size % SECTOR

    def children(self) -> dict[str, Node]:
        return {self.role: self.below}

    def identity(self) -> Hashable | None:
        return self.below.identity()

    def new_reads_zero(self) -> bool:
        return self.below.new_reads_zero()

    def set_permissions(self, used: Permission, shared: Permission) -> None:
        """What is done to this node is done to the one below; an image there has locked its own file."""
        if isinstance(self.below, Lockable):
            self.below.set_permissions(used, shared)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent | ExtentTable]:
        """The map of the node below; what is to be watched is read by :meth:`read_encoded`."""
        end = self.size if length is None else offset + length
        found = self._extents_below(offset, end)
        return map(self._watched, found) if self.watches_reads else found

    def _extents_below(self, offset: int, end: int) -> Iterator[Extent | ExtentTable]:
        inside = max(offset, min(end, self.below.size))
        if inside > offset:
            yield from self.below.extents(offset, inside - offset)
        if end > inside:
            yield Extent(inside, end - inside, Kind.ZERO, self.below, inside)

    def _watched(self, item: Extent | ExtentTable) -> Extent | ExtentTable:
        if isinstance(item, Extent):
            return item._replace(kind=Kind.ENCODED) if item.kind is Kind.DATA else item
        rows = item.rows.copy()
        rows["kind"][rows["kind"] == Kind.DATA] = Kind.ENCODED
        return ExtentTable(rows, item.nodes)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Through the node below, and all layers that are below that one."""
        self.below.read_into(offset, buffer)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """What the map of the node below has as data, or as encoded."""
        self.read_into(offset, buffer)

    def write_at(self, offset: int, data: Bytes) -> None:
        """To the node below."""
        if self.store_zeros(offset, memoryview(data).cast("B")):
            return
        if not isinstance(self.below, Writable):
            raise UnsupportedOperation(f"Format driver '{self.below.driver}' does not support writing")
        self.below.write_at(offset, data)

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Bytes are written to this node itself, at their own offset: the node below finds their places."""
        if offset + length > self.size and isinstance(self.below, Image):
            raise InvalidOption(f"'{self.filename}' ends at {self.size}")
        return [Placement(offset, length, self, offset)] if length else []

    def link(self, placements: Sequence[Placement]) -> None:
        """Nothing to do: the node below has done it."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """By the means of the node below, or by writing zeros to it."""
        make_zeros(self.below, offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """By the means of the node below, if it has any: what is discarded may just as well stay."""
        discard(self.below, offset, length)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """By the means of the node below.

        :raises UnsupportedOperation: it has none.
        """
        if not isinstance(self.below, Truncatable):
            raise UnsupportedOperation("Image format driver does not support resize")
        self.below.truncate(size, preallocation)

    def flush(self) -> None:
        self.below.flush()

    def release(self) -> None:
        self.below.close()


class _Layer(Passing):
    """A layer that a filter stands above: what it has is read through the filter, which gives the same there.

    :param through: the filter.
    :param backing: the layer below, seen in the same way.
    """

    def __init__(self, layer: Image, through: Passing, backing: Node | None) -> None:
        super().__init__(layer)
        self.through = through
        self.backing = backing
        self.watches_reads = True
        self.bind(layer.driver, None)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        self.through.read_into(offset, buffer)


def _seen_through(filter: Passing, top: Image) -> Node | None:
    """The layers below the one that a filter stands on, read through the filter."""
    layers: list[Image] = []
    layer = top.backing
    while isinstance(layer, Image):
        layers.append(layer)
        layer = layer.backing
    for image in reversed(layers):
        layer = _Layer(image, filter, layer)
    return layer


def unfiltered(image: Image) -> Image:
    """The image that filters stand on: whoever changes or asks for what only a format has goes by this.

    A disk that is made of a protocol's node is the lowest filter above that node.
    """
    while isinstance(image, Passing) and isinstance(image.below, Image):
        image = image.below
    return image


def naming_file(image: Image) -> str:
    """The name that relative names in an image are relative to: its own, or that of the file below all filters."""
    node: Node | None = image
    while node is not None:
        below = node.below if isinstance(node, Passing) else node.children().get("file")
        if not (isinstance(node, Passing) or isinstance(below, Passing) or node.filename.startswith(JSON_PREFIX)):
            return node.filename
        node = below
    return image.filename
