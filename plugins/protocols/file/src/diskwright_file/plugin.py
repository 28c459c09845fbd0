"""Entry points ``file``, ``host_device`` and ``stdout``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from diskwright.errors import InvalidOption, UnsupportedOperation
from diskwright.extent import Extent, ExtentTable
from diskwright.facts import Description
from diskwright.hookspecs import CreatedNode, ProtocolOptions, hookimpl
from diskwright.node import Node
from diskwright.options import Option, OptionType

if TYPE_CHECKING:
    from .node import FileNode

LOCKING = ("auto", "on", "off")
AIO = ("threads", "native", "io_uring")


class FileDriver:
    """Regular files and block devices, by path."""

    character_devices = False
    regular_files = True

    @hookimpl
    def open(self, filename: str, options: ProtocolOptions) -> Node:
        """Open an existing file or block device."""
        from .node import DIRECT, FileNode, open_existing

        if options.values.get("aio") == "native" and options.cache not in DIRECT:
            raise InvalidOption("aio=native was specified, but it requires cache.direct=on, which was not specified.")
        fd = open_existing(
            filename, options, regular_files=self.regular_files, character_devices=self.character_devices
        )
        node = FileNode(fd, filename, options)
        if options.cache in DIRECT:
            _go_direct(node)
        return node

    @hookimpl
    def runtime_options(self) -> Sequence[Option]:
        """How the file is locked; the rest is about event loops and helper processes, and changes nothing here.

        Requests are made by threads. The one maintained package for the kernel's queues, caio, reads into memory of its
        own that is not aligned, which fails past the page cache, where these queues would be of use.
        """
        return [
            Option("locking", OptionType.STRING, "Whether to lock the file (auto, on, off)", choices=LOCKING),
            Option("aio", OptionType.STRING, "Accepted; threads do all I/O (threads, native, io_uring)", choices=AIO),
            Option("aio-max-batch", OptionType.NUMBER, "Most requests that QEMU would submit at once"),
            Option("pr-manager", OptionType.STRING, "Persistent reservations, which are for running machines only"),
            Option("drop-cache", OptionType.BOOL, "Drop the page cache when a machine moves away"),
            Option("x-check-cache-dropped", OptionType.BOOL, "See whether that has happened"),
        ]

    @hookimpl
    def creation_options(self) -> Sequence[Option]:
        """What the file system can be told of a new file."""
        return [
            Option(
                "preallocation",
                OptionType.STRING,
                "Preallocation mode (allowed values: off, falloc, full)",
            ),
            Option("nocow", OptionType.BOOL, "Turn off copy-on-write (valid only on btrfs)"),
            Option("extent_size_hint", OptionType.SIZE, "Extent size hint for the image file, 0 to disable"),
        ]

    @hookimpl
    def create(self, filename: str, options: ProtocolOptions) -> CreatedNode:
        """Create a file, or prepare to replace an existing one; a block device is used in place."""
        from .create import create
        from .node import DIRECT

        node = create(filename, options)
        if options.cache in DIRECT:
            _go_direct(node)
        return node

    @hookimpl
    def describe(self) -> Description:
        """A file has no facts of its own, and QEMU says just that."""
        return Description(specific={}, dirty=False, type="file")

    @hookimpl
    def block_status(self, image: Node, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """Data and holes as the file system tells them apart."""
        from .node import FileNode
        from .sparse import file_extents

        if not isinstance(image, FileNode):
            raise TypeError(f"{type(image).__name__} is not a file")
        return file_extents(image, image.fileno(writing=False), offset, length)


class HostDeviceDriver(FileDriver):
    """Block and character devices, by path."""

    character_devices = True
    regular_files = False

    @hookimpl
    def create(self, filename: str, options: ProtocolOptions) -> CreatedNode:
        """A device exists already: it is prepared to be overwritten."""
        from .create import create_on_device
        from .node import DIRECT

        node = create_on_device(filename, options)
        if options.cache in DIRECT:
            _go_direct(node)
        return node


class StandardOutputDriver:
    """Standard output, which has no name of its own: whatever the caller has made of it.

    :cvar sequential: it can only be written, from the first byte to the last.
    """

    needs_filename = False
    sequential = True

    @hookimpl
    def open(self, filename: str, options: ProtocolOptions) -> Node:
        """There is nothing to be read."""
        raise UnsupportedOperation("Standard output can only be the target of a conversion")

    @hookimpl
    def create(self, filename: str, options: ProtocolOptions) -> CreatedNode:
        """Begin to write."""
        from .stdout import StandardOutput

        return StandardOutput(options)


def _go_direct(node: FileNode) -> None:
    try:
        node.go_direct()
    except BaseException:
        node.close()
        raise
