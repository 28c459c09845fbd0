"""Entry point ``vdi``: what the core may ask of the format. Everything that takes time to load hides in functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskwright.extent import Extent, ExtentTable
from diskwright.facts import CheckResult, Finding
from diskwright.hookspecs import CreateOptions, GuestRange, OpenOptions, ProbeHit, hookimpl
from diskwright.node import Image, Node
from diskwright.options import Option, OptionType

if TYPE_CHECKING:
    from .image import VdiImage

SIGNATURE = 0xBEDA107F


class VdiDriver:
    """VirtualBox disk images of the dynamic and static kind, with blocks of 1 MiB, as QEMU reads and writes them."""

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        """The signature stands behind a text of 64 bytes."""
        return ProbeHit("vdi", score=100) if head[0x40:0x44] == SIGNATURE.to_bytes(4, "little") else None

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        """Open; only the header is read."""
        from .image import VdiImage

        return VdiImage(source, options)

    @hookimpl
    def block_status(self, image: VdiImage, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """The block map as extents."""
        return image.map(offset, length)

    @hookimpl
    def check(self, image: VdiImage) -> CheckResult:
        """Compare the block map with itself, the file and the header; nothing of it can be repaired."""
        return image.check()

    @hookimpl
    def findings(self, image: VdiImage) -> Iterable[Finding]:
        """Data behind the last block, and flags nobody knows."""
        return image.findings()

    @hookimpl
    def creation_options(self) -> Sequence[Option]:
        """Size, and whether all blocks are allocated at once."""
        return [
            Option("size", OptionType.SIZE, "Virtual disk size"),
            Option("static", OptionType.BOOL, "VDI static (pre-allocated) image", default=False),
        ]

    @hookimpl
    def create(self, target: Node, options: CreateOptions) -> bool:
        """Write header and block map."""
        from .layout import create

        return create(target, options)

    @hookimpl
    def stream(
        self, size: int, values: Mapping[str, Any], ranges: Iterable[tuple[int, int]]
    ) -> Iterable[bytes | GuestRange]:
        """Header, block map, and the blocks with data in the order of the disk."""
        from .layout import stream

        return stream(size, values, ranges)
