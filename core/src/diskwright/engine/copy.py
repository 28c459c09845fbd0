"""The copy engine: guest bytes from sources to a target, in parallel and in bounded memory.

plan -> read -> find zeros -> (compress) -> allocate -> write. The sources' maps are cut into cells, aligned pieces of
the target of two megabytes. A worker takes the next cell, reads it into a buffer, looks for zeros and has the rest
written. Space in the target is allocated in the order of the cells, so that the result does not depend on the threads'
luck.

From one local file to another there is one worker, and a thread that writes what it has read (see :mod:`.writing`):
more would only wait for each other. Where there is more to do than to copy - compress, decode, encrypt, wait for a
network - there are as many workers as processors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

from ..errors import ImageError, UnsupportedOperation
from ..extent import Kind
from ..node import SECTOR, AlwaysCompressing, Compressing, Image, WritableImage
from ..record import Record
from ..tracing import COPY_BEGIN, COPY_CELL, COPY_OFFLOAD, COPY_ZEROS
from ..waiting import pause
from ..zeroing import make_zeros
from .offload import copy_extent
from .plan import Piece, Task, amount, pieces_of, plan
from .pool import Turnstile, Workers, worker_count
from .ranges import Range, aligned, difference, intersection, joined
from .rate import RateLimit
from .reading import Salvage, failing, failing_map, read_piece
from .writing import Buffers, Filled, Writer
from .zeros import nonzero_runs

BUFFERS = 3
"""One is read into, one is written, one waits; more would only fall out of the processor's cache."""
CELL = 2 << 20
"""Bytes; larger ones fall out of the processor's cache, smaller ones cost more calls."""
PAGE = 4096
"""Bytes; buffers hold whole ones."""
ZERO_CELLS = 1024
"""Zeros are written this many cells at once."""

REPORT_STEP = 2 << 20
"""Bytes of data by which progress moves within a run of data, as with QEMU; at the end of a run it always does."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes of data done and those there are (zeros take no time), by several threads but one at a time.

If it has an attribute ``due``, then only while that is true.
"""


def no_progress(done: int, total: int) -> None:
    """For callers that do not want to know."""


def is_due(progress: Progress) -> bool:
    """Whether anybody wants to know now."""
    return progress is not no_progress and getattr(progress, "due", True)


class CopyOptions(Record):
    """How to copy.

    :ivar compress: write compressed clusters.
    :ivar sparse_size: bytes; runs of zeros at least this long are not written as data; 0: all are.
    :ivar parallel: most threads that read, decode and compress; one more may write what they have read.
    :ivar out_of_order: let each thread allocate when it can, instead of in guest order.
    :ivar target_is_zero: the target reads as zeros wherever nothing is written.
    :ivar depth_limit: how many layers of each source are copied, ``None`` for all; what only lower layers have is left
        to what lies below the target.
    :ivar rate: most bytes of data to write in a second, ``None`` for as many as there can be.
    :ivar salvage: called with the offset and length of a range of the target that cannot be read and becomes zeros;
        ``None``: what cannot be read ends the copy.
    :ivar offload: let the system copy from file to file, without looking at the bytes, where it can.
    :ivar backing_size: where the target reads as zero by itself, offset in bytes at which its backing layer ends; 0
        without one.
    """

    compress: bool = False
    sparse_size: int = 4096
    parallel: int = 8
    out_of_order: bool = False
    target_is_zero: bool = True
    depth_limit: int | None = None
    backing_size: int = 0
    rate: int | None = None
    salvage: Salvage | None = None
    offload: bool = False


def copy(sources: Sequence[Image], target: Image, options: CopyOptions, progress: Progress = no_progress) -> None:
    """Copy the guest bytes of the sources, one behind the other, into the target.

    :param target: at least as large as the sources together.
    :raises UnsupportedOperation: the target cannot be written, or not compressed.
    :raises ImageError: reading or writing failed; the message has the offset.
    """
    if not isinstance(target, WritableImage):
        raise UnsupportedOperation(f"Format driver '{target.driver}' does not support writing")
    _Copy(sources, target, options, progress).run()


class _Copy:
    """One run of the engine: the state that its workers share.

    :ivar cell: bytes of the target that are copied at once, whole clusters.
    :ivar block: the smallest run of zeros that is not written as data, bytes. Of a target with clusters it is whole
        ones, so zeros and data never share a cluster: a new one is not to be touched before it is linked.
    :ivar unit: what a buffer begins and ends at, bytes: whole blocks, and pages.
    :ivar explicit: whether zeros have to be written, as the target would show something else there.
    :ivar unmap: whether zeros may give space back.
    """

    def __init__(
        self, sources: Sequence[Image], target: WritableImage, options: CopyOptions, progress: Progress
    ) -> None:
        self.target = target
        self.options = options
        # Where the target compresses whatever it is sent, it is done here, in parallel and stored in guest order.
        self.compressor: WritableImage | None = target if options.compress else None
        if isinstance(target, AlwaysCompressing):
            self.compressor = target.compressor
        self.explicit = not options.target_is_zero or options.depth_limit is not None or options.backing_size > 0
        cluster = target.cluster_size
        self.cell = -(-CELL // cluster) * cluster if cluster else CELL
        # Formats that allocate clusters gain nothing from finding smaller zeros; others have holes of any size.
        self.block = smallest = cluster or SECTOR
        if self.compressor is None:  # clusters of zeros are never compressed
            wanted = 1 << max(options.sparse_size, 1).bit_length() - 1
            self.block = max(smallest, wanted // smallest * smallest)
        self.unit = -(-PAGE // self.block) * self.block if cluster or self.compressor is None else self.cell
        # With all zeros to be written, none gives space back unless the target's options want that.
        self.unmap = options.sparse_size > 0 or target.detect_zeroes == "unmap"
        self.sources = sources
        at_once = self.cell * ZERO_CELLS if options.sparse_size else self.cell
        self.tasks = plan(pieces_of(sources, options), self.cell, at_once)
        self.tasks_lock = threading.Lock()
        self.workers = Workers(worker_count(options.parallel))
        self.turnstile = Turnstile(self.workers, ordered=not options.out_of_order)
        self.buffers = Buffers(self.workers, self.cell, BUFFERS)
        self.writer = Writer(target, self.workers, self.buffers)
        self.all_hands = False
        self.all_hands_lock = threading.Lock()
        self.progress = progress
        self.progress_lock = threading.Lock()
        self.done = self.reported = 0
        self.rate = RateLimit(options.rate) if options.rate else None

    @cached_property
    def amount(self) -> int:
        """Bytes of data there are, for those who want to know of progress: for that, the maps are read once more."""
        with failing_map():
            return amount(self.sources, self.options)

    def run(self) -> None:
        if is_due(self.progress):
            _ = self.amount
        COPY_BEGIN(self.target.filename, self.cell, self.workers.count)
        self.workers.run(self._lead, helpers=0)
        self.writer.finish()
        if is_due(self.progress):
            self.progress(self.amount, self.amount)

    def _call_all_hands(self) -> None:
        """There is more to do than to copy from file to file: let all processors take part."""
        with self.all_hands_lock:
            called, self.all_hands = self.all_hands, True
        if not called:
            self.buffers.allow(self.workers.count + 1)
            self.workers.add(self._work, self.workers.count - 1)

    def _lead(self) -> None:
        if self.compressor is not None or self.options.offload:
            self._call_all_hands()
        elif self.workers.count > 1:
            self.workers.add(self.writer.loop)
        self._work()

    def _work(self) -> None:
        with self.writer.fed():
            while (task := self._next_task()) is not None:
                self._do(task)
                self._report(task)

    def _next_task(self) -> Task | None:
        with self.tasks_lock:
            self.workers.check()
            with failing_map():
                return next(self.tasks, None)

    def _report(self, task: Task) -> None:
        copied = sum(p.length for p in task.pieces if p.extent is not None or not self.options.sparse_size)
        with self.progress_lock:
            self.done += copied
            if copied and (task.ends_run or self.done - self.reported >= REPORT_STEP) and is_due(self.progress):
                self.reported = self.done
                self.progress(min(self.done, self.amount), self.amount)

    def _do(self, task: Task) -> None:
        """Copy one cell, or write many cells of zeros."""
        start, end = task.pieces[0].offset, task.pieces[-1].end
        if end - start > self.cell or (self.options.sparse_size and all(p.extent is None for p in task.pieces)):
            COPY_ZEROS(start, end - start)
            with self.turnstile.turn(task.number), failing("writing", start):
                self._make_zeros((piece.offset, piece.end) for piece in task.pieces)
            return
        if self.options.offload and self._offload(task):
            COPY_OFFLOAD(start, end - start)
            return
        base, stop = self._span(start, end)
        buffer = self.buffers.take()
        view = buffer[: stop - base]
        data, zeros = self._load(task, base, view)
        self._keep_to_rate(sum(last - first for first, last in data))
        with failing("writing", start):
            if self.compressor is not None:
                self._write_compressed(self.compressor, task, base, data, zeros, buffer, len(view))
                free = True
            else:
                free = self._write(task, base, data, zeros, buffer)
        if free:
            self.buffers.give(buffer)

    def _span(self, start: int, end: int) -> Range:
        """What of the target a buffer holds for a part of a cell: that in whole units, but no more than the cell."""
        cell_start = start // self.cell * self.cell
        stop = min(cell_start + self.cell, self.target.size, -(-end // self.unit) * self.unit)
        return max(cell_start, start // self.unit * self.unit), stop

    def _load(self, task: Task, base: int, view: memoryview) -> tuple[list[Range], list[Range]]:
        """Fill a buffer that begins at ``base``; which ranges of it to write as data and which as zeros."""
        wanted = list(joined((piece.offset - base, piece.end - base) for piece in task.pieces))
        self._read(task.pieces, base, view)
        if self.explicit and self.target.cluster_size:
            with failing("reading", task.pieces[0].offset):
                wanted = self._fill_clusters(wanted, self.target.cluster_size, base, view)
        data, zeros = self._sort_out(wanted, view)
        if COPY_CELL.enabled:
            COPY_CELL(base, len(view), *(sum(last - first for first, last in part) for part in (data, zeros)))
        return data, zeros

    def _offload(self, task: Task) -> bool:
        """Let the system copy a cell from file to file; False if it cannot, then all of the cell is to be copied."""
        if self.target.cluster_size:
            return False  # what a cluster has besides would have to be read
        data = [piece for piece in task.pieces if piece.extent is not None]
        with failing("writing", task.pieces[0].offset):
            if not all(map(self._offload_piece, data)):
                return False
            with self.turnstile.turn(task.number):
                self._make_zeros((piece.offset, piece.end) for piece in task.pieces if piece.extent is None)
        self._keep_to_rate(sum(piece.length for piece in data))
        return True

    def _offload_piece(self, piece: Piece) -> bool:
        with self.target.lock:
            placements = self.target.allocate(piece.offset, piece.length)
        for placement in placements:
            part = piece.part(placement.offset, placement.offset + placement.length)
            if part.extent is None or not copy_extent(part.extent, placement):
                return False
        with self.target.lock:
            self.target.link(placements)
        return True

    def _keep_to_rate(self, count: int) -> None:
        """Wait until so many bytes may be written; a failure of another worker ends that, see :mod:`..waiting`."""
        if self.rate:
            pause(self.rate.delay(count))

    def _read(self, pieces: list[Piece], base: int, view: memoryview) -> None:
        """Fill a buffer; where no piece is, with zeros."""
        position = 0
        for piece in pieces:
            offset, length, layer, extent = piece
            first = offset - base
            last = first + length
            if position < first:
                view[position:first] = bytes(first - position)
            part = view[first:last]
            if layer is None or extent is None:
                part[:] = bytes(length)
            else:
                if extent.kind is Kind.ENCODED or extent.node is None or not extent.node.one_at_a_time:
                    self._call_all_hands()
                try:
                    read_piece(piece, part, self.options.salvage)
                except (OSError, ImageError):
                    with failing("reading", offset):
                        raise
            position = last
        if position < len(view):
            view[position:] = bytes(len(view) - position)

    def _fill_clusters(self, wanted: list[Range], cluster: int, base: int, view: memoryview) -> list[Range]:
        """Round what is wanted out to whole clusters of the target, around it what the target reads as now.

        A cluster is allocated once, and compressed as a whole, so all of it has to be there.
        """
        whole = list(aligned(wanted, cluster, len(view)))
        for first, last in difference(whole, wanted):
            self.target.read_into(base + first, view[first:last])
        return whole

    def _sort_out(self, wanted: list[Range], view: memoryview) -> tuple[list[Range], list[Range]]:
        """Which ranges of a buffer to write as data and which as zeros; the rest is not to be touched.

        Without need to be explicit about zeros data is rounded out to whole clusters, which are cheaper to allocate.
        """
        if not self.options.sparse_size:
            if self.target.detect_zeroes == "off":
                return wanted, []
            data = list(intersection(wanted, nonzero_runs(view, self.block)))
            return data, list(difference(wanted, data))
        runs = nonzero_runs(view, self.block)
        if not self.explicit and (cluster := self.target.cluster_size):
            # Short zeros count as data where they are found, not where the sources' maps tell of them.
            return list(intersection(aligned(wanted, cluster, len(view)), runs)) if self.block > cluster else runs, []
        data = list(intersection(wanted, runs))
        return data, list(difference(wanted, data)) if self.explicit else []

    def _make_zeros(self, ranges: Iterable[Range], base: int = 0) -> None:
        """Make ranges of the target read as zeros; to be called in turn."""
        for first, last in ranges:
            make_zeros(self.target, base + first, last - first, unmap=self.unmap)

    def _write(self, task: Task, base: int, data: list[Range], zeros: list[Range], buffer: memoryview) -> bool:
        """Allocate space for the data of a cell and write it there; make zeros.

        :returns: whether the buffer is free again; the writer may have taken it over.
        """
        target = self.target
        # No two ranges share a cluster: the image knows nothing of a new one before it is linked.
        with self.turnstile.turn(task.number), target.lock:
            placements = [p for first, last in data for p in target.allocate(base + first, last - first)]
            self._make_zeros(zeros, base)
        if not placements:
            return True
        filled = Filled(task.pieces[0].offset, base, placements, buffer)
        if not all(placement.node.one_at_a_time for placement in placements):
            self._call_all_hands()
        elif self.writer.active:
            self.writer.put(filled)
            self.writer.link()
            return False
        filled.write(target)
        with target.lock:
            target.link(placements)
        return True

    def _write_compressed(
        self,
        target: WritableImage,
        task: Task,
        base: int,
        data: list[Range],
        zeros: list[Range],
        buffer: memoryview,
        filled: int,
    ) -> None:
        """Compress each cluster with data and store them in guest order; what does not shrink is stored plain."""
        if not isinstance(target, Compressing):
            raise UnsupportedOperation("Compression not supported for this file format")
        cluster = target.cluster_size or self.cell
        rest = -filled % cluster
        buffer[filled : filled + rest] = bytes(rest)
        starts = [start for first, last in data for start in range(first // cluster * cluster, last, cluster)]
        blobs = [(start, target.compress(buffer[start : start + cluster])) for start in starts]
        with self.turnstile.turn(task.number), target.lock:
            for shrunk, run in groupby(blobs, lambda found: found[1] is not None):
                clusters = list(run)
                if shrunk:
                    target.write_compressed([(base + start, blob) for start, blob in clusters if blob])
                    continue
                for first, last in joined((start, min(start + cluster, filled)) for start, _ in clusters):
                    target.write_at(base + first, buffer[first:last])
            self._make_zeros(zeros, base)
