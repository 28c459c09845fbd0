"""Entry points of the filters.

Source: ``BlockdevOptions`` in qemu ``qapi/block-core.json`` for names and defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diskwright.errors import InvalidOption
from diskwright.hookspecs import FilterOptions, hookimpl
from diskwright.node import SECTOR, Compressing, Image, Node, WritableImage
from diskwright.options import Option, OptionType
from diskwright.passing import Passing

PREALLOC_ALIGN = 1 << 20
PREALLOC_SIZE = 128 << 20
"""Bytes."""


class ThrottleFilter:
    """Lets requests through only as fast as a throttle group permits."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """One disk or file."""
        return ["file"]

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """The group."""
        return [Option("throttle-group", OptionType.STRING, "Id of the throttle group", strong=True)]

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """A disk that is a member of the group."""
        from .throttle import Throttle

        name = options.values.get("throttle-group")
        if name is None:
            raise InvalidOption("Please specify a throttle group")
        try:
            group = options.find_object("throttle-group", name)
        except LookupError:
            raise InvalidOption(f"Throttle group '{name}' does not exist") from None
        return Throttle(children["file"], group, writable=options.writable)


class CompressFilter:
    """Stores compressed whatever is written."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """One image."""
        return ["file"]

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """A disk above an image whose format knows compressed clusters."""
        from .compress import Compress

        below = children["file"]
        image = below
        while isinstance(image, Passing):
            image = image.below
        if image is not below or not isinstance(below, WritableImage) or not isinstance(below, Compressing):
            raise InvalidOption(f"Compression is not supported for underlying format: {below.driver}")
        return Compress(below, writable=options.writable)


class CopyOnReadFilter:
    """Keeps a copy of what is read from lower layers."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """One disk."""
        return ["file"]

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """Where to stop."""
        return [Option("bottom", OptionType.STRING, "Name of the lowest layer to copy from", strong=True)]

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """A disk whose layer grows while it is read; so it has to be writable."""
        from .copy_on_read import CopyOnRead

        if not options.writable:
            raise InvalidOption("Block node is read-only")
        name = options.values.get("bottom")
        bottom = None
        if name is not None:
            try:
                bottom = options.find_node(name)
            except LookupError:
                raise InvalidOption(f"Bottom node '{name}' not found") from None
            if isinstance(bottom, Passing):
                raise InvalidOption(f"Bottom node '{name}' is a filter")
        image = CopyOnRead(children["file"], bottom)
        if bottom is not None and image.depths is None:
            raise InvalidOption(f"Bottom node '{name}' is not in the backing chain")
        return image


class PreallocateFilter:
    """Lets a file grow in large steps."""

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        """One file."""
        return ["file"]

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """How large the steps are."""
        return [
            Option("prealloc-align", OptionType.SIZE, "The file's end is a multiple of this", default=PREALLOC_ALIGN),
            Option("prealloc-size", OptionType.SIZE, "How much to reserve behind a write", default=PREALLOC_SIZE),
        ]

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """The file, which is longer than it says while it is being written."""
        from .preallocate import Preallocate

        align = options.values.get("prealloc-align", PREALLOC_ALIGN)
        if align % SECTOR:
            raise InvalidOption(f"prealloc-align parameter of preallocate filter is not aligned to {SECTOR}")
        ahead = options.values.get("prealloc-size", PREALLOC_SIZE)
        return Preallocate(children["file"], writable=options.writable, align=align or 1, ahead=ahead)
