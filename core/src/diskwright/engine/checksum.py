"""The checksum of a disk's content: the same for the same guest bytes in whatever format, and quick where nothing is.

The map tells where data may be; only that is read and hashed, by several threads. ``docs/checksum.md`` defines the
result.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..extent import ExtentTable, merged
from ..node import Image
from .chain import layers, read_extents, resolve
from .copy import Progress, no_progress
from .hashtree import BLOCK, HashTree
from .pool import Workers, worker_count
from .reading import failing, failing_map
from .zeros import nonzero_blocks

CHUNK = 1 << 20
"""Bytes read at a time, a multiple of :data:`BLOCK`; each thread has one buffer of this length."""
DEFAULT_ALGORITHM = "sha256"


class Chunk(NamedTuple):
    """A range of the disk to be read.

    :ivar start: bytes, a multiple of :data:`CHUNK`.
    :ivar tables: the maps of its parts, without gaps; at most the disk's last chunk is shorter than :data:`CHUNK`.
    """

    number: int
    start: int
    tables: list[ExtentTable]


def checksum(image: Image, algorithm: str = DEFAULT_ALGORITHM, progress: Progress = no_progress) -> str:
    """The checksum of an open disk, in hexadecimal digits.

    :param algorithm: one of :data:`diskwright.engine.hashtree.ALGORITHMS`.
    :param progress: called now and then with the bytes done and the bytes there are.
    :raises ImageError: the disk cannot be read, or there is no such algorithm.
    """
    return _Checksum(image, algorithm, progress).run()


class _Checksum:
    """One run. Chunks are hashed side by side; their digests enter the tree in the order of the disk."""

    def __init__(self, image: Image, algorithm: str, progress: Progress) -> None:
        self.image = image
        self.chain = layers(image)
        self.tree = HashTree(algorithm)
        self.progress = progress
        self.chunks = chunks(resolve(image))
        self.lock = threading.Lock()
        self.waiting: dict[int, tuple[int, list[bytes | None]]] = {}
        self.next = 0
        self.workers = Workers(worker_count(8))

    def run(self) -> str:
        self.workers.run(self._work)
        self.progress(self.image.size, self.image.size)
        return self.tree.checksum(self.image.size)

    def _work(self) -> None:
        buffer = memoryview(bytearray(CHUNK))
        while (chunk := self._take()) is not None:
            with failing("reading", chunk.start):
                digests = self._digests(chunk, buffer)
            self._enter(chunk, digests)

    def _take(self) -> Chunk | None:
        with self.lock:
            self.workers.check()
            with failing_map():
                return next(self.chunks, None)

    def _digests(self, chunk: Chunk, buffer: memoryview) -> list[bytes | None]:
        """The digests of the blocks of a chunk, ``None`` for zeros."""
        position = 0
        for table in chunk.tables:
            end = table.end - chunk.start
            read_extents(self.chain, list(table), buffer[position:end])
            position = end
        whole = -(-position // BLOCK) * BLOCK
        buffer[position:whole] = bytes(whole - position)  # the disk's last block may be shorter
        found = nonzero_blocks(buffer[:whole], BLOCK).tolist()
        return [self.tree.leaf(buffer[i * BLOCK : (i + 1) * BLOCK]) if data else None for i, data in enumerate(found)]

    def _enter(self, chunk: Chunk, digests: list[bytes | None]) -> None:
        with self.lock:
            self.waiting[chunk.number] = (chunk.start // BLOCK, digests)
            while (entry := self.waiting.pop(self.next, None)) is not None:
                self.next += 1
                first, ready = entry
                for index, digest in enumerate(ready, first):
                    if digest is not None:
                        self.tree.add(index, digest)
            self.progress(min(chunk.start + CHUNK, self.image.size), self.image.size)


def chunks(tables: Iterable[ExtentTable]) -> Iterator[Chunk]:
    """The chunks of a disk that have data in them, in order.

    :param tables: the map of the whole disk.
    """
    number = 0
    begun: list[ExtentTable] = []  # maps of the first parts of a chunk that the next table goes on with
    for table in tables:
        for part in _whole_chunks(table):
            if begun and part.start % CHUNK == 0:
                if _has_data(begun):
                    yield Chunk(number, begun[0].start // CHUNK * CHUNK, begun)
                    number += 1
                begun = []
            begun.append(part)
    if begun and _has_data(begun):
        yield Chunk(number, begun[0].start // CHUNK * CHUNK, begun)


def _whole_chunks(table: ExtentTable) -> Iterator[ExtentTable]:
    """The parts of a map by chunks; chunks inside it without data are left out."""
    first_border = min(-(-table.start // CHUNK) * CHUNK, table.end)
    last_border = max(table.end // CHUNK * CHUNK, first_border)
    if table.start < first_border:
        yield table.clipped(table.start, first_border)
    for first, last in _busy(table):
        for start in range(max(first * CHUNK, first_border), min((last + 1) * CHUNK, last_border), CHUNK):
            yield table.clipped(start, start + CHUNK)
    if last_border < table.end:
        yield table.clipped(last_border, table.end)


def _busy(table: ExtentTable) -> list[tuple[int, int]]:
    """The first and last chunks of runs of chunks that a map has data in."""
    rows = table.rows[table.stored]
    firsts, lasts = merged(rows["offset"] // CHUNK, (rows["offset"] + rows["length"] - 1) // CHUNK)
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _has_data(tables: list[ExtentTable]) -> bool:
    return any(table.stored.any() for table in tables)
