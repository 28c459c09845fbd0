"""Crashes: at whatever instant, and whichever of the last writes got through, the image is sound."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from diskwright.hookspecs import OpenOptions
from diskwright.node import Buffer, Bytes, Node
from diskwright_qcow2.check import check
from diskwright_qcow2.image import Qcow2Image

SIZE = 2 << 20


class Recorder(Node):
    """A file in memory that remembers each write, and where the barriers were."""

    read_only = False

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.epochs: list[list[tuple[int, bytes]]] = [[]]

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        part = self.data[offset : offset + len(buffer)]
        buffer[:] = part.ljust(len(buffer), b"\0")

    def write_at(self, offset: int, data: Bytes) -> None:
        self.epochs[-1].append((offset, bytes(data)))
        apply(self.data, offset, data)

    def flush(self) -> None:
        self.epochs.append([])


def apply(target: bytearray, offset: int, data: Bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def opened(node: Node, *, writable: bool) -> Qcow2Image:
    def no_child(name: str, role: str) -> Node:
        raise AssertionError(name)

    image = Qcow2Image(node, OpenOptions("disk", writable, False, {}, no_child))
    image.bind("qcow2", lambda _, offset, length: image.map_range(offset, length))
    return image


@pytest.mark.parametrize(
    "options",
    [
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4k",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10,cluster_size=512",
    ],
)
def test_power_fails_anywhere(tmp_path: Path, qemu_img: Callable[..., str], options: str) -> None:
    """Data that was flushed survives; the rest is old or new; at worst clusters leak."""
    rng = random.Random(1)
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    kept = rng.randbytes(64 << 10)
    node = Recorder(path.read_bytes())
    image = opened(node, writable=True)
    image.write_at(0, kept)
    image.flush()
    path.write_bytes(node.data)
    qemu_img("snapshot", "-c", "s", path)
    start = path.read_bytes()
    node = Recorder(start)
    image = opened(node, writable=True)
    for _ in range(6):
        for _ in range(4):
            offset = rng.randrange(len(kept), SIZE - 200_000)
            image.write_at(offset, rng.randbytes(rng.choice((512, 5000, 150_000))))
        image.write_zeroes(rng.randrange(len(kept), SIZE // 2), 50_000, unmap=True)
        image.flush()
    durable = bytearray(start)
    for epoch in node.epochs:
        for _ in range(2):
            crashed = bytearray(durable)
            for offset, data in epoch:
                if rng.random() < 0.5:
                    apply(crashed, offset, data)
            after = opened(Recorder(crashed), writable=False)
            result = check(after)
            assert result.corruptions == 0, result.findings[:5]
            assert after.read_at(0, len(kept)) == kept
        for offset, data in epoch:
            apply(durable, offset, data)
    path.write_bytes(durable)
    qemu_img("check", "-q", path)


def test_freed_clusters_are_not_reused_before_the_flush(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, str(SIZE))
    image = opened(Recorder(path.read_bytes()), writable=True)
    image.write_at(0, b"a" * 65536)
    image.flush()
    first = image.allocate(0, 65536)[0].node_offset
    image.write_zeroes(0, 65536, unmap=True)
    assert image.allocate(65536, 65536)[0].node_offset != first
    image.flush()
    assert image.allocate(131072, 65536)[0].node_offset == first
