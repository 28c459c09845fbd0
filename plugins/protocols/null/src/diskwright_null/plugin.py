"""Entry points ``null-co`` and ``null-aio``.

The two differ in QEMU's way of waiting only, and not at all here.
Source: qemu ``block/null.c`` for names and defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diskwright.errors import InvalidOption
from diskwright.extent import Extent, ExtentTable
from diskwright.hookspecs import ProtocolOptions, hookimpl
from diskwright.node import Node
from diskwright.options import Option, OptionType

DEFAULT_SIZE = 1 << 30
"""Bytes."""
MAX_SIZE = (1 << 63) - 1


class NullCoDriver:
    """A disk that forgets what is written to it.

    :cvar needs_filename: it is one without a name, too.
    """

    name = "null-co"
    needs_filename = False

    @hookimpl
    def open(self, filename: str, options: ProtocolOptions) -> Node:
        """A new device; its name says nothing more than that."""
        from .node import NullNode

        only = f"{self.name}://"
        if filename not in ("", only):
            raise InvalidOption(f"The only allowed filename for this driver is '{only}'")
        size = options.values.get("size", DEFAULT_SIZE)
        if size > MAX_SIZE:
            raise InvalidOption("Parameter 'size' is out of range")
        return NullNode(
            only,
            size,
            writable=options.writable,
            latency=options.values.get("latency-ns", 0) / 1e9,
            read_zeroes=options.values.get("read-zeroes", False),
        )

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """Size and behaviour."""
        return [
            Option("size", OptionType.SIZE, "Size of the disk", strong=True),
            Option("latency-ns", OptionType.NUMBER, "Time that each request takes, nanoseconds"),
            Option("read-zeroes", OptionType.BOOL, "Say of all of it that it reads as zeros", strong=True),
        ]

    @hookimpl
    def block_status(self, image: Node, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """Nothing is stored anywhere."""
        from .node import NullNode

        if not isinstance(image, NullNode):
            raise TypeError(f"{type(image).__name__} is not a null device")
        return [image.extent(offset, length)]


class NullAioDriver(NullCoDriver):
    """The same by another name."""

    name = "null-aio"
