"""Writes qcow2 files whose clusters lie in any order: what years of use do to an image, made in seconds.

This is no part of the product and shares no code with it. It follows QEMU's docs/interop/qcow2.rst; ``qemu-img check``
finds nothing wrong with the result. The file begins with header, refcount table, refcount blocks, L1 table and L2
tables, then come the guest's clusters.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COPIED = 1 << 63
"""In L1 and L2 entries: the refcount is one."""
BACKING_FORMAT = 0xE2792ACA
"""Type of the header extension with the format of the backing file."""
PORTION = 32 << 20
"""Bytes that are written at once."""
SEED = 20


def write(
    path: Path,
    size: int,
    cluster_size: int,
    guests: NDArray[np.int64],
    *,
    backing: str | None = None,
    shuffle: bool = True,
    data: bool = True,
) -> None:
    """Write an image.

    :param size: of the disk, bytes, a multiple of the cluster size.
    :param cluster_size: bytes.
    :param guests: numbers of the clusters of the disk that are allocated, in ascending order.
    :param backing: name of the backing file, a qcow2 image.
    :param shuffle: whether the clusters lie in the file in random order; else in the order of the disk.
    :param data: whether they hold anything, which is the number of the cluster, over and over; else they are holes of
        the file, and read as zeros.
    """
    per_table, per_block = cluster_size // 8, cluster_size // 2
    tables = -(-size // (cluster_size * per_table))
    l1_clusters = -(-tables * 8 // cluster_size)
    blocks = table_clusters = 0
    while True:  # refcounts are counted, too
        first = 1 + table_clusters + blocks + l1_clusters + tables
        total = first + len(guests)
        needed = -(-total // per_block)
        if needed == blocks and -(-blocks * 8 // cluster_size) == table_clusters:
            break
        blocks, table_clusters = needed, -(-needed * 8 // cluster_size)

    hosts = np.arange(len(guests), dtype=np.int64)
    if shuffle:
        np.random.default_rng(SEED).shuffle(hosts)
    block_start = 1 + table_clusters
    l1_start = block_start + blocks
    l2_start = l1_start + l1_clusters

    refcount_table = (block_start + np.arange(blocks, dtype=np.uint64)) * np.uint64(cluster_size)
    refcounts = np.zeros(blocks * per_block, dtype=">u2")
    refcounts[:total] = 1
    l1 = (l2_start + np.arange(tables, dtype=np.uint64)) * np.uint64(cluster_size) | np.uint64(COPIED)
    l2 = np.zeros(tables * per_table, dtype=">u8")
    l2[guests] = (first + hosts).astype(np.uint64) * np.uint64(cluster_size) | np.uint64(COPIED)

    with path.open("wb") as file:
        file.write(_header(size, cluster_size, tables, l1_start, table_clusters, backing))
        for start, table in ((1, refcount_table), (block_start, refcounts), (l1_start, l1), (l2_start, l2)):
            file.seek(start * cluster_size)
            file.write(table.astype(table.dtype.newbyteorder(">")).tobytes())
        file.truncate(total * cluster_size)
        if data:
            file.seek(first * cluster_size)
            _write_clusters(file.fileno(), first * cluster_size, cluster_size, guests[np.argsort(hosts)])


def _header(
    size: int, cluster_size: int, tables: int, l1_start: int, table_clusters: int, backing: str | None
) -> bytes:
    name = (backing or "").encode()
    extensions = struct.pack(">II8s", BACKING_FORMAT, 5, b"qcow2") if backing else b""
    extensions += bytes(8)
    bits = cluster_size.bit_length() - 1
    length = 104
    return (
        struct.pack(
            ">4sIQIIQIIQQIIQQQQII",
            *(b"QFI\xfb", 3, length + len(extensions) if backing else 0, len(name), bits, size, 0),
            *(tables, l1_start * cluster_size, cluster_size, table_clusters, 0, 0),
            *(0, 0, 0, 4, length),
        )
        + extensions
        + name
    )


def _write_clusters(descriptor: int, position: int, cluster_size: int, numbers: NDArray[np.int64]) -> None:
    step = max(1, PORTION // cluster_size)
    for start in range(0, len(numbers), step):
        block = np.repeat(numbers[start : start + step] + 1, cluster_size // 8)
        position += os.pwrite(descriptor, block.data, position)
