"""Changing what was laid down when an image was created.

Everything is checked first. Version, refcounts and names then change by one switch of the header, after one to version
3 with a snapshot table as that wants it, if there is none yet; the size changes by another one. A downgrade to version
2 comes last, when nothing that version 2 cannot say is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diskwright.errors import InvalidOption
from diskwright.extent import distinct
from diskwright.record import Record

from . import layout
from .check_references import StoredRefcounts
from .downgrade import downgrade, require_downgradable
from .encryption import amend_encryption
from .layout import Autoclear, Compatible
from .overlap import snapshot_table_size
from .rebuild import RefcountBuilder, content_references, used_windows
from .resize import require_resizable, resize
from .snapshots import build_snapshots
from .switching import switch_header

if TYPE_CHECKING:
    from .header import Header
    from .image import Qcow2Image
    from .refcount import Column

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_V3_NEEDED = "compatibility level 1.1 and above (use compat=1.1 or greater)"


class Amendment(Record):
    """What an image is to become.

    :ivar header: its header, but for the places of tables, before any downgrade.
    :ivar version: 2 or 3.
    :ivar size: virtual size, bytes.
    """

    header: Header
    version: int
    size: int

    @classmethod
    def from_options(cls, image: Qcow2Image, values: Mapping[str, Any]) -> Amendment:
        """Check the options one by one and together.

        :raises InvalidOption: one is out of range or contradicts another or the image.
        """
        header = image.header
        version = header.version
        if "compat" in values:
            if values["compat"] not in _VERSIONS:
                raise InvalidOption(f"Unknown compatibility level {values['compat']}")
            version = _VERSIONS[values["compat"]]
        _check_backing(header, values)
        header = _with_data_file(header, values)
        header = _with_refcounts(header, values, version)
        header = header.replace(version=max(version, header.version))
        return cls(header, version, values.get("size", image.size))


class _Steps:
    """Progress of several long operations of the same weight, one after the other."""

    def __init__(self, progress: Callable[[int, int], None], operations: int) -> None:
        self._progress = progress
        self._operations = operations
        self._finished = 0

    def advance(self, done: int, total: int) -> None:
        """The present operation has done so much of so much."""
        self._progress(self._finished * total + done, self._operations * total)
        self._finished += done == total


def amend(
    image: Qcow2Image,
    values: Mapping[str, Any],
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """See the ``amend`` hook."""
    with image.lock:
        wanted = Amendment.from_options(image, values)
        if wanted.version < wanted.header.version:
            require_downgradable(image, wanted.header, wanted.size)
        if wanted.size != image.size:
            require_resizable(image, wanted.header, wanted.size, "off")
        image.flush()
        image.make_clean()
        amend_encryption(image, values, force)
        widens = wanted.header.refcount_order != image.header.refcount_order
        steps = _Steps(progress, widens + (wanted.version < image.header.version))
        _switch(image, wanted.header, steps)
        if wanted.size != image.size:
            resize(image, wanted.size, "off")
        if wanted.version < image.header.version:
            downgrade(image, steps.advance)


def _check_backing(header: Header, values: Mapping[str, Any]) -> None:
    given = values.get("backing_file"), values.get("backing_fmt")
    if given not in ((None, None), (header.backing_file, header.backing_format)):
        raise InvalidOption("Cannot amend the backing file", hint="You can use 'qemu-img rebase' instead.")


def _with_data_file(header: Header, values: Mapping[str, Any]) -> Header:
    if "data_file" in values:
        if not header.has_data_file:
            raise InvalidOption("data-file can only be set for images that use an external data file")
        header = header.replace(data_file=values["data_file"] or None)
    if "data_file_raw" in values:
        if values["data_file_raw"] and not header.raw_data_file:
            raise InvalidOption("data-file-raw cannot be set on existing images")
        if not values["data_file_raw"]:
            features = int(header.autoclear_features) & ~int(Autoclear.RAW_DATA_FILE)
            header = header.replace(autoclear_features=Autoclear(features))
    return header


def _with_refcounts(header: Header, values: Mapping[str, Any], version: int) -> Header:
    if "refcount_bits" in values:
        bits = values["refcount_bits"]
        if bits.bit_count() != 1 or bits > 1 << layout.MAX_REFCOUNT_ORDER:
            raise InvalidOption("Refcount width must be a power of two and may not exceed 64 bits")
        if version < 3 and bits != 1 << layout.DEFAULT_REFCOUNT_ORDER:
            raise InvalidOption(f"Refcount widths other than 16 bits require {_V3_NEEDED.replace('and', 'or', 1)}")
        header = header.replace(refcount_order=bits.bit_length() - 1)
    if "lazy_refcounts" in values:
        lazy = int(Compatible.LAZY_REFCOUNTS)
        features = int(header.compatible_features) & ~lazy
        if values["lazy_refcounts"]:
            # With a downgrade of an image that has them, they just go.
            if version < 3 and not int(header.compatible_features) & lazy:
                raise InvalidOption(f"Lazy refcounts only supported with {_V3_NEEDED}")
            features |= lazy
        header = header.replace(compatible_features=Compatible(features))
    return header


def _switch(image: Qcow2Image, wanted: Header, steps: _Steps) -> None:
    """Let the image have the header's features and names."""
    wanted.build()  # names that do not fit are refused before anything is written
    present = image.header
    old = image.snapshots
    fields: dict[str, Any] = {
        name: getattr(wanted, name)
        for name in ("version", "data_file", "compatible_features", "autoclear_features", "refcount_order")
        if getattr(wanted, name) != getattr(present, name)
    }
    if not fields:
        return
    upgraded = wanted.version > present.version
    rewritten = upgraded and any(len(entry.extra) < layout.SNAPSHOT_EXTRA_MIN_V3 for entry in old)
    if rewritten:
        # Version 3 requires of each snapshot what its VM state and its disk size are.
        table = build_snapshots(old)
        bits = present.cluster_bits
        former_end = present.snapshots_offset + snapshot_table_size(image)
        writer = image.writer
        run = writer.allocator.take_contiguous(-(-len(table) >> bits))
        writer.disk.write(run.first << bits, table)
        image.flush()
        switch_header(image, version=wanted.version, snapshots_offset=run.first << bits)
        image.writer.order.release(np.arange(present.snapshots_offset >> bits, -(-former_end >> bits)))
        image.flush()
    if wanted.refcount_order != present.refcount_order:
        fields |= _change_width(image, wanted.refcount_order, steps)
    switch_header(image, **fields)


def _change_width(image: Qcow2Image, order: int, steps: _Steps) -> dict[str, int]:
    """Write refcount structures of another width into free clusters; the header fields that lead to them.

    :raises InvalidOption: a refcount does not fit.
    :raises InvalidImage: the refcounts cannot be read.
    """
    header = image.header
    counts, own = _all_counts(image)
    steps.advance(1, 3)
    bits = 1 << order
    for start, part in used_windows(counts):
        too_high = np.flatnonzero(part > np.uint64((1 << bits) - 1))
        if len(too_high):
            cluster = start + int(too_high[0])
            raise InvalidOption(
                f"Cannot decrease refcount entry width to {bits} bits: Cluster at offset "
                f"{cluster << header.cluster_bits:#x} has a refcount of {int(counts[cluster])}"
            )
    builder = RefcountBuilder(image, counts, order)
    busy = counts != 0
    busy[own] = True  # the present refcount structures are left alone
    plan = builder.plan_low(busy)
    steps.advance(2, 3)
    fields = builder.write(plan.layout)
    steps.advance(3, 3)
    return fields


def _all_counts(image: Qcow2Image) -> tuple[Column, Column]:
    """The refcount of each cluster without what refcount structures themselves take, and the clusters that those take.

    What the image states is kept, even where it is more than there are references: leaks are for ``check`` to find.
    Where it states less, the references count, so that nothing in use is taken for free.
    """
    header = image.header
    counts = content_references(image, image.l1, crowded=True)
    if header.l1_size:
        end = header.l1_table_offset + header.l1_size * layout.L1_ENTRY_SIZE
        counts[header.l1_table_offset >> header.cluster_bits : -(-end >> header.cluster_bits)] += np.uint32(1)
    stored = StoredRefcounts(image, len(counts) - 1)
    stored.require_readable()
    own = _own_clusters(image, stored.table)
    stored.counts[own] -= stored.counts[own] != 0
    if stored.counts.dtype == np.uint64:
        counts = counts.astype(np.uint64)
    for start, part in used_windows(stored.counts):
        window = counts[start : start + len(part)]
        np.maximum(window, part, out=window, casting="unsafe")
    return counts, own


def _own_clusters(image: Qcow2Image, table: Column) -> Column:
    """The clusters of the file that hold the refcount table and the refcount blocks.

    :param table: the refcount table.
    """
    header = image.header
    first = header.refcount_table_offset >> header.cluster_bits
    places = table & np.uint64(layout.REFCOUNT_TABLE_OFFSET_MASK)
    blocks = places[places != 0].astype(np.int64) >> header.cluster_bits
    own = distinct(np.concatenate((np.arange(first, first + header.refcount_table_clusters), blocks)))
    return own[own < -(-image.file.size >> header.cluster_bits)]
