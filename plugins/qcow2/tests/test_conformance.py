"""The kit that every format driver has to pass."""

from __future__ import annotations

from diskwright.testing import DriverConformance


class TestQcow2(DriverConformance):
    name, entry_module = "qcow2", "diskwright_qcow2.plugin"
    variants = (
        {},
        {"compat": "v2"},
        {"cluster_size": 512},
        {"extended_l2": True},
        {"refcount_bits": 1, "cluster_size": 4096},
        {"preallocation": "metadata"},
    )
    snapshot_variants = tuple(values for values in variants if values.get("refcount_bits") != 1)
