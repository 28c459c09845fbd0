"""``bench``: which requests are sent, how many at a time, and what is printed."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from diskwright.engine.bench import BenchRequest, bench
from diskwright.errors import ImageError, UnsupportedOperation
from diskwright.extent import Kind
from diskwright.node import Buffer, Image, Placement, WritableImage
from diskwright.testing.nodes import MemoryNode

SIZE = 1 << 20


class Disk(WritableImage):
    """Notes what is done to it.

    :param delay: seconds that each read takes.
    """

    def __init__(self, cluster_size: int | None = None, delay: float = 0.0) -> None:
        super().__init__()
        self.file = self.memory = MemoryNode(bytes(SIZE), writable=True)
        self.cluster_size = cluster_size
        self.delay = delay
        self.guard = threading.Lock()
        self.log: list[tuple[str, int]] = []
        self.running = self.most = 0

    @property
    def size(self) -> int:
        return SIZE

    def read_into(self, offset: int, buffer: Buffer) -> None:
        with self.guard:
            self.log.append(("read", offset))
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(self.delay)
        with self.guard:
            self.running -= 1

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        return [Placement(offset, length, self.memory, offset)]

    def link(self, placements: Sequence[Placement]) -> None:
        with self.guard:
            self.log += [("write", placement.offset) for placement in placements]

    def flush(self) -> None:
        with self.guard:
            self.log.append(("flush", 0))


def test_offsets_go_by_steps_and_stay_inside() -> None:
    disk = Disk()
    bench(disk, BenchRequest(count=5, depth=1, offset=8192, buffer_size=4096, step=1 << 19))
    offsets = [offset for _, offset in disk.log]
    assert offsets[:2] == [8192, 8192 + (1 << 19)]
    assert len(offsets) == 5
    assert all(offset + 4096 <= SIZE for offset in offsets)


@pytest.mark.parametrize(("depth", "count"), [(1, 5), (6, 30), (40, 8)])
def test_so_many_at_a_time(depth: int, count: int) -> None:
    disk = Disk(delay=0.02)
    bench(disk, BenchRequest(count=count, depth=depth))
    assert len(disk.log) == count
    assert disk.most == min(depth, count)


@pytest.mark.parametrize("cluster_size", [None, 65536])
def test_writing(cluster_size: int | None) -> None:
    disk = Disk(cluster_size)
    bench(disk, BenchRequest(count=16, depth=4, write=True, pattern=0x41, step=8192))
    written = bytes(disk.memory.read_at(0, SIZE))
    assert written[: 16 * 8192] == (b"A" * 4096 + bytes(4096)) * 16
    assert not any(written[16 * 8192 :])
    assert ("flush", 0) not in disk.log


def test_a_flush_waits_for_what_came_before_it() -> None:
    disk = Disk()
    bench(disk, BenchRequest(count=10, depth=2, write=True, flush_interval=4))
    kinds = [kind for kind, _ in disk.log]
    assert kinds == ["write"] * 4 + ["flush"] + ["write"] * 4 + ["flush"] + ["write"] * 2


def test_flushes_that_nothing_waits_for() -> None:
    disk = Disk()
    bench(disk, BenchRequest(count=12, depth=4, write=True, flush_interval=4, drain=False))
    assert [kind for kind, _ in disk.log].count("flush") == 3


@pytest.mark.parametrize("request_", [BenchRequest(offset=SIZE), BenchRequest(buffer_size=SIZE + 512)])
def test_requests_behind_the_end_fail(request_: BenchRequest) -> None:
    with pytest.raises(ImageError, match="^Failed request: Input/output error$"):
        bench(Disk(), request_)


def test_what_cannot_be_written(world: Any) -> None:
    world.add("x", (Kind.DATA, 4096, 0), data=bytes(4096))
    image: Image
    with world.context.open("x") as image, pytest.raises(UnsupportedOperation):
        bench(image, BenchRequest(count=1, write=True))


def test_output(world: Any) -> None:
    world.add("x", (Kind.DATA, 65536, 0), data=bytes(65536))
    code, out, err = world.run("bench", "-q", "-c", "10", "-d", "2", "-s", "1k", "-o", "512", "-S", "2k", "x")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first == "Sending 10 read requests, 1024 bytes each, 2 in parallel (starting at offset 512, step size 2048)"
    assert re.fullmatch(r"Run completed in \d+\.\d{3} seconds\.", second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expecting one image file name"),
        (["-c", "0", "x"], "Invalid request count specified. Must be between 1 and 2147483647."),
        (["-c", "1x", "x"], "Invalid request count specified: '1x'."),
        (["-d", "0", "x"], "Invalid queue depth specified. Must be between 1 and 2147483647."),
        (["-s", "0", "x"], "Invalid buffer size specified. Must be between 1 and 2147483647."),
        (["-S", "2G", "x"], "Invalid step size specified. Must be between 0 and 2147483647."),
        (["-o", "1x", "x"], "Invalid offset specified: '1x'."),
        (["--pattern", "256", "x"], "Invalid pattern byte specified. Must be between 0 and 255."),
        (["--flush-interval", "x", "x"], "Invalid flush interval specified: 'x'."),
        (["--flush-interval", "4", "x"], "--flush-interval is only available in write tests"),
        (["-w", "--flush-interval", "4", "x"], "Flush interval can't be smaller than depth"),
        (["-i", "foo", "x"], "Invalid aio option: foo"),
        (["-t", "foo", "x"], "Invalid cache mode"),
        (
            ["-n", "x"],
            "Could not open 'x': aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ),
    ],
)
def test_mistakes(world: Any, arguments: list[str], message: str) -> None:
    code, out, err = world.run("bench", *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")
