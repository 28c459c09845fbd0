"""Copying a part of a disk into a new image, block by block as ``dd`` counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..extent import ExtentTable
from ..node import Image
from ..record import Record
from .chain import resolve
from .copy import CopyOptions, Progress, copy, no_progress
from .creation import Creation, require_format

if TYPE_CHECKING:
    from ..context import Context

BLOCK_SIZE = 512


class DdRequest(Record):
    """What to copy where.

    :ivar block_size: bytes, > 0.
    :ivar count: number of the input block at which to stop, ``None`` for the end of the input.
    :ivar skip: number of the input block at which to start; those before it count too.
    """

    source: str
    target: str
    source_format: str | None = None
    format: str = "raw"
    block_size: int = BLOCK_SIZE
    count: int | None = None
    skip: int = 0
    force_share: bool = False


def dd(context: Context, request: DdRequest, progress: Progress = no_progress) -> bool:
    """Copy the part into a new image; its size is rounded up to whole sectors.

    :returns: whether the part begins inside the input; if not, the new image is empty.
    :raises ImageError: it failed; a target that did not exist is not there, one that did is as before.
    """
    with context.open(request.source, request.source_format, force_share=request.force_share) as source:
        require_format(context, request.format)
        end = source.size if request.count is None else min(request.count * request.block_size, source.size)
        start = request.skip * request.block_size
        window = Window(source, min(start, end), end)
        with Creation(context, sources=[source]) as creation:
            try:
                node = creation.image(request.target, request.format, window.size, {})
            except ImageError as error:
                raise error.in_context(f"{request.target}: error while creating output image") from error
            target = creation.opened(node, request.target, request.format)
            copy([window], target, CopyOptions(target_is_zero=target.new_reads_zero()), progress)
    return start <= end


class Window(Image):
    """A part of a disk as a disk, for reading; closing it is up to who has opened the disk.

    :param start: offset in the disk, bytes, of any alignment; ``end`` likewise.
    """

    def __init__(self, disk: Image, start: int, end: int) -> None:
        self.file = disk
        self.filename = disk.filename
        self._disk = disk
        self._start = start
        self._end = end
        self.bind(disk.driver, lambda _, offset, length: self._map(offset, length))

    @property
    def size(self) -> int:
        return self._end - self._start

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        self._disk.read_into(self._start + offset, buffer)

    def _map(self, offset: int, length: int) -> Iterator[ExtentTable]:
        # Holes are left to who asks for this map: it is resolved once more.
        for table in resolve(self._disk, self._start + offset, length, holes=False):
            rows = table.rows.copy()
            rows["offset"] -= self._start
            yield ExtentTable(rows, table.nodes)

    def release(self) -> None:
        """The disk stays open."""
