"""Converting: open the sources, make the target, copy, and see to it that the target is whole or not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, InvalidImage, InvalidOption, UnsupportedOperation
from ..node import Compressing, Image, all_nodes
from ..options import parse_options
from .copy import CopyOptions, Progress, copy, no_progress
from .creation import CreateRequest, Creation, backing_values, declared_options, require_unused

if TYPE_CHECKING:
    from ..context import Context


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert into what.

    :ivar sources: file names; their disks follow each other in the target.
    :ivar source_format: format of all sources, found by probing if None.
    :ivar options: creation options as option strings.
    :ivar create: False to write into an existing target.
    :ivar backing_file: backing file of the target, which then holds only what the source's top layer has.
    :ivar cache: cache mode of the target; with ``unsafe`` nothing is forced to stable storage.
    :ivar copying: how to copy; what is known of the target is filled in.
    """

    sources: Sequence[str]
    target: str
    source_format: str | None = None
    format: str = "raw"
    options: Sequence[str] = ()
    create: bool = True
    backing_file: str | None = None
    backing_format: str | None = None
    cache: str = "unsafe"
    source_cache: str = "writeback"
    force_share: bool = False
    compress: bool = False
    sparse_size: int = 4096
    parallel: int = 8
    out_of_order: bool = False


def convert(context: Context, request: ConvertRequest, progress: Progress = no_progress) -> None:
    """Copy the disks of the sources into one target image.

    :raises ImageError: it failed; a target that did not exist is not there, one that was to be replaced is as before.
    """
    if request.backing_file is not None and len(request.sources) > 1:
        raise InvalidOption(
            "Having a backing file for the target makes no sense when concatenating multiple input images"
        )
    values = _target_values(context, request) if request.create else {}
    with ExitStack() as stack:
        sources = [stack.enter_context(_open_source(context, name, request)) for name in request.sources]
        size = sum(source.size for source in sources)
        if request.create:
            _convert_into_new(context, request, sources, size, values, progress)
        else:
            target = context.open(request.target, request.format, writable=True, cache=request.cache)
            stack.enter_context(target)
            for node in all_nodes(target):
                require_unused(node, sources)
            _copy(request, sources, target, progress, new=False)
            target.flush()


def _open_source(context: Context, name: str, request: ConvertRequest) -> Image:
    return context.open(
        name,
        request.source_format,
        force_share=request.force_share,
        exclusive=not request.force_share,
        cache=request.source_cache,
    )


def _target_values(context: Context, request: ConvertRequest) -> dict[str, Any]:
    declared = declared_options(context, request.format, request.target)
    values = parse_options(declared, request.options)
    values.pop("size", None)  # the target is as large as the sources
    if request.compress and values.get("preallocation", "off") != "off":
        raise InvalidOption("Compression and preallocation not supported at the same time")
    backing_file = request.backing_file or values.pop("backing_file", None)
    backing_format = request.backing_format or values.pop("backing_fmt", None)
    if backing_file is not None and backing_format is None:
        raise InvalidOption("Use of backing file requires explicit backing format")
    target = CreateRequest(
        request.target,
        request.format,
        values=values,
        backing_file=backing_file,
        backing_format=backing_format,
    )
    return backing_values(target, declared)


def _convert_into_new(
    context: Context,
    request: ConvertRequest,
    sources: Sequence[Image],
    size: int,
    values: Mapping[str, Any],
    progress: Progress,
) -> None:
    with Creation(context, request.cache, sources) as creation:
        try:
            node = creation.image(request.target, request.format, size, values)
        except ImageError as error:
            raise error.in_context(f"{request.target}: error while converting {request.format}") from error
        target = creation.opened(node, request.target, request.format)
        _copy(request, sources, target, progress, new=True)


def _copy(request: ConvertRequest, sources: Sequence[Image], target: Image, progress: Progress, *, new: bool) -> None:
    if sum(source.size for source in sources) > target.size:
        raise InvalidImage("output file is smaller than input file", filename=request.target)
    if request.compress and not isinstance(target, Compressing):
        raise UnsupportedOperation("Compression not supported for this file format")
    backing = target.backing if new else None
    options = CopyOptions(
        compress=request.compress,
        sparse_size=request.sparse_size,
        parallel=request.parallel,
        out_of_order=request.out_of_order,
        target_is_zero=new and target.new_reads_zero(),
        depth_limit=None if backing is None else 1,
        backing_size=0 if backing is None else backing.size,
    )
    copy(sources, target, options, progress)
