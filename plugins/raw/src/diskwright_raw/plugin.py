"""Entry point ``raw``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from diskwright.errors import InvalidOption
from diskwright.extent import Extent, ExtentTable
from diskwright.facts import Finding, Measurement, Severity
from diskwright.hookspecs import CreateOptions, GuestRange, OpenOptions, ProbeHit, hookimpl
from diskwright.node import SECTOR, Image, Node, Truncatable
from diskwright.options import Option, OptionType

if TYPE_CHECKING:
    from .image import RawImage


class RawDriver:
    """A disk without any format: its bytes are those of the file. Hence anything may be one, but nothing says so.

    :cvar shares_writers: others may write to the file meanwhile: there is no metadata that could get out of step.
    """

    shares_writers = True

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        """Any bytes are possible, so every other driver comes first."""
        return ProbeHit("raw", score=1)

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        """Open all of the file, or the range that the runtime options name."""
        from .image import RawImage

        return RawImage(source, options)

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """Which range of the file the disk is."""
        return [
            Option("offset", OptionType.SIZE, "Offset in the file at which the disk starts", strong=True),
            Option("size", OptionType.SIZE, "Size of the disk, if it does not go to the end of the file", strong=True),
        ]

    @hookimpl
    def block_status(self, image: Image, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """The map of the file, moved by the offset of the disk in it."""
        return _own(image).map(offset, length)

    @hookimpl
    def resize(self, image: Image, size: int, preallocation: str) -> bool:
        """Make the file longer or shorter."""
        _own(image).truncate(size, preallocation)
        return True

    @hookimpl
    def measure(self, size: int) -> Measurement:
        """The disk is the file."""
        whole = -(-size // SECTOR) * SECTOR
        return Measurement(required=whole, fully_allocated=whole)

    @hookimpl
    def creation_options(self) -> Sequence[Option]:
        """The size; how the file is made is for its protocol to declare."""
        return [Option("size", OptionType.SIZE, "Virtual disk size")]

    @hookimpl
    def create(self, target: Node, options: CreateOptions) -> bool:
        """Give the file its length."""
        if isinstance(target, Truncatable):
            target.truncate(options.size, options.get("preallocation", "off"))
        elif target.size < options.size:
            raise InvalidOption(f"'{options.filename}' has {target.size} bytes and cannot be made larger")
        return True

    @hookimpl
    def findings(self, image: Image) -> Iterable[Finding]:
        """A file that is no whole number of sectors was not made as a disk, or was cut."""
        rest = image.file.size % SECTOR
        if rest:
            yield Finding(Severity.NOTE, "odd-size", f"the last sector of the file has {rest} bytes only")

    @hookimpl
    def stream(self, size: int) -> Iterable[bytes | GuestRange]:
        """The disk is the file."""
        return [GuestRange(0, size)] if size else []


def _own(image: Image) -> RawImage:
    from .image import RawImage

    if not isinstance(image, RawImage):
        raise TypeError(f"{type(image).__name__} is not a raw image")
    return image
