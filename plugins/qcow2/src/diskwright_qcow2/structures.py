"""The on-disk structures of qcow2, one group per section of docs/interop/qcow2.rst. Big-endian.

:mod:`.layout` has the counterparts that the driver works with, and what goes with them: constants, flags and limits.
"""

from __future__ import annotations

from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from .layout import MAGIC

# Header

HEADER = Struct(
    "magic" / Const(MAGIC),
    "version" / Int32ub * "2 or 3",
    "backing_file_offset" / Int64ub * "bytes, 0 without backing file",
    "backing_file_size" / Int32ub * "bytes, at most 1023",
    "cluster_bits" / Int32ub * "clusters are 1 << cluster_bits bytes",
    "size" / Int64ub * "virtual disk size, bytes",
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub * "entries",
    "l1_table_offset" / Int64ub * "bytes, cluster aligned",
    "refcount_table_offset" / Int64ub * "bytes, cluster aligned",
    "refcount_table_clusters" / Int32ub * "clusters",
    "nb_snapshots" / Int32ub,
    "snapshots_offset" / Int64ub * "bytes, cluster aligned",
)

HEADER_V3 = Struct(
    "incompatible_features" / Int64ub,  # plain integers: a flags construct would lose unknown bits
    "compatible_features" / Int64ub,
    "autoclear_features" / Int64ub,
    "refcount_order" / Int32ub * "refcounts are 1 << refcount_order bits",
    "header_length" / Int32ub * "bytes, multiple of 8",
)

HEADER_ADDITIONAL = Struct("compression_type" / Int8ub, "padding" / Bytes(7))

# Header extensions

EXTENSION_HEADER = Struct("type" / Int32ub, "length" / Int32ub * "bytes of data, without padding to 8")

# Feature name table

FEATURE_NAME = Struct("type" / Int8ub, "bit" / Int8ub, "name" / Bytes(46) * "padded with zeros")

# Bitmaps extension

BITMAPS_EXTENSION = Struct(
    "nb_bitmaps" / Int32ub,
    "reserved" / Int32ub,
    "bitmap_directory_size" / Int64ub * "bytes",
    "bitmap_directory_offset" / Int64ub * "bytes, cluster aligned",
)

# Full disk encryption header pointer

CRYPTO_EXTENSION = Struct("offset" / Int64ub * "bytes, cluster aligned", "length" / Int64ub * "bytes")

# Snapshots

SNAPSHOT_HEADER = Struct(
    "l1_table_offset" / Int64ub * "bytes, cluster aligned",
    "l1_size" / Int32ub * "entries",
    "id_str_size" / Int16ub * "bytes",
    "name_size" / Int16ub * "bytes",
    "date_sec" / Int32ub * "seconds since 1970, UTC",
    "date_nsec" / Int32ub * "ns",
    "vm_clock_nsec" / Int64ub * "ns the guest ran",
    "vm_state_size" / Int32ub * "bytes, 0 if it does not fit: then see the extra data",
    "extra_data_size" / Int32ub * "bytes",
)

SNAPSHOT_EXTRA = Struct(
    "vm_state_size" / Int64ub * "bytes",
    "disk_size" / Int64ub * "bytes",
    "icount" / Int64ub * "instructions executed, all ones if not known",
)

# Bitmaps

BITMAP_DIRECTORY_ENTRY = Struct(
    "bitmap_table_offset" / Int64ub * "bytes, cluster aligned",
    "bitmap_table_size" / Int32ub * "entries",
    "flags" / Int32ub,
    "type" / Int8ub * "1: dirty tracking",
    "granularity_bits" / Int8ub * "one bit covers 1 << granularity_bits bytes",
    "name_size" / Int16ub * "bytes",
    "extra_data_size" / Int32ub * "bytes",
)
