"""What is told of an image while it is traced."""

from __future__ import annotations

from collections.abc import Sequence

from diskwright.tracing import Event

L2_LOAD = Event("qcow2_l2_load", "l1_index", "offset", help="an L2 table is read from the file")
L2_WRITE = Event("qcow2_l2_write", "l1_index", "offset", "first", "entries", help="changed L2 entries are written back")
L1_WRITE = Event("qcow2_l1_write", "first", "entries", help="changed L1 entries are written back")
REFBLOCK_LOAD = Event("qcow2_refblock_load", "index", "offset", help="a refcount block is read from the file")
REFBLOCK_WRITE = Event("qcow2_refblock_write", "index", "offset", help="a changed refcount block is written back")
REFTABLE_MOVE = Event("qcow2_reftable_move", "offset", "clusters", help="the refcount table moves to a larger place")
CLUSTER_ALLOC = Event("qcow2_cluster_alloc", "first", "number", help="host clusters are taken into use")
CLUSTER_FREE = Event("qcow2_cluster_free", "number", help="references to clusters are dropped, nothing needs them")
FLUSH = Event("qcow2_flush", "step", help="a step of writing metadata back begins")

EVENTS: Sequence[Event] = (
    L2_LOAD,
    L2_WRITE,
    L1_WRITE,
    REFBLOCK_LOAD,
    REFBLOCK_WRITE,
    REFTABLE_MOVE,
    CLUSTER_ALLOC,
    CLUSTER_FREE,
    FLUSH,
)
