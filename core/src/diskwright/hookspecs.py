"""The control plane contract: what a driver may implement, as pluggy hook specifications.

A driver is an object: an entry point names its class, and the methods of its instance marked :data:`hookimpl` are the
hook implementations. ``probe`` and ``open`` are required of a format, ``open`` of a protocol; every other hook is an
ability that exists where it is implemented. Implementations name every argument they use exactly as here, without
defaults.

Nothing here runs per byte: hot calls are methods of the nodes that ``open`` returns (see :mod:`diskwright.node`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from . import discovery
from .extent import Extent, ExtentTable
from .facts import Bitmap, CheckResult, Description, Finding, Measurement, Snapshot
from .light_pluggy import pluggy
from .node import Image, Node
from .options import Option
from .requests import PROBE_LENGTH as PROBE_LENGTH
from .requests import CreatedNode as CreatedNode
from .requests import CreateOptions as CreateOptions
from .requests import FilterOptions as FilterOptions
from .requests import GuestRange as GuestRange
from .requests import OpenOptions as OpenOptions
from .requests import ProbeHit as ProbeHit
from .requests import ProtocolOptions as ProtocolOptions
from .requests import no_secrets as no_secrets
from .requests import say_nothing as say_nothing
from .tracing import Event

FORMAT_GROUP = discovery.FORMAT_GROUP
PROTOCOL_GROUP = discovery.PROTOCOL_GROUP
FILTER_GROUP = discovery.FILTER_GROUP

PROJECT = "diskwright"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class FormatSpecs(Protocol):
    """Hooks of a format driver (entry point group ``diskwright.formats``)."""

    @hookspec
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        """Tell whether this driver knows the format. Imports nothing but the standard library and diskwright.

        :param head: the first bytes of the file, at most :data:`PROBE_LENGTH`.
        :param filename: its name, for formats that go by it.
        :returns: a hit, or ``None``. The best score wins; two best are an error.
        Source: qemu ``bdrv_probe_all``.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def open(self, source: Node, options: OpenOptions) -> Image:
        """Open the image that stands in ``source``, which stays open when this fails.

        The image is not written here, whatever the mode: the first write may mark it as in use.

        :raises InvalidImage: the bytes break the format.
        :raises UnsupportedFeature: the image needs something that this driver lacks.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def runtime_options(self) -> Sequence[Option]:
        """The options that ``open`` takes; without this hook there are none. Dots in their names are levels."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def child_roles(self) -> Sequence[str]:
        """The roles, besides ``file`` and ``backing``, for which a user may name a node of his own.

        They are names of runtime options whose values are option trees, e.g. ``header.filename=...``.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def trace_events(self) -> Sequence[Event]:
        """The events that the driver tells of while it is traced, for the list of them; see :mod:`diskwright.tracing`.

        Their names start with that of the driver. They are declared in a module that this hook, and what tells of them,
        imports.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def creation_options(self) -> Sequence[Option]:
        """The options that ``create`` takes, ``size`` included, in the order in which they are to be shown."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def create(self, target: Node, options: CreateOptions) -> bool:
        """Make ``target``, an empty writable node, an image of ``options.size`` bytes that reads as zeros.

        :returns: True.
        :raises InvalidOption: options contradict each other or are out of the format's range.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def stream(
        self, size: int, values: Mapping[str, Any], ranges: Iterable[tuple[int, int]]
    ) -> Iterable[bytes | GuestRange]:
        """The file of a new image with data in it, from its first byte to its last, for targets that cannot seek.

        :param size: virtual size, bytes, a multiple of 512.
        :param values: creation options, typed.
        :param ranges: the guest ranges that hold data, (offset, length) in bytes, in order; the rest reads as zeros.
        :returns: the format's own bytes and ranges of the disk, in the order of the file, produced lazily; ranges are
            long where possible, and in guest order.
        :raises InvalidOption: no image can have that size, or these options.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def needs_size(self, values: Mapping[str, Any]) -> bool:
        """Whether an image with these creation options has a size of its own; without this hook each image has.

        If not, and none is given, ``options.size`` of ``create`` is 0.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def block_status(self, image: Image, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """Map a guest range of this layer, backing layers excluded. Without this hook all of it is encoded.

        :param offset: bytes from the start of the guest disk, >= 0.
        :param length: bytes, > 0; offset + length <= image.size.
        :returns: extents in order, without gaps, covering exactly the range, produced lazily, in bounded memory;
            neighbours that continue each other should be one. Many at once travel as an ``ExtentTable``.
        :raises InvalidImage: a table entry points where it cannot.
        Source: qemu ``bdrv_co_block_status``.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def amend_options(self) -> Sequence[Option]:
        """The options that ``amend`` takes, in the order in which they are to be shown."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def amend(self, image: Image, values: Mapping[str, Any], force: bool, progress: Callable[[int, int], None]) -> bool:
        """Change what was laid down when an image, opened for writing, was created.

        :param values: options of ``amend_options`` by name, each of its declared type.
        :param force: go ahead where guest data may become unreadable.
        :param progress: may be called now and then with the work done and the work there is, in any unit; the total may
            change. Drivers need not take it.
        :returns: True, once the change is written and flushed.
        :raises InvalidOption: the options contradict each other or the image; it is unchanged.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def describe(self, image: Image) -> Description:
        """The facts that ``info`` shows; reads metadata of the image itself only."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def findings(self, image: Image) -> Iterable[Finding]:
        """What somebody should know who has the image from a stranger, as far as only the format can tell.

        The core reports by itself: the backing file, encryption, how many snapshots and bitmaps there are, what
        ``check`` finds, and sizes that do not fit together. Reads metadata of the image itself only.

        :param image: as for ``describe``.
        :raises InvalidImage: what is looked at breaks the format.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def snapshot_list(self, image: Image) -> Sequence[Snapshot]:
        """The internal snapshots in the order in which the image lists them."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def snapshot_create(self, image: Image, name: str) -> bool:
        """Keep the present content of the disk as an internal snapshot.

        :param name: need not be unique; cut to what the format can hold.
        :returns: True.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def snapshot_apply(self, image: Image, snapshot: Snapshot) -> bool:
        """Give the disk the content, and the size, that it had when the snapshot was made.

        :param snapshot: one of those that ``snapshot_list`` has named.
        :returns: True.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def snapshot_delete(self, image: Image, snapshot: Snapshot) -> bool:
        """Remove a snapshot and what only it needs.

        :param snapshot: one of those that ``snapshot_list`` has named.
        :returns: True.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def snapshot_view(self, image: Image, snapshot: Snapshot) -> Image:
        """The disk as it was when a snapshot was made, for reading; the image must stay open as long.

        The core gives it the image's own backing layer. Closing it does not close the image's files.

        :param snapshot: one of those that ``snapshot_list`` has named.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def resize(self, image: Image, size: int, preallocation: str) -> bool:
        """Give the disk another size; what is new reads as zeros, what is cut off is lost.

        :param size: bytes, a multiple of 512.
        :param preallocation: ``off``, ``metadata``, ``falloc`` or ``full``, for what is new; ``off`` when it shrinks.
        :returns: True.
        :raises InvalidOption: the format cannot have that size or mode.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def set_backing(self, image: Image, backing_file: str | None, backing_format: str | None) -> bool:
        """Note another backing file in the image, or none; its content is not looked at.

        :returns: True.
        :raises InvalidOption: the names do not fit into the image.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def make_empty(self, image: Image) -> bool:
        """Forget all data of this layer, so that the backing layer shows everywhere.

        :returns: True.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def measure(
        self,
        size: int,
        values: Mapping[str, Any],
        ranges: Iterable[tuple[int, int]],
        source: Image | None,
        secret: Callable[[str], bytes],
    ) -> Measurement:
        """Tell how large an image with these creation options would be.

        :param size: virtual size, bytes, any number: a format rounds it as it needs to.
        :param values: creation options, typed.
        :param ranges: the guest ranges that hold data, (offset, length) in bytes, in order.
        :param source: the image that would be converted, for its bitmaps; ``None`` without one.
        :param secret: ``secret(id)`` is the content of a secret object, as for ``create``.
        :raises InvalidOption: no image could be created with these options.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def bitmap_list(self, image: Image) -> Sequence[Bitmap]:
        """The persistent dirty bitmaps."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def bitmap_add(self, image: Image, bitmap: Bitmap) -> bool:
        """Add an empty bitmap.

        :returns: True.
        :raises InvalidOption: the image cannot have it.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def bitmap_remove(self, image: Image, name: str) -> bool:
        """Remove a bitmap, which may be inconsistent.

        :returns: True.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def bitmap_enable(self, image: Image, name: str, enabled: bool) -> bool:
        """Set whether writes are recorded in a bitmap.

        :returns: True.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def bitmap_ranges(self, image: Image, name: str) -> Iterable[tuple[int, int]]:
        """The guest ranges that a bitmap marks as dirty: (offset, length) in bytes, in order, produced lazily."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def bitmap_fill(self, image: Image, name: str, ranges: Iterable[tuple[int, int]], clear: bool) -> bool:
        """Mark guest ranges as dirty; a bit is set if any byte of it is in a range.

        :param clear: whether to forget before what is marked now.
        :returns: True.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def check(self, image: Image, repair: str | None) -> CheckResult:
        """Compare all metadata with itself and with the file.

        :param repair: ``None``: change nothing; ``leaks``: give back leaked clusters; ``all``: repair what can be
            repaired without losing data. The result is what was found before, and how much of it was repaired.
        :raises UnsupportedOperation: it cannot repair; a driver that never can leaves out the argument instead.
        :raises OSError: the metadata cannot be read at all.
        """
        raise NotImplementedError


class ProtocolSpecs(Protocol):
    """Hooks of a protocol driver (entry point group ``diskwright.protocols``); entry points are named like prefixes."""

    @hookspec(firstresult=True)
    def open(self, filename: str, options: ProtocolOptions) -> Node:
        """Open an existing file, device or export. Never blocks on something that is none of these.

        :param filename: the name without the protocol's prefix if it is a path, whole if it is a URL.
        :raises NodeIOError: the system refuses.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def runtime_options(self) -> Sequence[Option]:
        """The options that ``open`` takes besides ``filename``; without this hook there are none."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def trace_events(self) -> Sequence[Event]:
        """The events that the driver tells of while it is traced, for the list of them; see :mod:`diskwright.tracing`.

        Their names start with that of the driver. They are declared in a module that this hook, and what tells of them,
        imports.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def creation_options(self) -> Sequence[Option]:
        """The options that ``create`` takes, in the order in which they are to be shown."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def create(self, filename: str, options: ProtocolOptions) -> CreatedNode:
        """Create an empty file, or prepare to replace an existing one, and open it for writing.

        Nothing that exists is harmed before :meth:`CreatedNode.commit`.

        :raises LockConflict: another process uses the existing file.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def describe(self, image: Node) -> Description:
        """The facts that ``info`` shows of a node, if there are any besides its size."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def block_status(self, image: Node, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        """As for formats; without this hook all of a node is data at its own offset."""
        raise NotImplementedError


class FilterSpecs(Protocol):
    """Hooks of a filter driver (entry point group ``diskwright.filters``): a disk made of other disks' bytes."""

    @hookspec(firstresult=True)
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        """Make a disk of the children, which are open; they stay open when this fails.

        :param children: by role, as ``child_roles`` names them; a filter closes them when it is closed. Most filters
            are a :class:`diskwright.passing.Passing`.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def child_roles(self) -> Sequence[str]:
        """The roles of the nodes that the filter needs, ``file`` for one. ``children.*`` is a list of any length."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def runtime_options(self) -> Sequence[Option]:
        """The options that ``open`` takes. Dots in their names are levels, a level ``*`` is an index of a list."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def trace_events(self) -> Sequence[Event]:
        """The events that the driver tells of while it is traced, for the list of them; see :mod:`diskwright.tracing`.

        Their names start with that of the driver. They are declared in a module that this hook, and what tells of them,
        imports.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def tree_of_name(self, filename: str) -> Mapping[str, Any]:
        """The option tree that a name with the driver's prefix stands for, as ``prefix:a:b``.

        :returns: runtime options and children by role, a child as ``{"filename": name}``.
        :raises InvalidOption: the name is malformed.
        """
        raise NotImplementedError


SPECS: Mapping[str, type] = {FORMAT_GROUP: FormatSpecs, PROTOCOL_GROUP: ProtocolSpecs, FILTER_GROUP: FilterSpecs}
"""The hook specifications of each group."""
