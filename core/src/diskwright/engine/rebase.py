"""Rebasing: an overlay gets another backing file and keeps its content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ImageError, InvalidOption, UnknownFormat
from ..extent import ExtentTable, Kind, runs_of
from ..filenames import backing_filename
from ..node import AlwaysCompressing, Compressing, Image, WritableImage, write_placed
from ..passing import unfiltered
from ..zeroing import make_zeros
from .chain import layers, resolve
from .copy import CELL, Progress, no_progress
from .ranges import Range, aligned, cut, intersection, union
from .zeros import block_runs, nonzero_blocks

NEAR = 64 << 10
"""Bytes: ranges with less than this between them are read as one."""

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..context import Context


@dataclass(frozen=True)
class RebaseRequest:
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
    """The depth at which the new backing file stands in the present chain already, ``None`` if it does not."""
    identity = new.identity()
    for depth, layer in enumerate(layers(top)):
        if depth and identity is not None and layer.identity() == identity:
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
    step = max(CELL, block)
    old_bytes, new_bytes = bytearray(step), bytearray(step)
    for window in _windows(cut(aligned(_suspects(top, new, depth_limit), block, top.size), step), step):
        start, end = window[0][0], window[-1][1]
        old = memoryview(old_bytes)[: end - start]
        top.read_into(start, old)
        new_view = memoryview(new_bytes)[: end - start]
        if new is not None:
            new.read_into(start, new_view)
        wanted = [(first - start, last - start) for first, last in window]
        data, zeros = _differing_runs(old, new_view if new is not None else None, block, wanted)
        for first, last in zeros:
            _write_zeroes(top, start + first, last - first)
        if request.compress:
            for first, last in data:
                _compress(top, start + first, old[first:last], block)
        else:
            _write(top, start, old, data)
        progress(end, top.size)
    progress(top.size, top.size)


def _windows(ranges: Iterable[Range], step: int) -> Iterator[list[Range]]:
    """Ranges gathered that lie between the same multiples of ``step`` and near each other: they are read at once."""
    window: list[Range] = []
    for start, end in ranges:
        if window and (start // step != window[0][0] // step or start - window[-1][1] > NEAR):
            yield window
            window = []
        window.append((start, end))
    if window:
        yield window


def _suspects(top: Image, new: Image | None, depth_limit: int | None) -> Iterator[Range]:
    """Ranges that the top layer inherits and that have data in the old backing layers or in the new one."""
    inherited = _ranges(resolve(top, holes=False, depth_limit=1), {Kind.ABSENT}, top.size)
    data = {Kind.DATA, Kind.ENCODED}
    old_data = _ranges(resolve(top, depth_limit=depth_limit), {*data, Kind.ZERO} if depth_limit else data, top.size)
    # Where the layers between say nothing, old and new share what is below: only they can make a difference.
    new_data = _ranges(resolve(new), data, top.size) if new is not None and depth_limit is None else iter(())
    return intersection(inherited, union(old_data, new_data))


def _ranges(tables: Iterator[ExtentTable], kinds: set[Kind], limit: int) -> Iterator[Range]:
    for table in tables:
        for extent in table:
            if extent.kind in kinds and extent.offset < limit:
                yield extent.offset, min(extent.end, limit)


def _differing_runs(
    old: memoryview, new: memoryview | None, block: int, wanted: list[Range]
) -> tuple[list[Range], list[Range]]:
    """Where a part of the disk differs from the new backing file, in whole blocks.

    :param new: what the new backing file has there; ``None`` for zeros.
    :param wanted: which ranges to look at, in whole blocks.
    :returns: ranges, relative to the part, where the disk has data, and where it has zeros.
    """
    import numpy as np

    data = nonzero_blocks(old, block)
    differing = data if new is None else _unequal_blocks(old, new, block)
    asked = np.zeros(len(data), bool)
    for first, last in wanted:
        asked[first // block : -(-last // block)] = True
    differing &= asked
    _join_short_zeros(data, differing, NEAR // block)
    return block_runs(differing & data, block, len(old)), block_runs(differing & ~data, block, len(old))


def _join_short_zeros(data: npt.NDArray[np.bool_], differing: npt.NDArray[np.bool_], most: int) -> None:
    """Count zeros right behind or before data as data, up to so many blocks: they are written in one go with it."""
    for first, last in runs_of(differing & ~data):
        beside = data[max(first - 1, 0) : first] & differing[max(first - 1, 0) : first]
        behind = data[last : last + 1] & differing[last : last + 1]
        if last - first <= most and (beside.any() or behind.any()):
            data[first:last] = True


def _unequal_blocks(left: memoryview, right: memoryview, block: int) -> npt.NDArray[np.bool_]:
    """Which blocks of two buffers of the same length differ; the last one may be shorter."""
    import numpy as np

    whole = len(left) // block * block
    unequal = np.ones(-(-len(left) // block), dtype=bool)
    words = [np.frombuffer(view[:whole], np.uint64).reshape(-1, block // 8) for view in (left, right)]
    unequal[: whole // block] = (words[0] != words[1]).any(axis=1)
    if whole < len(left):
        unequal[-1] = bytes(left[whole:]) != bytes(right[whole:])
    return unequal


def _write_zeroes(top: WritableImage, offset: int, length: int) -> None:
    """Let the top layer itself have zeros in a range, of a few megabytes at most.

    An image may leave to the layers below what reads as zeros already; the new backing file would show there.
    """
    make_zeros(top, offset, length, unmap=True)
    for start, end in list(_ranges(resolve(top, offset, length, depth_limit=1), {Kind.ABSENT}, top.size)):
        top.write_at(start, bytes(end - start))


def _write(top: WritableImage, start: int, old: memoryview, ranges: list[Range]) -> None:
    """Write ranges of a part of the disk: clusters are found for all of them before, and linked after.

    :param start: where the part begins, bytes.
    :param old: its bytes.
    """
    shared = top.subcluster_size not in (None, top.cluster_size)
    if shared or isinstance(top, AlwaysCompressing):
        # Two ranges may be in the same cluster, which must not be allocated twice.
        for first, last in ranges:
            top.write_at(start + first, old[first:last])
        return
    with top.lock:
        placements = [p for first, last in ranges for p in top.allocate(start + first, last - first)]
    write_placed(top, placements, start, old)
    with top.lock:
        top.link(placements)


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
