"""How an image is to be handled while it is open, as its runtime options say."""

from __future__ import annotations

from enum import Flag
from typing import TYPE_CHECKING, Any, NamedTuple

from diskwright.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .header import Header

_MAX_INT = 2**31 - 1
_MAX_UINT = 2**32 - 1
_MIN_L2_ENTRIES = 2
_MIN_REFCOUNT_BLOCKS = 4
_MIN_L2_CACHE_ENTRY = 512


class Overlap(Flag):
    """Structures that writing must not touch by mistake."""

    NONE = 0
    MAIN_HEADER = 1
    ACTIVE_L1 = 2
    ACTIVE_L2 = 4
    REFCOUNT_TABLE = 8
    REFCOUNT_BLOCK = 16
    SNAPSHOT_TABLE = 32
    INACTIVE_L1 = 64
    INACTIVE_L2 = 128
    BITMAP_DIRECTORY = 256

    CONSTANT = MAIN_HEADER | ACTIVE_L1 | REFCOUNT_TABLE | SNAPSHOT_TABLE | BITMAP_DIRECTORY
    CACHED = CONSTANT | ACTIVE_L2 | REFCOUNT_BLOCK | INACTIVE_L1
    ALL = CACHED | INACTIVE_L2


OVERLAP_TEMPLATES = {
    "none": Overlap.NONE,
    "constant": Overlap.CONSTANT,
    "cached": Overlap.CACHED,
    "all": Overlap.ALL,
}
OVERLAP_SWITCHES = {
    "main-header": Overlap.MAIN_HEADER,
    "active-l1": Overlap.ACTIVE_L1,
    "active-l2": Overlap.ACTIVE_L2,
    "refcount-table": Overlap.REFCOUNT_TABLE,
    "refcount-block": Overlap.REFCOUNT_BLOCK,
    "snapshot-table": Overlap.SNAPSHOT_TABLE,
    "inactive-l1": Overlap.INACTIVE_L1,
    "inactive-l2": Overlap.INACTIVE_L2,
    "bitmap-directory": Overlap.BITMAP_DIRECTORY,
}
"""Structures by the last part of their option's name."""


class Runtime(NamedTuple):
    """The runtime options of an image; the defaults are QEMU's.

    :ivar overlap: the structures that are looked out for before clusters are written.
    :ivar pass_request: whether the space of clusters that are discarded on request is given back to the file system.
    :ivar pass_snapshot: the same for clusters that only a deleted or replaced snapshot state needed.
    :ivar pass_other: the same for all other clusters that go free.
    :ivar keep_discarded: whether clusters that are discarded on request stay allocated, as zeros.
    :ivar l2_cache: bytes of L2 tables to keep in memory, ``None`` for the usual number.
    :ivar refcount_cache: the same for refcount blocks.
    """

    overlap: Overlap = Overlap.CACHED
    pass_request: bool = False
    pass_snapshot: bool = True
    pass_other: bool = False
    keep_discarded: bool = False
    l2_cache: int | None = None
    refcount_cache: int | None = None

    @classmethod
    def from_values(cls, header: Header, values: Mapping[str, Any], *, discard: bool = False) -> Runtime:
        """Check the options one by one, together, and against the image.

        ``lazy-refcounts`` has no effect beyond that: refcounts are written late anyway, but always before what needs
        them, so that no image has to be marked as dirty. Nor has ``cache-clean-interval``: no command runs that long.

        :param discard: whether the space of discarded clusters is to be given back where no option says otherwise.
        :raises InvalidOption: one is out of range or contradicts another or the image.
        """
        l2_cache, refcount_cache = _cache_sizes(header, values)
        if values.get("cache-clean-interval", 0) > _MAX_UINT:
            raise InvalidOption("Cache clean interval too big")
        if values.get("lazy-refcounts") and header.version < 3:
            raise InvalidOption("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
        overlap = _overlap(values)
        keep = values.get("discard-no-unref", False)
        if keep and header.version < 3:
            raise InvalidOption("discard-no-unref is only supported since qcow2 version 3")
        return cls(
            overlap=overlap,
            pass_request=values.get("pass-discard-request", discard),
            pass_snapshot=values.get("pass-discard-snapshot", True),
            pass_other=values.get("pass-discard-other", False),
            keep_discarded=keep,
            l2_cache=l2_cache,
            refcount_cache=refcount_cache,
        )


def _overlap(values: Mapping[str, Any]) -> Overlap:
    names = ("overlap-check", "overlap-check.template")
    given = [values[name] for name in names if name in values]
    if len(set(given)) > 1:
        first, second = (f"'{name}' ('{value}')" for name, value in zip(names, given, strict=True))
        raise InvalidOption(f"Conflicting values for qcow2 options {first} and {second}")
    template = given[0] if given else "cached"
    if template not in OVERLAP_TEMPLATES:
        raise InvalidOption(
            f"Unsupported value '{template}' for qcow2 option 'overlap-check'. Allowed are any of the following: "
            + ", ".join(OVERLAP_TEMPLATES)
        )
    chosen = OVERLAP_TEMPLATES[template]
    for name, flag in OVERLAP_SWITCHES.items():
        if (wanted := values.get(f"overlap-check.{name}")) is not None:
            chosen = chosen | flag if wanted else chosen & ~flag
    return chosen


def _cache_sizes(header: Header, values: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Bytes for L2 tables and for refcount blocks.

    :raises InvalidOption: the sizes contradict each other.
    """
    total, l2, refcounts = (values.get(name) for name in ("cache-size", "l2-cache-size", "refcount-cache-size"))
    # All L2 tables that the disk can have, and not less than one.
    every_table = -(-header.disk_size // header.l1_coverage) * header.cluster_size
    if total is not None:
        if l2 is not None and refcounts is not None:
            raise InvalidOption("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
        if l2 is not None and l2 > total:
            raise InvalidOption("l2-cache-size may not exceed cache-size")
        if refcounts is not None and refcounts > total:
            raise InvalidOption("refcount-cache-size may not exceed cache-size")
        if refcounts is None and l2 is None:
            l2 = min(every_table, max(0, total - _MIN_REFCOUNT_BLOCKS * header.cluster_size))
        if refcounts is None:
            refcounts = total - min(l2 or 0, every_table)
        elif l2 is None:
            l2 = total - refcounts
    _require_cache_entry(header, values.get("l2-cache-entry-size"))
    if refcounts is not None and refcounts // header.cluster_size > _MAX_INT:
        raise InvalidOption("Refcount cache size too big")
    if l2 is not None:
        l2 = max(min(l2, every_table), _MIN_L2_ENTRIES * header.cluster_size)
    if refcounts is not None:
        refcounts = max(refcounts, _MIN_REFCOUNT_BLOCKS * header.cluster_size)
    return l2, refcounts


def _require_cache_entry(header: Header, size: int | None) -> None:
    if size is not None and not (size.bit_count() == 1 and _MIN_L2_CACHE_ENTRY <= size <= header.cluster_size):
        raise InvalidOption(
            f"L2 cache entry size must be a power of two between {_MIN_L2_CACHE_ENTRY} and the cluster size "
            f"({header.cluster_size})"
        )
