"""What all parts of the conformance kit share."""

from __future__ import annotations

import gzip
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..context import Context, default_context
from ..extent import Extent, ExtentTable
from ..graph import OpenRequest, open_format
from ..hookspecs import CreateOptions
from ..node import Image, Node
from .nodes import MemoryNode
from .oracle import qemu_img

MIB = 1 << 20


def open_node(node: Node, format: str, *, writable: bool = False, context: Context | None = None) -> Image:
    """Open the image in a node as the core does, without its backing layers."""
    request = OpenRequest(writable=writable, backing=False)
    return open_format(context or default_context(), node, node.filename, format, request)


class DriverTests:
    """Settings of a conformance test and the means that its parts use.

    :cvar name: the driver's registered name.
    :cvar entry_module: the module that its entry point names.
    :cvar sample_path: an image of the format made by another program, may be gzipped; the real qemu-img makes one if
        it is not set.
    :cvar oracle: name of the format in qemu-img, ``None`` if that does not know it.
    :cvar variants: sets of creation options, as typed values, with which images are created and written.
    :cvar snapshot_variants: those of them that can have internal snapshots, all if ``None``.
    """

    name: ClassVar[str]
    entry_module: ClassVar[str]
    sample_path: ClassVar[Path | None] = None
    oracle: ClassVar[str | None] = ""
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    snapshot_variants: ClassVar[Sequence[Mapping[str, Any]] | None] = None

    _samples: ClassVar[dict[str, bytes]] = {}

    @pytest.fixture(autouse=True)
    def _with_context(self) -> None:
        self.context = Context()

    def sample(self) -> bytes:
        """An image with some data in it; override it to make one in another way. The default skips the test if it
        can neither read nor make one."""
        if self.sample_path is not None:
            stored = self.sample_path.read_bytes()
            return gzip.decompress(stored) if self.sample_path.suffix == ".gz" else stored
        if self.name not in self._samples:
            with tempfile.TemporaryDirectory() as directory:
                raw, made = Path(directory, "sample.raw"), Path(directory, "sample")
                raw.write_bytes(patchwork(3 * MIB + 512))
                qemu_img("convert", "-f", "raw", "-O", self.oracle_name(), raw, made)
                self._samples[self.name] = made.read_bytes()
        return self._samples[self.name]

    def oracle_name(self) -> str:
        """The format's name in qemu-img; skips the test if it has none."""
        if self.oracle is None:
            pytest.skip(f"qemu-img does not know {self.name}")
        return self.oracle or self.name

    def has(self, hook: str) -> bool:
        """Whether the driver implements a hook."""
        return self.context.formats.has(hook, self.name)

    def need(self, hook: str) -> None:
        """Skip the test if the driver does not implement a hook."""
        if not self.has(hook):
            pytest.skip(f"the driver has no {hook}")

    def open_node(self, node: Node, *, writable: bool = False) -> Image:
        """Open the image in a node, as the core does."""
        return open_node(node, self.name, writable=writable, context=self.context)

    def create_in(self, node: Node, size: int, values: Mapping[str, Any]) -> None:
        """Create an image in a node.

        :param size: bytes, whole sectors.
        """

        def no_child(name: str, size: int, preallocation: str) -> Node:
            pytest.skip("the driver creates further files")

        options = CreateOptions(filename=node.filename, size=size, values=values, create_child=no_child)
        self.context.formats.call("create", self.name, target=node, options=options)

    def sample_node(self) -> MemoryNode:
        """The sample as a file that must not be written."""
        return MemoryNode(self.sample(), filename=f"sample.{self.name}")


def patchwork(size: int, seed: int = 1) -> bytes:
    """Bytes as disks have them: random, repeated, and zero, in pieces that end where they like."""
    chance = random.Random(seed)
    parts: list[bytes] = []
    left = size
    while left > 0:
        length = min(left, chance.choice((512, 4096, 65536, 300_000)) + chance.randrange(512))
        kind = chance.randrange(3)
        parts.append(chance.randbytes(length) if kind == 0 else bytes([kind - 1 and chance.randrange(256)]) * length)
        left -= length
    return b"".join(parts)


def singly(items: Iterable[Extent | ExtentTable]) -> Iterator[Extent]:
    """Extents one by one, however they travel."""
    for item in items:
        if isinstance(item, ExtentTable):
            yield from item
        else:
            yield item
