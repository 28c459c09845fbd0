"""Creation options of qcow2."""

from __future__ import annotations

from diskwright.options import Option, OptionType

DEFAULT_CLUSTER_SIZE = 65536
"""Bytes."""

CREATION_OPTIONS = (
    Option("cluster_size", OptionType.SIZE, "qcow2 cluster size", DEFAULT_CLUSTER_SIZE),
    Option("extended_l2", OptionType.BOOL, "Extended L2 tables", False),
    Option("preallocation", OptionType.STRING, "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    Option("compression_type", OptionType.STRING, "Compression method used for image cluster compression", "zlib"),
    Option("size", OptionType.SIZE, "Virtual disk size"),
    Option("compat", OptionType.STRING, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    Option("backing_file", OptionType.STRING, "File name of a base image"),
    Option("backing_fmt", OptionType.STRING, "Image format of the base image"),
    Option("data_file", OptionType.STRING, "File name of an external data file"),
    Option("data_file_raw", OptionType.BOOL, "The external data file must stay valid as a raw image"),
    Option("lazy_refcounts", OptionType.BOOL, "Postpone refcount updates", False),
    Option("refcount_bits", OptionType.NUMBER, "Width of a reference count entry in bits", 16),
)
"""In the order in which QEMU shows them."""
