"""Changing what was laid down when an image was created.

Everything is checked first. Version, refcounts and names then change by one switch of the header, the size by another;
a downgrade to version 2 comes last, when nothing that version 2 cannot say is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diskwright.errors import InvalidOption

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

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_V3_NEEDED = "compatibility level 1.1 and above (use compat=1.1 or greater)"


@dataclass(frozen=True)
class Amendment:
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
        header = replace(header, version=max(version, header.version))
        return cls(header, version, values.get("size", image.size))


def amend(image: Qcow2Image, values: Mapping[str, Any], force: bool = False) -> None:
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
        _switch(image, wanted.header)
        if wanted.size != image.size:
            resize(image, wanted.size, "off")
        if wanted.version < image.header.version:
            downgrade(image)


def _check_backing(header: Header, values: Mapping[str, Any]) -> None:
    given = values.get("backing_file"), values.get("backing_fmt")
    if given not in ((None, None), (header.backing_file, header.backing_format)):
        raise InvalidOption("Cannot amend the backing file", hint="You can use 'qemu-img rebase' instead.")


def _with_data_file(header: Header, values: Mapping[str, Any]) -> Header:
    if "data_file" in values:
        if not header.has_data_file:
            raise InvalidOption("data-file can only be set for images that use an external data file")
        header = replace(header, data_file=values["data_file"] or None)
    if "data_file_raw" in values:
        if values["data_file_raw"] and not header.raw_data_file:
            raise InvalidOption("data-file-raw cannot be set on existing images")
        if not values["data_file_raw"]:
            features = int(header.autoclear_features) & ~int(Autoclear.RAW_DATA_FILE)
            header = replace(header, autoclear_features=Autoclear(features))
    return header


def _with_refcounts(header: Header, values: Mapping[str, Any], version: int) -> Header:
    if "refcount_bits" in values:
        bits = values["refcount_bits"]
        if bits.bit_count() != 1 or bits > 1 << layout.MAX_REFCOUNT_ORDER:
            raise InvalidOption("Refcount width must be a power of two and may not exceed 64 bits")
        if version < 3 and bits != 1 << layout.DEFAULT_REFCOUNT_ORDER:
            raise InvalidOption(f"Refcount widths other than 16 bits require {_V3_NEEDED.replace('and', 'or', 1)}")
        header = replace(header, refcount_order=bits.bit_length() - 1)
    if "lazy_refcounts" in values:
        lazy = int(Compatible.LAZY_REFCOUNTS)
        features = int(header.compatible_features) & ~lazy
        if values["lazy_refcounts"]:
            if version < 3:
                raise InvalidOption(f"Lazy refcounts only supported with {_V3_NEEDED}")
            features |= lazy
        header = replace(header, compatible_features=Compatible(features))
    return header


def _switch(image: Qcow2Image, wanted: Header) -> None:
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
        fields |= _change_width(image, wanted.refcount_order)
    switch_header(image, **fields)


def _change_width(image: Qcow2Image, order: int) -> dict[str, int]:
    """Write refcount structures of another width into free clusters; the header fields that lead to them.

    :raises InvalidOption: a refcount does not fit.
    """
    header = image.header
    counts = content_references(image, image.l1, crowded=True)
    if header.l1_size:
        end = header.l1_table_offset + header.l1_size * layout.L1_ENTRY_SIZE
        counts[header.l1_table_offset >> header.cluster_bits : -(-end >> header.cluster_bits)] += np.uint32(1)
    bits = 1 << order
    for start, part in used_windows(counts):
        too_high = np.flatnonzero(part > np.uint32(min((1 << bits) - 1, (1 << 32) - 1)))
        if len(too_high):
            cluster = start + int(too_high[0])
            raise InvalidOption(
                f"Cannot decrease refcount entry width to {bits} bits: Cluster at offset "
                f"{cluster << header.cluster_bits:#x} has a refcount of {int(counts[cluster])}"
            )
    builder = RefcountBuilder(image, counts, order)
    refcounts = StoredRefcounts(image, len(counts) - 1)
    return builder.write(builder.plan_low((refcounts.counts != 0) | (counts != 0)).layout)
