"""A world of made-up files and images, so that subcommands are tested without any plugin."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from diskwright.cli import App, main
from diskwright.context import Context
from diskwright.errors import NodeIOError
from diskwright.extent import Extent, Flag, Kind
from diskwright.hookspecs import CheckResult, Description, OpenOptions, ProbeHit, ProtocolOptions, Snapshot, hookimpl
from diskwright.node import Image, Node
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

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        code = main(list(arguments), program="qemu-img")
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    """An empty made-up world."""
    return World(monkeypatch, capsys)
