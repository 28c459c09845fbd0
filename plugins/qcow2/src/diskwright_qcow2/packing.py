"""Storing compressed clusters one behind the other; those that touch the same cluster of the file share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import UnsupportedOperation

from . import layout
from .encryption import refuse_compression
from .placing import RangeWithinTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .refcount import Column
    from .writer import ImageWriter


def write_compressed(writer: ImageWriter, clusters: Sequence[tuple[int, bytes]]) -> None:
    """Store compressed clusters, each with its guest offset; see :meth:`ImageWriter.write_compressed`."""
    if writer.header.has_data_file:
        raise UnsupportedOperation("Compression not supported for images with an external data file")
    refuse_compression(writer.image)
    bits, hosts, entries = writer.header.cluster_bits, [], np.zeros(len(clusters), np.uint64)
    try:
        for index, (offset, blob) in enumerate(clusters):
            writer.own_table(offset // writer.header.l1_coverage)
            writer.disk.node.note_event("cluster_alloc_bytes")
            hosts.append(_pack(writer, len(blob)))
            entries[index] = layout.compressed_descriptor(hosts[-1], len(blob), bits)
        _write_packed(writer, hosts, [blob for _, blob in clusters])
    except BaseException:
        writer.order.release(compressed_clusters(entries[: len(hosts)], bits))
        raise
    for index, (offset, _) in enumerate(clusters):
        part = RangeWithinTable(writer.header, offset, offset + 1)
        writer.disk.node.note_event("l2_update_compressed")
        # Not kept from above: a table that has not changed yet may have made room for others since.
        table = writer.own_table(part.l1_index)
        writer.replace(part, table, entries[index : index + 1], np.zeros(1, np.uint64))


def _write_packed(writer: ImageWriter, hosts: Sequence[int], blobs: Sequence[bytes]) -> None:
    """Write compressed clusters; those that stand one behind the other at once."""
    first = 0
    for last, (host, blob) in enumerate(zip(hosts, blobs, strict=True), 1):
        if last == len(hosts) or hosts[last] != host + len(blob):
            writer.disk.node.note_event("write_compressed")
            writer.disk.write(hosts[first], b"".join(blobs[first:last]))
            first = last


def _pack(writer: ImageWriter, length: int) -> int:
    """Host offset for so many bytes, fewer than a cluster; each cluster they touch has one reference more."""
    bits = writer.header.cluster_bits
    blocks = writer.allocator.blocks
    start = writer.packed_end
    room = -start % (1 << bits)
    if room and blocks.count(start >> bits) == blocks.maximum:
        room = 0
    if length > room:
        cluster = writer.allocator.take(1).first
        if room and cluster == (start >> bits) + 1:
            blocks.add(start >> bits)
        else:
            start = cluster << bits
    else:
        blocks.add(start >> bits)
    writer.packed_end = start + length
    return start


def compressed_clusters(entries: Column, cluster_bits: int) -> Column:
    """The host clusters that compressed L2 entries refer to, each as often as it is."""
    shift = np.uint64(layout.compressed_size_shift(cluster_bits))
    bits = np.uint64(cluster_bits)
    sector = np.uint64(layout.COMPRESSED_SECTOR)
    offsets = entries & ((np.uint64(1) << shift) - np.uint64(1))
    sectors = ((entries & np.uint64(layout.OFLAG_COMPRESSED - 1)) >> shift) + np.uint64(1)
    start = offsets - offsets % sector
    first = (start >> bits).astype(np.int64)
    last = ((start + sectors * sector - np.uint64(1)) >> bits).astype(np.int64)
    # Compressed data is at most two clusters long: it touches three at most.
    return np.concatenate([(first + step)[first + step <= last] for step in (0, 1, 2)])
