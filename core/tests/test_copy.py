"""The copy engine between images in memory, against a model of bytes; small cells, so that there are many."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from diskwright.engine import chain as engine_chain
from diskwright.engine import copy as engine
from diskwright.engine.pool import Turnstile, Workers
from diskwright.engine.zeros import nonzero_runs
from diskwright.errors import ImageError, UnsupportedOperation
from diskwright.extent import Extent, ExtentTable, Kind
from diskwright.node import Buffer, Bytes, Image, Node, Placement, WritableImage

CELL = 4096


class Memory(Node):
    """A file in memory that can be written."""

    read_only = False

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    @property
    def size(self) -> int:
        return len(self.content)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        part = self.content[offset : offset + len(buffer)]
        buffer[:] = part + bytes(len(buffer) - len(part))

    def write_at(self, offset: int, data: Bytes) -> None:
        self.content[offset : offset + len(data)] = bytes(data)


class Source(Image):
    """Data, zeros and absent ranges at random, in runs of 512 bytes; half of the data is zeros too."""

    def __init__(self, seed: int, size: int) -> None:
        chance = random.Random(seed)
        self.disk = Memory(bytes(size))
        self.file = self.disk
        self.runs: list[tuple[int, int, Kind]] = []
        position = 0
        while position < size:
            length = min(size - position, 512 * chance.choice([1, 2, 3, 7, 8, 40]))
            kind = chance.choice([Kind.DATA, Kind.DATA, Kind.ENCODED, Kind.ZERO, Kind.ABSENT])
            if kind in (Kind.DATA, Kind.ENCODED) and chance.random() < 0.6:
                self.disk.write_at(position, chance.randbytes(length))
            self.runs.append((position, position + length, kind))
            position += length
        self.bind("source", lambda image, offset, length: self.map(offset, length))

    @property
    def size(self) -> int:
        return self.file.size

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        self.disk.read_into(offset, buffer)

    def map(self, offset: int, length: int) -> Iterator[Extent | ExtentTable]:
        for start, end, kind in self.runs:
            first, last = max(start, offset), min(end, offset + length)
            if first < last:
                placed = kind is Kind.DATA
                yield Extent(first, last - first, kind, self.file if placed else None, first if placed else None)


class Runs(Source):
    """Data in the given runs (offset, length), and nothing between them."""

    def __init__(self, size: int, runs: Sequence[tuple[int, int]]) -> None:
        super().__init__(0, 0)
        self.file = self.disk = Memory(bytes(size))
        position = 0
        for offset, length in runs:
            self.disk.write_at(offset, b"x" * length)
            self.runs += [(position, offset, Kind.ABSENT), (offset, offset + length, Kind.DATA)]
            position = offset + length
        self.runs.append((position, size, Kind.ABSENT))


class Target(WritableImage):
    """An image in memory with clusters; notes in which order they are asked for and when they are linked."""

    def __init__(self, content: bytes, cluster_size: int | None = None) -> None:
        super().__init__()
        self.file = self.disk = Memory(content)
        self.cluster_size = cluster_size
        self.allocated: list[int] = []
        self.linked: list[int] = []
        self.zeroed: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return self.disk.size

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        assert self.lock._is_owned()  # type: ignore[attr-defined]
        self.allocated.append(offset)
        return [Placement(offset, length, self.disk, offset)]

    def link(self, placements: Sequence[Placement]) -> None:
        self.linked += [placement.offset for placement in placements]

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self.zeroed.append((offset, length))
        self.disk.write_at(offset, bytes(length))


class Shrinking(Target):
    """A target that compresses: clusters of one byte value get smaller."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, 1024)
        self.compressed: list[int] = []

    def compress(self, data: memoryview) -> bytes | None:
        return bytes(data[:1]) if len(set(data)) == 1 else None

    def write_compressed(self, clusters: Sequence[tuple[int, bytes]]) -> None:
        for offset, blob in clusters:
            self.compressed.append(offset)
            end = min(self.size, offset + 1024)
            self.disk.write_at(offset, blob * (end - offset))


@pytest.fixture(autouse=True)
def _small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CELL", CELL)
    monkeypatch.setattr(engine, "ZERO_CELLS", 3)
    monkeypatch.setattr(engine, "worker_count", lambda wanted: wanted)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("sparse_size", [0, 512, 4096])
@pytest.mark.parametrize("zero_target", [True, False])
@pytest.mark.parametrize("cluster_size", [None, 512, 8192])
@pytest.mark.parametrize("local", [False, True], ids=["far", "local"])
def test_every_byte_arrives(
    seed: int, parallel: int, sparse_size: int, zero_target: bool, cluster_size: int | None, local: bool
) -> None:
    sources = [Source(seed, 150 * 512), Source(seed + 50, 33 * 512)]
    expected = b"".join(bytes(source.disk.content) for source in sources)
    target = Target(bytes(len(expected)) if zero_target else b"\xaa" * len(expected), cluster_size)
    for image in (*sources, target):
        image.disk.one_at_a_time = local
    options = engine.CopyOptions(sparse_size=sparse_size, parallel=parallel, target_is_zero=zero_target)
    engine.copy(sources, target, options)
    assert target.disk.content == expected
    assert target.allocated == sorted(target.allocated)
    assert sorted(target.linked) == target.allocated
    if zero_target:
        assert not target.zeroed
    if not sparse_size:
        assert not target.zeroed
        assert target.allocated[0] == 0


def test_with_a_backing_file_only_the_top_layer_is_written() -> None:
    source = Source(7, 200 * 512)
    target = Target(b"\xaa" * source.size)
    engine.copy([source], target, engine.CopyOptions(depth_limit=1, backing_size=100 * 512))
    for start, end, kind in source.runs:
        found = target.disk.content[start:end]
        if kind is Kind.ABSENT:
            assert found == b"\xaa" * (end - start)
        elif kind is Kind.ZERO:
            inside = max(0, min(end, 100 * 512) - start)
            assert found == bytes(inside) + b"\xaa" * (end - start - inside)
        else:
            assert found == source.disk.content[start:end]


def test_zeros_of_a_new_target_are_not_written() -> None:
    source = Source(1, 64 * 512)
    source.disk.content[:] = bytes(source.size)
    target = Target(bytes(source.size))
    engine.copy([source], target, engine.CopyOptions())
    assert not target.allocated


def test_many_cells_of_zeros_are_one_call() -> None:
    source = Source(1, 100 * CELL)
    source.runs = [(0, source.size, Kind.ZERO)]
    target = Target(b"\xaa" * source.size)
    engine.copy([source], target, engine.CopyOptions(target_is_zero=False, parallel=1))
    assert target.disk.content == bytes(source.size)
    assert [length for _, length in target.zeroed] == [3 * CELL] * 33 + [CELL]


def test_compressed_clusters_are_stored_in_order() -> None:
    source = Source(3, 99 * 512)
    for start in range(0, source.size, 2048):
        source.disk.content[start : start + 1024] = b"\x11" * len(source.disk.content[start : start + 1024])
    source.runs = [(0, source.size, Kind.DATA)]
    target = Shrinking(bytes(source.size))
    engine.copy([source], target, engine.CopyOptions(compress=True, parallel=3))
    assert target.disk.content == source.disk.content
    assert target.compressed == list(range(0, source.size, 2048))


def test_clusters_that_do_not_shrink_are_stored_where_they_are() -> None:
    """Between them are some with nothing in them."""
    noise = random.Random(5).randbytes(1024)
    source = Source(3, 64 * 1024)
    for start in range(0, source.size, 1024):
        source.disk.content[start : start + 1024] = (bytes(1024), noise, noise, b"x" * 1024)[start // 1024 * 7 % 5 % 4]
    source.runs = [(0, source.size, Kind.DATA)]
    target = Shrinking(bytes(source.size))
    engine.copy([source], target, engine.CopyOptions(compress=True, parallel=2))
    assert target.disk.content == source.disk.content
    assert target.compressed
    assert target.allocated


def test_progress_goes_up_to_all() -> None:
    seen: list[tuple[int, int]] = []
    source = Source(4, 64 * CELL)
    engine.copy([source], Target(bytes(source.size)), engine.CopyOptions(), lambda *at: seen.append(at))
    assert seen == sorted(seen)
    data = sum(e.length for t in engine_chain.resolve(source) for e in t if e.kind in (Kind.DATA, Kind.ENCODED))
    assert 0 < data < source.size
    assert seen[-1] == (data, data)


def test_progress_moves_with_the_runs_of_data() -> None:
    """Four separate megabytes are four steps; a long run moves every two megabytes."""
    mib = 1 << 20

    def steps(*runs: tuple[int, int], sparse_size: int = 4096) -> list[float]:
        seen: list[float] = []
        source = Runs(16 * mib, runs)
        options = engine.CopyOptions(parallel=1, sparse_size=sparse_size)
        engine.copy([source], Target(bytes(source.size)), options, lambda done, total: seen.append(100 * done / total))
        return seen

    assert steps((0, mib), (2 * mib, mib), (4 * mib, mib), (8 * mib, mib)) == [25, 50, 75, 100, 100]
    assert steps((0, 8 * mib)) == [25, 50, 75, 100, 100]
    assert steps((0, 3 * mib), (12 * mib, mib)) == [50, 75, 100, 100]
    zeros_too = [100 * at / 16 for at in (1, 3, 5, 7, 9, 11, 13, 15, 16, 16)]
    assert steps((0, mib), sparse_size=0) == zeros_too


def test_a_local_file_is_written_by_one_thread_that_does_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given time to begin, it writes all, as long as nothing has to be decoded."""
    readers, writers = set(), set()

    class Local(Memory):
        one_at_a_time = True

        def read_into(self, offset: int, buffer: Buffer) -> None:
            readers.add(threading.get_ident())
            super().read_into(offset, buffer)

        def write_at(self, offset: int, data: Bytes) -> None:
            writers.add(threading.get_ident())
            super().write_at(offset, data)

    source = Runs(500 * CELL, [(0, 500 * CELL)])
    source.file = source.disk = Local(bytes(source.disk.content))
    target = Target(bytes(source.size))
    target.disk = Local(bytes(source.size))
    begin = engine.Writer.loop
    began = threading.Event()
    monkeypatch.setattr(engine.Writer, "loop", lambda writer: (began.set(), begin(writer))[1])
    real_take = engine.Buffers.take
    monkeypatch.setattr(
        engine.Buffers, "take", lambda buffers: (began.wait(10), time.sleep(0.001), real_take(buffers))[2]
    )
    engine.copy([source], target, engine.CopyOptions(parallel=4))
    assert target.disk.content == source.disk.content
    assert sorted(target.linked) == target.allocated
    assert len(readers) == len(writers) == 1
    assert readers != writers


def test_without_memory_for_another_thread_the_only_one_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_thread.start_new_thread", lambda function, arguments: 0)
    source = Source(8, 64 * CELL)
    target = Target(bytes(source.size))
    source.disk.one_at_a_time = target.disk.one_at_a_time = True
    engine.copy([source], target, engine.CopyOptions(parallel=4))
    assert target.disk.content == source.disk.content


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("local", [False, True], ids=["far", "local"])
def test_a_failing_write_ends_the_copy_with_its_reason(parallel: int, local: bool) -> None:
    class Full(Memory):
        one_at_a_time = local

        def write_at(self, offset: int, data: Bytes) -> None:
            if offset >= 10 * CELL:
                raise OSError(28, "No space left on device")
            super().write_at(offset, data)

    source = Source(5, 64 * CELL)
    target = Target(bytes(source.size))
    target.disk = Full(bytes(source.size))
    before = threading.active_count()
    with pytest.raises(ImageError, match=r"^error while writing at byte \d+: No space left on device$"):
        engine.copy([source], target, engine.CopyOptions(parallel=parallel))
    assert threading.active_count() == before


@pytest.mark.parametrize("local", [False, True], ids=["far", "local"])
@pytest.mark.parametrize("cells", [3, 64], ids=["at the end", "on the way"])
def test_tables_that_cannot_be_changed_are_told_of_once(local: bool, cells: int) -> None:
    class Broken(Target):
        def link(self, placements: Sequence[Placement]) -> None:
            raise ImageError("no room in the tables")

    source = Runs(cells * CELL, [(0, cells * CELL)])
    target = Broken(bytes(source.size))
    source.disk.one_at_a_time = target.disk.one_at_a_time = local
    with pytest.raises(ImageError, match=r"^error while writing at byte \d+: no room in the tables$"):
        engine.copy([source], target, engine.CopyOptions(parallel=4))


def test_a_failing_read_says_where() -> None:
    class Bad(Source):
        def read_encoded(self, offset: int, buffer: memoryview) -> None:
            raise OSError(5, "Input/output error")

    source = Bad(6, 64 * CELL)
    with pytest.raises(ImageError, match=r"^error while reading at byte \d+: Input/output error$"):
        engine.copy([source], Target(bytes(source.size)), engine.CopyOptions())


def test_a_target_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UnsupportedOperation):
        engine.copy([Source(1, 512)], Source(2, 512), engine.CopyOptions())


@pytest.mark.parametrize("block", [512, 1024, 4096])
def test_runs_of_data_are_found(block: int) -> None:
    chance = random.Random(block)
    data = bytearray(20 * 4096 + 700)
    for _ in range(12):
        data[chance.randrange(len(data))] = 1
    covered = bytearray(len(data))
    for start, end in nonzero_runs(memoryview(data), block):
        assert start % block == 0
        assert end % block == 0 or end == len(data)
        covered[start:end] = b"\1" * (end - start)
        assert all(any(data[at : at + block]) for at in range(start, end, block))
    assert not any(byte for byte, inside in zip(data, covered, strict=True) if not inside)


def test_the_turnstile_keeps_the_order() -> None:
    workers = Workers(4)
    turnstile = Turnstile(workers)
    numbers = iter(range(200))
    passed: list[int] = []

    def loop() -> None:
        while (number := next(numbers, None)) is not None:
            with turnstile.turn(number):
                passed.append(number)

    workers.run(loop)
    assert passed == list(range(200))
