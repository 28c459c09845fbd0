"""A world of made-up files and images, so that subcommands are tested without any plugin."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from diskwright.cli import App, main
from diskwright.context import Context
from diskwright.errors import NodeIOError
from diskwright.extent import Extent, Flag, Kind
from diskwright.facts import Bitmap, CheckResult, Description, Measurement, Snapshot
from diskwright.hookspecs import CreatedNode, CreateOptions, OpenOptions, ProbeHit, ProtocolOptions, hookimpl
from diskwright.node import Image, Node, Placement, WritableImage
from diskwright.options import Option, OptionType
from diskwright.testing.nodes import MemoryNode


@dataclass
class Toy:
    """A made-up image.

    :ivar data: the file, placed extents count from its start.
    :ivar extents: (kind, length, offset in the file or None, flags), from the start of the disk to its end.
    """

    data: bytes = b""
    extents: list[tuple[Kind, int, int | None, Flag]] = field(default_factory=list)
    backing_file: str | None = None
    backing_format: str | None = None
    description: Description = field(default_factory=lambda: Description(None, cluster_size=65536))
    snapshots: list[Snapshot] = field(default_factory=list)
    check: CheckResult | Exception = field(default_factory=CheckResult)
    broken: Exception | None = None


class ToyFile(MemoryNode):
    """A file of the made-up world."""

    def allocated_size(self) -> int | None:
        return 4096

    def identity(self) -> Hashable | None:
        return self.filename.replace("./", "")


class ToyImage(Image):
    """Maps and reads as its :class:`Toy` says; encoded bytes are 0xEE."""

    def __init__(self, source: Node, toy: Toy) -> None:
        self.file = source
        self.toy = toy
        self.backing_file = toy.backing_file
        self.backing_format = toy.backing_format

    @property
    def size(self) -> int:
        return sum(length for _, length, _, _ in self.toy.extents)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        if self.toy.broken:
            raise self.toy.broken
        buffer[:] = b"\xee" * len(buffer)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        position = 0
        for kind, size, placed, flags in self.toy.extents:
            start, end = max(position, offset), min(position + size, offset + length)
            if start < end:
                at = None if placed is None else placed + start - position
                yield Extent(start, end - start, kind, None if at is None else self.file, at, flags)
            position += size


class ToyFormat:
    """The format ``toy``."""

    def __init__(self, toys: dict[str, Toy]) -> None:
        self.toys = toys

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        return ProbeHit("toy", 100)

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        return ToyImage(source, self.toys[source.filename])

    @hookimpl
    def block_status(self, image: ToyImage, offset: int, length: int) -> Iterator[Extent]:
        return image.map(offset, length)

    @hookimpl
    def describe(self, image: ToyImage) -> Description:
        return image.toy.description

    @hookimpl
    def snapshot_list(self, image: ToyImage) -> list[Snapshot]:
        return image.toy.snapshots


class CheckedFormat(ToyFormat):
    """The format ``checked``: as ``toy``, with checks."""

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        return None

    @hookimpl
    def check(self, image: ToyImage) -> CheckResult:
        if isinstance(image.toy.check, Exception):
            raise image.toy.check
        return image.toy.check


class ToyProtocol:
    """Opens the files of the made-up world."""

    def __init__(self, toys: dict[str, Toy]) -> None:
        self.toys = toys
        self.opened: list[str] = []

    @hookimpl
    def open(self, filename: str, options: ProtocolOptions) -> Node:
        if filename not in self.toys:
            raise NodeIOError(f"Could not open '{filename}'", FileNotFoundError(2, ""))
        self.opened.append(filename)
        return ToyFile(self.toys[filename].data, filename=filename)

    @hookimpl
    def describe(self) -> Description:
        return Description(specific={}, dirty=False, type="file")

    @hookimpl
    def create(self, filename: str, options: ProtocolOptions) -> CreatedNode:
        raise NodeIOError(f"Could not create '{filename}'", PermissionError(13, ""))


class World:
    """Made-up images by name, and the command line to look at them.

    :ivar toys: add to it what a test needs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.toys: dict[str, Toy] = {}
        self.protocol = ToyProtocol(self.toys)
        self.context = Context()
        self.context.protocols.register("file", self.protocol)
        self.context.formats.register("toy", ToyFormat(self.toys))
        self.context.formats.register("checked", CheckedFormat(self.toys))
        monkeypatch.setattr(App, "context", self.context)
        self._capsys = capsys

    def add(self, name: str, *extents: tuple[Any, ...], data: bytes = b"", **facts: Any) -> Toy:
        """Add an image; an extent is (kind, length[, offset in the file[, flags]])."""
        full = [(*extent, *(None, Flag(0))[len(extent) - 2 :]) for extent in extents]
        self.toys[name] = Toy(data, full, **facts)
        return self.toys[name]

    def run(self, *arguments: str, program: str = "qemu-img") -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        code = main(list(arguments), program=program)
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    """An empty made-up world."""
    return World(monkeypatch, capsys)


CLUSTER = 4096
"""Bytes, of the format ``layer``."""


@dataclass
class Layer:
    """What an image of the format ``layer`` holds.

    :ivar space: the bytes of its clusters, at their guest offsets.
    :ivar state: by cluster number what it has: data or zeros.
    :ivar log: what was done to it, in order.
    """

    size: int
    backing_file: str | None = None
    backing_format: str | None = "layer"
    space: MemoryNode = field(default_factory=lambda: MemoryNode(writable=True))
    state: dict[int, Kind] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    bitmaps: dict[str, Bitmap] = field(default_factory=dict)
    dirty: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    repairs: list[CheckResult] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def fill(self, cluster: int, value: int) -> None:
        """Put data into a cluster."""
        self.space.write_at(cluster * CLUSTER, bytes([value]) * CLUSTER)
        self.state[cluster] = Kind.DATA


class LayerImage(WritableImage):
    """An opened :class:`Layer`."""

    cluster_size = CLUSTER

    def __init__(self, source: Node, layer: Layer) -> None:
        super().__init__()
        self.file = source
        self.layer = layer
        self.backing_file = layer.backing_file
        self.backing_format = layer.backing_format

    @property
    def size(self) -> int:
        return self.layer.size

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        while length:
            count = min(length, CLUSTER - offset % CLUSTER)
            kind = self.layer.state.get(offset // CLUSTER, Kind.ABSENT)
            placed = offset if kind is Kind.DATA else None
            yield Extent(offset, count, kind, None if placed is None else self.layer.space, placed)
            offset, length = offset + count, length - count

    def allocate(self, offset: int, length: int) -> list[Placement]:
        placements = []
        while length:
            count = min(length, CLUSTER - offset % CLUSTER)
            head, tail = offset % CLUSTER, -(offset + count) % CLUSTER
            if self.layer.state.get(offset // CLUSTER) is Kind.DATA:
                head = tail = 0
            placements.append(Placement(offset, count, self.layer.space, offset, head, tail))
            offset, length = offset + count, length - count
        return placements

    def link(self, placements: Sequence[Placement]) -> None:
        for placement in placements:
            self.layer.state[placement.offset // CLUSTER] = Kind.DATA
        self.layer.log.append("link")

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        while length:
            count = min(length, CLUSTER - offset % CLUSTER)
            if count == CLUSTER:
                self.layer.state[offset // CLUSTER] = Kind.ZERO
            else:
                self.write_at(offset, bytes(count))
            offset, length = offset + count, length - count
        self.layer.log.append("zero")

    def flush(self) -> None:
        self.layer.log.append("flush")


class LayerFormat:
    """The format ``layer``: everything about an image can be changed."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        self.layers = layers

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        return None

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        layer = self.layers[source.filename]
        layer.log.append(f"open{' writable' * options.writable}{' check' * options.check}")
        return LayerImage(source, layer)

    @hookimpl
    def block_status(self, image: LayerImage, offset: int, length: int) -> Iterator[Extent]:
        return image.map(offset, length)

    @hookimpl
    def creation_options(self) -> list[Option]:
        return [Option("size", OptionType.SIZE, "Size"), Option("grain", OptionType.SIZE, "Grain")]

    @hookimpl
    def create(self, target: Node, options: CreateOptions) -> bool:
        raise NotImplementedError

    @hookimpl
    def amend_options(self) -> list[Option]:
        return [Option("label", OptionType.STRING, "Label"), Option("size", OptionType.SIZE, "Size")]

    @hookimpl
    def amend(self, image: LayerImage, values: dict[str, Any], force: bool) -> bool:
        image.layer.log.append(f"amend {values} {force}")
        return True

    @hookimpl
    def resize(self, image: LayerImage, size: int, preallocation: str) -> bool:
        image.layer.size = size
        image.layer.log.append(f"resize {preallocation}")
        return True

    @hookimpl
    def set_backing(self, image: LayerImage, backing_file: str | None, backing_format: str | None) -> bool:
        image.layer.backing_file, image.layer.backing_format = backing_file, backing_format
        image.layer.log.append("set_backing")
        return True

    @hookimpl
    def make_empty(self, image: LayerImage) -> bool:
        image.layer.state.clear()
        image.layer.log.append("make_empty")
        return True

    @hookimpl
    def measure(self, size: int, values: dict[str, Any], ranges: Any, source: Image | None) -> Measurement:
        return Measurement(sum(length for _, length in ranges), size, None if source is None else 7)

    @hookimpl
    def check(self, image: LayerImage, repair: str | None) -> CheckResult:
        image.layer.log.append(f"check {repair}")
        return image.layer.repairs.pop(0)

    @hookimpl
    def snapshot_list(self, image: LayerImage) -> list[Snapshot]:
        return image.layer.snapshots

    @hookimpl
    def snapshot_create(self, image: LayerImage, name: str) -> bool:
        number = len(image.layer.snapshots) + 1
        image.layer.snapshots.append(Snapshot(str(number), name, 0, 0, 0, 0))
        return True

    @hookimpl
    def snapshot_apply(self, image: LayerImage, snapshot: Snapshot) -> bool:
        image.layer.log.append(f"apply {snapshot.id}")
        return True

    @hookimpl
    def snapshot_delete(self, image: LayerImage, snapshot: Snapshot) -> bool:
        image.layer.log.append(f"delete {snapshot.id}")
        return True

    @hookimpl
    def snapshot_view(self, image: LayerImage, snapshot: Snapshot) -> Image:
        return LayerImage(image.file, self.layers[f"snapshot {snapshot.id}"])

    @hookimpl
    def bitmap_list(self, image: LayerImage) -> list[Bitmap]:
        return list(image.layer.bitmaps.values())

    @hookimpl
    def bitmap_add(self, image: LayerImage, bitmap: Bitmap) -> bool:
        image.layer.bitmaps[bitmap.name] = bitmap
        image.layer.dirty[bitmap.name] = []
        return True

    @hookimpl
    def bitmap_remove(self, image: LayerImage, name: str) -> bool:
        del image.layer.bitmaps[name]
        return True

    @hookimpl
    def bitmap_enable(self, image: LayerImage, name: str, enabled: bool) -> bool:
        image.layer.bitmaps[name] = image.layer.bitmaps[name].replace(enabled=enabled)
        return True

    @hookimpl
    def bitmap_ranges(self, image: LayerImage, name: str) -> list[tuple[int, int]]:
        return list(image.layer.dirty[name])

    @hookimpl
    def bitmap_fill(self, image: LayerImage, name: str, ranges: Any, clear: bool) -> bool:
        kept = [] if clear else image.layer.dirty[name]
        image.layer.dirty[name] = kept + list(ranges)
        return True


class LayerWorld(World):
    """The made-up world with changeable images in it.

    :ivar layers: the images by name.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(monkeypatch, capsys)
        self.layers: dict[str, Layer] = {}
        self.warnings: list[str] = []
        self.context.warn = self.warnings.append
        self.context.formats.register("layer", LayerFormat(self.layers))

    def layer(self, name: str, clusters: str, backing_file: str | None = None) -> Layer:
        """Add an image; a digit is a cluster with that value in it, ``-`` one that it does not have."""
        self.toys[name] = Toy()
        self.layers[name] = layer = Layer(len(clusters) * CLUSTER, backing_file)
        for number, sign in enumerate(clusters):
            if sign == "0":
                layer.state[number] = Kind.ZERO
            elif sign != "-":
                layer.fill(number, int(sign))
        return layer

    def read(self, name: str) -> str:
        """What an image with all layers below it reads as, a digit for each cluster."""
        with self.context.open(name, "layer") as image:
            content = image.read_at(0, image.size)
        pieces = [content[start : start + CLUSTER] for start in range(0, len(content), CLUSTER)]
        assert all(len(set(piece)) == 1 for piece in pieces)
        return "".join(str(piece[0]) for piece in pieces)

    def own(self, name: str) -> str:
        """What an image itself has, as for :meth:`layer`."""
        layer = self.layers[name]
        signs = {Kind.DATA: lambda n: str(layer.space.data[n * CLUSTER]), Kind.ZERO: lambda n: "0"}
        return "".join(signs[layer.state[n]](n) if n in layer.state else "-" for n in range(-(-layer.size // CLUSTER)))


@pytest.fixture
def layer_world(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> LayerWorld:
    """A made-up world without images, in which they can be changed."""
    return LayerWorld(monkeypatch, capsys)
