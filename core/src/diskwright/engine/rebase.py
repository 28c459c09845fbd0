"""Rebasing: an overlay gets another backing file and keeps its content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import ImageError, InvalidOption, UnknownFormat
from ..extent import Kind
from ..filenames import backing_filename
from ..node import AlwaysCompressing, Compressing, Image, WritableImage, all_nodes, read_padded, write_beside
from ..passing import unfiltered
from ..record import Record
from ..zeroing import make_zeros
from .chain import layers, resolve
from .copy import CELL, Progress, no_progress
from .differences import differing_runs, suspects, windows
from .ranges import Range, intersection

if TYPE_CHECKING:
    from ..context import Context

ZEROED_AT_ONCE = 4096
"""Ranges of zeros written before the image is mapped again."""


class RebaseRequest(Record):
    """What to rebase onto what.

    :ivar backing_file: name of the new backing file, relative to the image; empty for none.
    :ivar unsafe: only note the new name; the caller knows that the content is the same.
    :ivar compress: write what has to be written as compressed clusters.
    """

    filename: str
    backing_file: str
    format: str | None = None
    backing_format: str | None = None
    unsafe: bool = False
    compress: bool = False
    force_share: bool = False
    cache: str = "writeback"
    backing_cache: str = "writeback"


def rebase(context: Context, request: RebaseRequest, progress: Progress = no_progress) -> None:
    """Give an overlay another backing file.

    Unless unsafe, everything that reads differently in the new one is first written into the overlay and made durable;
    only then does the overlay name the new one. So the disk reads the same whenever it ends.

    :raises ImageError: it failed; the overlay still names the old backing file.
    """
    _require_known_format(context, request)
    with context.open(
        request.filename, request.format, writable=True, backing=not request.unsafe, cache=request.cache, discard=True
    ) as top:
        if request.compress and not isinstance(top, Compressing):
            raise ImageError("Compression not supported for this file format")
        disk = unfiltered(top)
        if not context.formats.has("set_backing", disk.driver):
            raise ImageError(f"Could not change the backing file to '{request.backing_file}': Operation not supported")
        if not request.unsafe:
            _detect_no_zeros(top)
            _keep_content(context, top, request, progress)
            top.flush()
        try:
            context.formats.call(
                "set_backing",
                disk.driver,
                image=disk,
                backing_file=request.backing_file or None,
                backing_format=_proper_format(context, request) if request.backing_file else None,
            )
        except ImageError as error:
            raise error.in_context(f"Could not change the backing file to '{request.backing_file}'") from error
        top.flush()


def _detect_no_zeros(top: Image) -> None:
    """Zeros are told from data here anyhow, and where they are written as data, the image must not leave them out."""
    for node in all_nodes(top):
        if isinstance(node, Image):
            node.detect_zeroes = "off"


def _require_known_format(context: Context, request: RebaseRequest) -> None:
    if request.backing_file and request.backing_format is None:
        raise InvalidOption(
            f"Could not change the backing file to '{request.backing_file}': backing format must be specified"
        )
    # A device can be named with a protocol's driver, host_device, in the place of a format.
    if request.backing_format is not None and not context.protocols.knows(request.backing_format):
        try:
            context.formats.load(request.backing_format)
        except UnknownFormat as error:
            raise UnknownFormat(f"Invalid format name: '{request.backing_format}'", hint=error.hint) from None


def _proper_format(context: Context, request: RebaseRequest) -> str | None:
    return None if request.backing_format is None else context.formats.proper_name(request.backing_format)


def _keep_content(context: Context, top: Image, request: RebaseRequest, progress: Progress) -> None:
    if not isinstance(top, WritableImage):
        raise ImageError(f"Format driver '{top.driver}' does not support writing")
    if not request.backing_file:
        _write_differences(top, None, None, request, progress)
        return
    try:
        name = backing_filename(top.filename, request.backing_file)
    except InvalidOption as error:
        raise error.in_context("Could not resolve backing filename") from error
    try:
        new = context.open(name, request.backing_format, force_share=request.force_share, cache=request.backing_cache)
    except ImageError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ImageError) else error
        message = f"Could not open new backing file '{request.backing_file}': {cause}"
        raise ImageError(message, hint=cause.hint) from error
    with new:
        if new.identity() is not None and new.identity() == top.identity():
            raise InvalidOption(f"Could not open new backing file '{request.backing_file}': it is the image itself")
        _write_differences(top, new, _common_depth(top, new), request, progress)


def _common_depth(top: Image, new: Image) -> int | None:
    """The depth at which the new backing file stands in the present chain already, ``None`` if it does not.

    The same file opened as another format is another disk.
    """
    identity, driver = new.identity(), unfiltered(new).driver
    for depth, layer in enumerate(layers(top)):
        same = depth and identity is not None and layer.identity() == identity
        if same and isinstance(layer, Image) and unfiltered(layer).driver == driver and layer.size == new.size:
            return depth
    return None


def _write_differences(
    top: WritableImage, new: Image | None, depth_limit: int | None, request: RebaseRequest, progress: Progress
) -> None:
    """Write into the top layer what it shows of the old backing file and would not show of the new one.

    :param depth_limit: number of layers to look at; what lies below is the same in both.
    """
    cluster = top.cluster_size or CELL
    block = cluster if request.compress else top.subcluster_size or cluster
    shared = block != (top.subcluster_size or cluster)
    # Two ranges may be in the same cluster, which must not be allocated twice.
    singly = top.subcluster_size not in (None, top.cluster_size) or isinstance(top, AlwaysCompressing)
    step = -(-CELL // block) * block
    old_bytes, new_bytes = memoryview(bytearray(step)), memoryview(bytearray(step))
    zeroed = _Zeroed(top)
    for window in windows(suspects(top, new, depth_limit, block), step):
        start, end = window.start, window.end
        old, below = old_bytes[: end - start], None
        if shared:  # what is compressed as a whole may be the top layer's own in part
            top.read_into(start, old)
        elif top.backing is not None:  # its own clusters that lie between need not be read
            read_padded(top.backing, start, old)
        if new is not None:
            below = new_bytes[: end - start]
            read_padded(new, start, below)
        data, zeros = differing_runs(old, below, block, window)
        zeroed.write(start, zeros)
        if request.compress:
            for first, last in data:
                _compress(top, start + first, old[first:last], block)
        elif singly:
            for first, last in data:
                top.write_at(start + first, old[first:last])
        else:
            write_beside(top, data, start, old)
        progress(end, top.size)
    zeroed.finish()
    progress(top.size, top.size)


class _Zeroed:
    """Zeros that the top layer is to have itself.

    An image may leave to the layers below what reads as zeros already; the new backing file would show there. To find
    out the image is mapped again, for many ranges at once.
    """

    def __init__(self, top: WritableImage) -> None:
        self._top = top
        self._ranges: list[Range] = []

    def write(self, base: int, ranges: list[Range]) -> None:
        """Write zeros to ranges behind ``base``, in the order of the disk."""
        for first, last in ranges:
            make_zeros(self._top, base + first, last - first, unmap=True)
            self._ranges.append((base + first, base + last))
        if len(self._ranges) > ZEROED_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """See to it that none of the ranges is left to the layers below."""
        if self._ranges:
            for start, end in list(intersection(self._ranges, self._absent())):
                self._top.write_at(start, bytes(end - start))
            self._ranges.clear()

    def _absent(self) -> Iterator[Range]:
        """What the top layer does not have where the ranges are, and around them."""
        import numpy as np

        firsts, lasts = np.array(self._ranges).T
        for table in resolve(self._top, int(firsts[0]), int(lasts[-1] - firsts[0]), depth_limit=1):
            rows = table.rows[table.rows["kind"] == Kind.ABSENT]
            starts, ends = rows["offset"], rows["offset"] + rows["length"]
            # Of what else is absent there may be far more.
            met = lasts.searchsorted(starts, side="right") < firsts.searchsorted(ends)
            yield from zip(starts[met].tolist(), ends[met].tolist(), strict=True)


def _compress(top: WritableImage, offset: int, data: memoryview, block: int) -> None:
    """Write whole clusters, compressed where that makes them smaller."""
    if not isinstance(top, Compressing):
        raise ImageError("Compression not supported for this file format")
    for start in range(0, len(data), block):
        piece = data[start : start + block]
        blob = top.compress(memoryview(bytes(piece).ljust(block, b"\0")))
        if blob is None:
            top.write_at(offset + start, piece)
        else:
            with top.lock:
                top.write_compressed([(offset + start, blob)])
