"""How large the file of an image will be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from diskwright.errors import InvalidOption
from diskwright.facts import Measurement
from diskwright.hookspecs import CreateOptions
from diskwright.node import Image, Node

from . import layout
from .bitmaps import bitmap_bytes, directory_entry_size
from .create import Plan
from .encryption import NewEncryption
from .layout import BitmapFlag

if TYPE_CHECKING:
    from .image import Qcow2Image

_RELEVANT = ("cluster_size", "extended_l2", "compat", "refcount_bits", "preallocation")
"""Options that the figures depend on, besides whether there is a backing file."""


def measure(
    size: int,
    values: Mapping[str, Any],
    ranges: Iterable[tuple[int, int]],
    source: Image | None,
    secret: Callable[[str], bytes],
) -> Measurement:
    """See the ``measure`` hook; the figures are QEMU's, which count the metadata of a full image in any case."""
    relevant = {name: value for name, value in values.items() if name in _RELEVANT}
    plan = Plan.from_options(CreateOptions("", size, relevant, _no_child))
    cluster = plan.cluster_size
    disk = _round_up(size, cluster)
    entry = layout.L2_ENTRY_SIZE_EXTENDED if plan.extended_l2 else layout.L2_ENTRY_SIZE
    if -(-disk // cluster // (cluster // entry)) * layout.L1_ENTRY_SIZE > layout.MAX_L1_BYTES:
        raise InvalidOption("The image size is too large (try using a larger cluster size)")
    if plan.preallocation in ("falloc", "full") or (values.get("backing_file") and source is not None):
        # With a backing file, nobody knows how much of the source it will have.
        data = disk
    else:
        data = _data_bytes(ranges, cluster)
    whole = disk + _metadata_bytes(disk, cluster, entry, plan.refcount_bits)
    if values.get("encrypt.format") == "luks" and (encryption := NewEncryption.from_options(values)):
        secret(values["encrypt.key-secret"])  # QEMU refuses what is not there, and so would create
        whole += _round_up(encryption.header_size, cluster)
    bitmaps = None if plan.version < 3 or source is None else _bitmaps_of(source, cluster)
    return Measurement(required=whole - disk + data, fully_allocated=whole, bitmaps=bitmaps)


def _no_child(name: str, size: int, preallocation: str) -> Node:
    raise InvalidOption(f"'{name}' is not created by measuring")


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _data_bytes(ranges: Iterable[tuple[int, int]], cluster: int) -> int:
    """Bytes of all clusters that the ranges, which are in order, touch."""
    total = reached = 0
    for offset, length in ranges:
        start = max(reached, offset - offset % cluster)
        end = _round_up(offset + length, cluster)
        if end > start:
            total += end - start
            reached = end
    return total


def _metadata_bytes(disk: int, cluster: int, l2_entry: int, refcount_bits: int) -> int:
    """Bytes of header, L1 table, L2 tables and refcount structures once all of the disk has been written.

    :param disk: its size in whole clusters, bytes.
    """
    l2_tables = -(-disk // cluster // (cluster // l2_entry))
    tables = cluster + l2_tables * cluster + _round_up(l2_tables * layout.L1_ENTRY_SIZE, cluster)
    counted = (tables + disk) // cluster
    per_block = cluster * 8 // refcount_bits
    per_table_cluster = cluster // layout.REFCOUNT_TABLE_ENTRY_SIZE
    total, before = counted, -1
    # The refcount structures count themselves.
    while total != before:
        before = total
        blocks = -(-total // per_block)
        total = counted + blocks + -(-blocks // per_table_cluster)
    return tables + (total - counted) * cluster


def _bitmaps_of(source: Image, cluster: int) -> int | None:
    """Bytes that the source's bitmaps, all bits stored, take in an image with such clusters."""
    from .image import Qcow2Image

    if not isinstance(source, Qcow2Image) or source.header.version < 3:
        return None
    return _bitmap_bytes(source, cluster)


def _bitmap_bytes(source: Qcow2Image, cluster: int) -> int:
    total = directory = 0
    for bitmap in source.bitmaps:
        if not bitmap.flags & BitmapFlag.IN_USE:
            data = _round_up(bitmap_bytes(source.size, bitmap.granularity_bits), cluster)
            table = _round_up(data // cluster * layout.BITMAP_TABLE_ENTRY_SIZE, cluster)
            total += data + table
            directory += directory_entry_size(bitmap.name)
    return total + _round_up(directory, cluster)
