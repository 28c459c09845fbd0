"""Comparing the content of two disks through their backing chains.

The two maps are laid over each other with array operations; what reads as zeros on both sides is never looked at. The
rest is cut into pieces of one buffer's length, which several threads read and compare with one bulk operation each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from ..errors import ImageError, reason_of
from ..extent import Extent, ExtentTable, Kind, merged, row_starts, tabulate
from ..node import SECTOR, Image
from ..record import Record
from .chain import layers, read_extents, resolve, side_by_side
from .mapping import State, states
from .pool import Workers, worker_count

CHUNK = 2 << 20
"""Bytes compared at a time; each thread has two buffers of this length."""

NEAR = 256 << 10
"""Bytes: two ranges to be compared with less than this between them are compared as one."""

MAX_WORKERS = 4


class MapFailed(ImageError):
    """It cannot be told where an image's data is."""

    exit_code = 3


class ReadFailed(ImageError):
    """An image cannot be read."""

    exit_code = 4


class Difference(Enum):
    """In what way two disks differ."""

    CONTENT = "content"
    STATUS = "block status"
    SIZE = "size"


class Comparison(Record):
    """The result; true if the disks are the same.

    :ivar difference: the first difference in guest order, ``None`` if there is none.
    :ivar offset: where it is, bytes: for content the start of the first 512-byte sector that differs.
    :ivar sizes_differ: whether one disk is longer; if nothing else differs, all it has more is zeros.
    """

    difference: Difference | None = None
    offset: int | None = None
    sizes_differ: bool = False

    def __bool__(self) -> bool:
        return self.difference is None


def compare(
    first: Image,
    second: Image,
    *,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_tail: Callable[[], None] | None = None,
) -> Comparison:
    """Compare two open disks.

    :param strict: also take different sizes, and different block status (allocated, zero, compressed, with an offset),
        as a difference.
    :param progress: called now and then with the bytes done and the bytes there are; from several threads, one at a
        time.
    :param on_tail: called when the common part is the same and what the longer disk has more comes next.
    :raises MapFailed: a disk's map cannot be made.
    :raises ReadFailed: a disk cannot be read.
    """
    common, total = sorted((first.size, second.size))
    if common == total:
        on_tail = None
    elif strict:
        return Comparison(Difference.SIZE, sizes_differ=True)
    advance = progress or (lambda done, total: None)
    found = _Pass(first, second, common, strict=strict, advance=lambda done: advance(done, total)).run()
    if found is None:
        if common:
            advance(common, total)
        if on_tail is not None:
            on_tail()
        if common < total:
            longer = first if first.size == total else second
            found = _Pass(longer, None, total, start=common, advance=lambda done: advance(done, total)).run()
            if found is None:
                advance(total, total)
    difference, offset = found or (None, None)
    return Comparison(difference, offset, sizes_differ=common != total)


class _Piece(NamedTuple):
    """A range to be compared, with the two maps that cover it."""

    number: int
    start: int
    end: int
    left: ExtentTable
    right: ExtentTable


_Found = tuple[Difference, int]


class _Pass:
    """One comparison of a range of two disks, or of one disk with zeros.

    :param second: ``None`` stands for zeros.
    :param end: where the range ends, bytes.
    :param advance: told the offset up to which the comparison has come.
    """

    def __init__(
        self,
        first: Image,
        second: Image | None,
        end: int,
        *,
        advance: Callable[[int], None],
        start: int = 0,
        strict: bool = False,
    ) -> None:
        self._images = (first, second)
        self._chains = tuple([] if image is None else layers(image) for image in self._images)
        self._range = (start, end)
        self._strict = strict
        self._advance = advance
        self._lock = threading.Lock()
        self._outcomes: dict[int, _Found | ImageError] = {}
        self._pieces = self._plan()

    def run(self) -> _Found | None:
        """The first difference in guest order, or ``None``.

        :raises ImageError: the first failure, if it comes before any difference.
        """
        start, end = self._range
        workers = Workers(worker_count(min(MAX_WORKERS, 1 + (end - start) // (4 * CHUNK))))
        workers.run(lambda: self._work(workers))
        if not self._outcomes:
            return None
        outcome = self._outcomes[min(self._outcomes)]
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def _work(self, workers: Workers) -> None:
        """Take pieces and compare them until there are none, or one taken earlier has settled the matter."""
        buffers = (bytearray(CHUNK), bytearray(CHUNK))
        while True:
            workers.check()
            with self._lock:
                piece = None if self._outcomes else next(self._pieces, None)
                if piece is None:
                    return
                if piece.start:
                    self._advance(piece.start)
            outcome = self._compare(piece, buffers)
            if outcome is not None:
                with self._lock:
                    self._outcomes[piece.number] = outcome

    def _plan(self) -> Iterator[_Piece]:
        """The pieces to compare, in guest order. A difference or failure of the maps is noted as an outcome."""
        number = 0
        try:
            for left, right in side_by_side(*map(self._tables, self._images)):
                spans, mismatch = _spans(left, right, strict=self._strict)
                for start, end in spans:
                    for begin in range(start, end, CHUNK):
                        yield _Piece(number, begin, min(begin + CHUNK, end), left, right)
                        number += 1
                if mismatch is not None:
                    self._outcomes[number] = (Difference.STATUS, mismatch)
                    return
        except MapFailed as error:
            self._outcomes[number] = error

    def _tables(self, image: Image | None) -> Iterator[ExtentTable]:
        start, end = self._range
        if image is None:
            yield from tabulate([Extent(start, end - start, Kind.ZERO)] if end > start else [])
            return
        try:
            yield from resolve(image, start, end - start)
        except (ImageError, OSError) as error:
            raise MapFailed(f"Sector allocation test failed for {image.filename}: {reason_of(error)}") from error

    def _compare(self, piece: _Piece, buffers: tuple[bytearray, bytearray]) -> _Found | ImageError | None:
        length = piece.end - piece.start
        read: list[bytes | bytearray] = []
        for table, image, chain, buffer in zip(piece[3:], self._images, self._chains, buffers, strict=True):
            part = list(table.clipped(piece.start, piece.end))
            if not any(extent.stored for extent in part):
                read.append(_ZEROS)
                continue
            try:
                read_extents(chain, part, memoryview(buffer)[:length])
            except (ImageError, OSError) as error:
                name = image.filename if image else ""
                return ReadFailed(f"Error while reading offset {piece.start} of {name}: {reason_of(error)}")
            read.append(buffer)
        left, right = read
        # Whole buffers are compared in place, the shorter last one is copied.
        if left == right if length == CHUNK else left[:length] == right[:length]:
            return None
        return Difference.CONTENT, _first_difference(left, right, piece.start, length)


_ZEROS = bytes(CHUNK)


def _spans(left: ExtentTable, right: ExtentTable, *, strict: bool) -> tuple[list[tuple[int, int]], int | None]:
    """Which ranges of two maps of the same range must be read, and where their block status first differs.

    Behind a difference of the status nothing needs to be read any more; without ``strict`` the status does not matter.
    """
    import numpy as np

    offsets = row_starts(left, right)
    ends = np.append(offsets[1:], left.end)
    first, second = (states(table)[table.rows_at(offsets)] for table in (left, right))
    mismatch = None
    if strict and (differs := np.flatnonzero(first != second)).size:
        index = int(differs[0])
        mismatch = int(offsets[index])
        offsets, ends, first, second = offsets[:index], ends[:index], first[:index], second[:index]
    busy = first & second & State.ZERO == 0
    begins, stops = merged(offsets[busy], ends[busy], NEAR)
    return list(zip(begins.tolist(), stops.tolist(), strict=True)), mismatch


def _first_difference(left: bytes | bytearray, right: bytes | bytearray, start: int, length: int) -> int:
    """Offset of the sector of the first byte that differs, in guest bytes."""
    import numpy as np

    differs = np.frombuffer(left, np.uint8, length) != np.frombuffer(right, np.uint8, length)
    position = start + int(differs.argmax())
    return position - position % SECTOR
