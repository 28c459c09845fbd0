"""Creation options of qcow2."""

from __future__ import annotations

from diskwright.options import Option, OptionType

DEFAULT_CLUSTER_SIZE = 65536
"""Bytes."""

CREATION_OPTIONS = (
    Option(
        "encryption",
        OptionType.BOOL,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    Option("encrypt.format", OptionType.STRING, "Encrypt the image, format choices: 'aes', 'luks'"),
    Option("encrypt.key-secret", OptionType.STRING, "ID of secret providing qcow AES key or LUKS passphrase"),
    Option("encrypt.cipher-alg", OptionType.STRING, "Name of encryption cipher algorithm"),
    Option("encrypt.cipher-mode", OptionType.STRING, "Name of encryption cipher mode"),
    Option("encrypt.ivgen-alg", OptionType.STRING, "Name of IV generator algorithm"),
    Option("encrypt.ivgen-hash-alg", OptionType.STRING, "Name of IV generator hash algorithm"),
    Option("encrypt.hash-alg", OptionType.STRING, "Name of encryption hash algorithm"),
    Option("encrypt.iter-time", OptionType.NUMBER, "Time to spend in PBKDF in milliseconds"),
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

_AMENDABLE = ("size", "compat", "backing_file", "backing_fmt", "data_file", "data_file_raw", "lazy_refcounts")

AMEND_OPTIONS = (
    *(
        option.replace(default=None)
        for name in (*_AMENDABLE, "refcount_bits")
        for option in CREATION_OPTIONS
        if option.name == name
    ),
    Option("encrypt.state", OptionType.STRING, "Select new state of affected keyslots (active/inactive)"),
    Option(
        "encrypt.new-secret", OptionType.STRING, "New secret to set in the matching keyslots. Empty string to erase"
    ),
    Option("encrypt.old-secret", OptionType.STRING, "Select all keyslots that match this password"),
    Option("encrypt.keyslot", OptionType.NUMBER, "Select a single keyslot to modify explicitly"),
    Option("encrypt.iter-time", OptionType.NUMBER, "Time to spend in PBKDF in milliseconds"),
)
"""The options that can be changed later, in the order in which QEMU shows them."""

_OVERLAP_PARTS = (
    ("main-header", "the header"),
    ("active-l1", "the active L1 table"),
    ("active-l2", "the active L2 tables"),
    ("refcount-table", "the refcount table"),
    ("refcount-block", "the refcount blocks"),
    ("snapshot-table", "the snapshot table"),
    ("inactive-l1", "the L1 tables of snapshots"),
    ("inactive-l2", "the L2 tables of snapshots"),
    ("bitmap-directory", "the bitmap directory"),
)

RUNTIME_OPTIONS = (
    Option("lazy-refcounts", OptionType.BOOL, "Postpone refcount updates"),
    Option("pass-discard-request", OptionType.BOOL, "Give back the space of clusters discarded on request"),
    Option("pass-discard-snapshot", OptionType.BOOL, "Give back the space of clusters that only a snapshot needed"),
    Option("pass-discard-other", OptionType.BOOL, "Give back the space of all other clusters that go free"),
    Option("discard-no-unref", OptionType.BOOL, "Keep discarded clusters allocated, as zeros"),
    Option("overlap-check", OptionType.STRING, "Metadata not to be overwritten: none, constant, cached or all"),
    Option("overlap-check.template", OptionType.STRING, "The same, where single structures are named too"),
    *(
        Option(f"overlap-check.{name}", OptionType.BOOL, f"Look out for {what} before writing")
        for name, what in _OVERLAP_PARTS
    ),
    Option("cache-size", OptionType.SIZE, "Most memory for L2 tables and refcount blocks together"),
    Option("l2-cache-size", OptionType.SIZE, "Most memory for L2 tables"),
    Option("l2-cache-entry-size", OptionType.SIZE, "Bytes of an L2 table that are read at a time"),
    Option("refcount-cache-size", OptionType.SIZE, "Most memory for refcount blocks"),
    Option("cache-clean-interval", OptionType.NUMBER, "Seconds after which unused tables leave the memory"),
    Option("encrypt.format", OptionType.STRING, "How the image is encrypted; it has to be what the image says"),
    Option(
        "encrypt.key-secret", OptionType.STRING, "ID of secret providing qcow AES key or LUKS passphrase", strong=True
    ),
    Option("encrypt.max-iterations", OptionType.NUMBER, "Most PBKDF iterations that a keyslot may ask for"),
)
