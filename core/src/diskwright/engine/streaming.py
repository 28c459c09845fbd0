"""Writing an image from its first byte to its last, to what cannot seek: read in parallel, written in order."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from ..hookspecs import GuestRange
from ..node import SECTOR, Appending, Image
from ..record import Record
from ..waiting import pause
from .copy import CELL, ZERO_CELLS, Progress
from .plan import Piece, pieces_between, plan
from .pool import Turnstile, Workers, worker_count
from .rate import RateLimit
from .reading import Salvage, failing, failing_map, read_piece
from .zeros import nonzero_runs


class StreamOptions(Record):
    """How to write a stream.

    :ivar sparse_size: bytes; runs of zeros at least this long need not be written where there can be holes; 0: all are.
    :ivar parallel: most threads to work with.
    :ivar rate: most bytes to write in a second, ``None`` for as many as there can be.
    :ivar salvage: as for :class:`.copy.CopyOptions`.
    """

    sparse_size: int = 4096
    parallel: int = 8
    rate: int | None = None
    salvage: Salvage | None = None


class Stream:
    """One image on its way.

    :param layout: what follows what, as the hook ``stream`` gives it.
    """

    def __init__(
        self, layout: Iterable[bytes | GuestRange], sources: Sequence[Image], sink: Appending, options: StreamOptions
    ) -> None:
        self.sources = sources
        self.sink = sink
        self.options = options
        self.tasks = enumerate(self._tasks(layout))
        self.lock = threading.Lock()
        self.workers = Workers(worker_count(options.parallel))
        self.turnstile = Turnstile(self.workers)
        self.rate = RateLimit(options.rate) if options.rate else None
        self.done = 0

    def run(self, progress: Progress) -> None:
        """Write all of it.

        :raises BrokenPipeError: nobody wants the rest.
        :raises ImageError: reading or writing failed; the message has the offset.
        """
        total = sum(source.size for source in self.sources)
        self.workers.run(lambda: self._work(progress, total))
        progress(total, total)

    def _tasks(self, layout: Iterable[bytes | GuestRange]) -> Iterator[bytes | list[Piece]]:
        at_once = CELL * ZERO_CELLS if self.options.sparse_size else CELL
        for item in layout:
            if isinstance(item, GuestRange):
                pieces = pieces_between(self.sources, item.offset, item.offset + item.length)
                for task in plan(pieces, CELL, at_once):
                    yield task.pieces
            else:
                yield item

    def _work(self, progress: Progress, total: int) -> None:
        import mmap

        buffer = memoryview(mmap.mmap(-1, CELL))
        while (task := self._next_task()) is not None:
            number, item = task
            if isinstance(item, bytes):
                with self.turnstile.turn(number):
                    self.sink.append(item)
                continue
            start, end = item[0].offset, item[-1].end
            is_zero = all(piece.extent is None for piece in item) and bool(self.options.sparse_size)
            data = buffer[: 0 if is_zero else end - start]
            if not is_zero:
                self._read(item, data)
            if self.rate:
                pause(self.rate.delay(end - start))
            with self.turnstile.turn(number):
                self._write(data, end - start)
                self.done += end - start
                progress(self.done, total)

    def _next_task(self) -> tuple[int, bytes | list[Piece]] | None:
        with self.lock:
            self.workers.check()
            with failing_map():
                return next(self.tasks, None)

    def _read(self, pieces: list[Piece], buffer: memoryview) -> None:
        for piece in pieces:
            first = piece.offset - pieces[0].offset
            part = buffer[first : first + piece.length]
            if piece.extent is None:
                part[:] = bytes(len(part))
            with failing("reading", piece.offset):
                read_piece(piece, part, self.options.salvage)

    def _write(self, data: memoryview, length: int) -> None:
        """Append what was read; without data, zeros."""
        if not len(data):
            self.sink.append_zeroes(length)
            return
        if not self.sink.leaves_holes or not self.options.sparse_size:
            self.sink.append(data)
            return
        position = 0
        for first, last in nonzero_runs(data, max(SECTOR, 1 << self.options.sparse_size.bit_length() - 1)):
            self.sink.append_zeroes(first - position)
            self.sink.append(data[first:last])
            position = last
        self.sink.append_zeroes(length - position)
