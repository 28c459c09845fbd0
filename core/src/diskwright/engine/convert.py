"""Converting: open the sources, make the target, copy, and see to it that the target is whole or not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, InvalidImage, InvalidOption, UnsupportedOperation, reason_of
from ..facts import Bitmap
from ..filenames import parse_filename
from ..node import Appending, Compressing, Image, Node
from ..options import parse_options
from ..record import Record
from .bitmaps import copy_bitmap, to_copy
from .chain import data_ranges
from .copy import CopyOptions, Progress, copy, no_progress
from .creation import CreateRequest, Creation, backing_values, declared_options, needs_size, require_unused
from .snapshots import view
from .streaming import Stream, StreamOptions

if TYPE_CHECKING:
    from ..context import Context


class ConvertRequest(Record):
    """What to convert into what.

    :ivar sources: file names; their disks follow each other in the target.
    :ivar source_format: format of all sources, found by probing if None.
    :ivar options: creation options as option strings.
    :ivar format: format of the target; ``None`` if the target exists and is named by a tree.
    :ivar snapshot: internal snapshot of the only source to convert, see :func:`diskwright.engine.snapshots.view`.
    :ivar create: False to write into an existing target.
    :ivar target_is_zero: an existing target, apart from its backing layers, reads as zeros.
    :ivar backing_file: backing file of the target, which then holds only what the source's top layer has.
    :ivar bitmaps: also copy the persistent dirty bitmaps of the only source.
    :ivar skip_broken_bitmaps: leave out inconsistent ones instead of failing.
    :ivar salvage: turn what cannot be read into zeros, with a warning.
    :ivar rate: most bytes to write in a second.
    :ivar offload: let the system copy from file to file where it can.
    :ivar cache: cache mode of the target; with ``unsafe`` nothing is forced to stable storage.
    """

    sources: Sequence[str]
    target: str
    source_format: str | None = None
    format: str | None = "raw"
    options: Sequence[str] = ()
    snapshot: str | None = None
    create: bool = True
    target_is_zero: bool = False
    backing_file: str | None = None
    backing_format: str | None = None
    cache: str = "unsafe"
    source_cache: str = "writeback"
    force_share: bool = False
    compress: bool = False
    sparse_size: int = 4096
    parallel: int = 8
    out_of_order: bool = False
    bitmaps: bool = False
    skip_broken_bitmaps: bool = False
    salvage: bool = False
    rate: int | None = None
    offload: bool = False


def convert(context: Context, request: ConvertRequest, progress: Progress = no_progress) -> None:
    """Copy the disks of the sources into one target image.

    :raises ImageError: it failed; a target that did not exist is not there, one that was to be replaced is as before.
    """
    with ExitStack() as stack:
        # What is wrong with a source is told before what is wrong with the target, as QEMU does.
        sources = [stack.enter_context(_open_source(context, name, request)) for name in request.sources]
        _require_single_source(request)
        run = _Conversion(context, request, sources, progress)
        values = _target_values(context, request) if request.create else {}
        if request.create and _is_sequential(context, request.target):
            run.into_stream(values)
        elif request.create:
            run.into_new(values)
        else:
            target = context.open(
                request.target,
                request.format,
                writable=True,
                cache=request.cache,
                discard=request.sparse_size > 0,
            )
            stack.enter_context(target)
            run.into_existing(target)


def _is_sequential(context: Context, target: str) -> bool:
    """Whether the target is something that can only be written from its first byte to its last."""
    return bool(getattr(context.protocols.load(parse_filename(target).protocol), "sequential", False))


def _require_single_source(request: ConvertRequest) -> None:
    if len(request.sources) == 1:
        return
    if request.snapshot is not None:
        raise InvalidOption("No support for concatenating multiple snapshot")
    if request.bitmaps:
        raise InvalidOption("Copying bitmaps only possible with single source")
    _require_own_content(request, request.backing_file)


def _require_own_content(request: ConvertRequest, backing_file: str | None) -> None:
    """Refuse to let several disks share what lies below: it would be that of the first, where it stands in the target.

    :param backing_file: the target's; creation options may name it too.
    """
    if backing_file is not None and len(request.sources) > 1:
        raise InvalidOption(
            "Having a backing file for the target makes no sense when concatenating multiple input images"
        )


def _open_source(context: Context, name: str, request: ConvertRequest) -> Image:
    return context.open(
        name,
        request.source_format,
        force_share=request.force_share,
        exclusive=not request.force_share,
        cache=request.source_cache,
    )


def _target_values(context: Context, request: ConvertRequest) -> dict[str, Any]:
    format = request.format or "raw"
    declared = declared_options(context, format, request.target)
    values = parse_options(declared, request.options)
    values.pop("size", None)  # the target is as large as the sources
    backing_file = request.backing_file or values.pop("backing_file", None)
    backing_format = request.backing_format or values.pop("backing_fmt", None)
    _require_own_content(request, backing_file)
    if request.compress and values.get("preallocation", "off") != "off":
        raise InvalidOption("Compression and preallocation not supported at the same time")
    if request.compress and (values.get("encryption") or values.get("encrypt.format")):
        raise InvalidOption("Compression and encryption not supported at the same time")
    if backing_file is not None and backing_format is None:
        raise InvalidOption("Use of backing file requires explicit backing format")
    target = CreateRequest(
        request.target,
        format,
        values=values,
        backing_file=backing_file,
        backing_format=backing_format,
    )
    return backing_values(target, declared)


class _Conversion:
    """One run: the opened sources and what is to become of them.

    :param images: the opened sources.
    """

    def __init__(self, context: Context, request: ConvertRequest, images: Sequence[Image], progress: Progress) -> None:
        self.context = context
        self.request = request
        self.images = images
        self.progress = progress
        self.sources = images
        if request.snapshot is not None:
            self.sources = [view(context, images[0], request.snapshot)]
        self.size = sum(source.size for source in self.sources)
        self.bitmaps: Sequence[Bitmap] = ()
        if request.bitmaps:
            self.bitmaps = to_copy(context, images[0], skip_broken=request.skip_broken_bitmaps)

    def into_new(self, values: Mapping[str, Any]) -> None:
        """Convert into a target that appears when it is complete.

        :param values: its creation options.
        """
        name, format = self.request.target, self.request.format or "raw"
        self._require_bitmaps(format)
        with Creation(self.context, self.request.cache, self.images) as creation:
            try:
                if not needs_size(self.context, format, values):
                    raise InvalidOption("What these options create has no room for data")
                node = creation.image(name, format, self.size, values)
            except ImageError as error:
                raise error.in_context(f"{name}: error while converting {format}") from error
            target = creation.opened(node, name, format)
            zeroed = target.new_reads_zero()
            self._copy(target, self._options(target, zeroed=zeroed, shared=self._shares_with(target)))

    def into_stream(self, values: Mapping[str, Any]) -> None:
        """Write a new image from its first byte to its last.

        :param values: its creation options.
        :raises UnsupportedOperation: the format cannot be written so.
        """
        request, format = self.request, self.request.format or "raw"
        self._require_bitmaps(format)
        if request.compress:
            raise UnsupportedOperation("Compression not supported for this file format")
        if not self.context.formats.has("stream", format):
            raise UnsupportedOperation(
                f"Format driver '{format}' cannot write to a stream: it has to go back in the file"
            )
        self.context.gate.policy.require_format(format, writable=True)
        with Creation(self.context, request.cache) as creation:
            sink = creation.file(parse_filename(request.target), {})
            require_unused(sink, self.images)
            if not isinstance(sink, Appending):
                raise UnsupportedOperation(f"'{request.target}' cannot be written one byte behind the other")
            ranges = data_ranges(self.sources)
            layout = self.context.formats.call("stream", format, size=self.size, values=values, ranges=ranges)
            salvage = self._warn_of_loss if request.salvage else None
            options = StreamOptions(request.sparse_size, request.parallel, request.rate, salvage)
            Stream(layout, self.sources, sink, options).run(self.progress)

    def into_existing(self, target: Image) -> None:
        """Convert into an image that is open for writing; what it held is lost."""
        for node in _own_nodes(target):
            require_unused(node, self.images)
        self._require_bitmaps(target.driver)
        shared = self.request.backing_file is not None and self._shares_with(target)
        self._copy(target, self._options(target, zeroed=self.request.target_is_zero, shared=shared))
        target.flush()

    def _shares_with(self, target: Image) -> bool:
        """Whether both stand on other layers; a source that stands on none has zeros where it has nothing."""
        return target.backing is not None and self.sources[0].backing is not None

    def _require_bitmaps(self, format: str) -> None:
        if self.request.bitmaps and not self.context.formats.has("bitmap_add", format):
            raise UnsupportedOperation(f"Format driver '{format}' does not support bitmaps")

    def _options(self, target: Image, *, zeroed: bool, shared: bool) -> CopyOptions:
        """How to copy.

        :param zeroed: whether the target, its backing layers aside, reads as zeros.
        :param shared: whether the target's backing layers hold what the sources' do.
        """
        request = self.request
        return CopyOptions(
            compress=request.compress,
            sparse_size=request.sparse_size,
            parallel=request.parallel,
            out_of_order=request.out_of_order,
            target_is_zero=zeroed,
            depth_limit=1 if shared else None,
            backing_size=0 if target.backing is None else target.backing.size,
            rate=request.rate,
            salvage=self._warn_of_loss if request.salvage else None,
            offload=request.offload,
        )

    def _warn_of_loss(self, offset: int, length: int, error: Exception) -> None:
        self.context.warn(f"error while reading offset {offset}: {reason_of(error)}")

    def _copy(self, target: Image, options: CopyOptions) -> None:
        if self.size > target.size:
            raise InvalidImage("output file is smaller than input file", filename=self.request.target)
        if self.request.compress and not isinstance(target, Compressing):
            raise UnsupportedOperation("Compression not supported for this file format")
        copy(self.sources, target, options, self.progress)
        for bitmap in self.bitmaps:
            copy_bitmap(self.context, bitmap, self.images[0], target)


def _own_nodes(image: Image) -> Iterator[Node]:
    """An image and what it stands on, without its backing layers: those are not written."""
    pending: list[Node] = [image]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.children().values())
