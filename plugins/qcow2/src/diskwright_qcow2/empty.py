"""Dropping all data of a layer at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.node import Truncatable

from . import layout
from .allocate import Run
from .rebuild import RefcountBuilder, content_references
from .switching import switch_header

if TYPE_CHECKING:
    from .image import Qcow2Image


def make_empty(image: Qcow2Image) -> None:
    """See the ``make_empty`` hook; snapshots stay.

    An empty L1 table and refcounts without all that the layer referred to are written behind the end of the file; one
    switch of the header makes them count. Then the same once more with what has become free, so that the file can be
    cut to what it needs.
    """
    with image.lock:
        image.flush()
        image.file.note_event("empty_image_prepare")
        first = _switch(image, Run(0, 0))
        last = _switch(image, first)
        _cut(image, last)


def _switch(image: Qcow2Image, present: Run) -> Run:
    """Switch to an empty L1 table.

    :param present: the place of an empty one and its refcount structures, which then goes free; without clusters as
        long as anything may be in use.
    :returns: the place of the new ones.
    """
    header = image.header
    l1 = np.zeros(header.l1_size, np.uint64)
    counts = content_references(image, l1)
    builder = RefcountBuilder(image, counts, header.refcount_order)
    l1_bytes = header.l1_size * layout.L1_ENTRY_SIZE
    extra = -(-l1_bytes >> header.cluster_bits)
    if present.length:
        busy = counts != 0
        busy[present.first : present.end] = True
        plan = builder.plan_low(busy, extra)
    else:
        plan = builder.plan(len(counts), extra)
    fields = builder.write(plan.layout)
    offset = plan.run.first << header.cluster_bits
    if l1_bytes:
        builder.disk.write(offset, bytes(l1_bytes))
        fields["l1_table_offset"] = offset
    switch_header(image, **fields)
    return plan.run


def _cut(image: Qcow2Image, last: Run) -> None:
    """Cut the file behind the last cluster in use."""
    counts = content_references(image, np.zeros(0, np.uint64))
    used = np.flatnonzero(counts)
    end = max(last.end, int(used[-1]) + 1) << image.header.cluster_bits
    if end < image.file.size and isinstance(image.file, Truncatable):
        image.file.truncate(end)
        image.file.flush()
