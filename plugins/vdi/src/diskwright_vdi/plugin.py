"""Entry point ``vdi``: what the core may ask of the format. Everything that takes time to load hides in functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from diskwright.errors import UnsupportedOperation
from diskwright.extent import Extent, ExtentTable
from diskwright.hookspecs import CheckResult, CreateOptions, OpenOptions, ProbeHit, hookimpl
from diskwright.node import Image, Node
from diskwright.options import Option, OptionType

if TYPE_CHECKING:
    from .image import VdiImage

SIGNATURE = b"\x7f\x10\xda\xbe"


class VdiDriver:
    """VirtualBox disk images of the dynamic and static kind, with blocks of 1 MiB, as QEMU reads and writes them."""

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        """The signature stands behind a text of 64 bytes."""
        return ProbeHit("vdi", score=100) if head[0x40:0x44] == SIGNATURE else None

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        """Open; only the header is read."""
        from .image import VdiImage

        return VdiImage(source, options)

    @hookimpl
    def block_status(self, image: Image, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """The block map as extents."""
        return _own(image).map(offset, length)

    @hookimpl
    def check(self, image: Image, repair: str | None) -> CheckResult:
        """Compare the block map with itself, the file and the header; nothing of it can be repaired."""
        from .check import check

        if repair is not None:
            raise UnsupportedOperation("This image format does not support checks")
        return check(_own(image))

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
        from .create import create

        return create(target, options)


def _own(image: Image) -> VdiImage:
    from .image import VdiImage

    if not isinstance(image, VdiImage):
        raise TypeError(f"{type(image).__name__} is not a VDI image")
    return image
