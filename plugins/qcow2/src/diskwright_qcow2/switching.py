"""Rewriting the header at one instant, when everything that it will point to is in the file already."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from diskwright.node import SECTOR

from .header import Header
from .layout import AUTOCLEAR_FIELD, BACKING_FILE_OFFSET_FIELD, Autoclear
from .order import Disk

if TYPE_CHECKING:
    from .image import Qcow2Image


def switch_header(image: Qcow2Image, **changes: Any) -> None:
    """Change fields, extensions and names of the header at one instant.

    Everything written before is made durable first, the new header after. A disk writes a sector whole or not at all:
    where more than one of them changes, the others change while nothing depends on them, see :func:`_detour`. Only a
    header that has no room for that changes by one write, as all of them do in QEMU.

    :param changes: attributes of :class:`~.header.Header`.
    :raises InvalidOption: the new header does not fit into its cluster; nothing has changed.
    """
    image.flush()
    # A writer that does not know an autoclear bit has to clear it.
    autoclear = int(changes.get("autoclear_features", image.header.autoclear_features))
    fields = {**changes, "autoclear_features": Autoclear(autoclear & int(Autoclear.SUPPORTED))}
    new = image.header.replace(**fields).build()
    disk = Disk(image.file)
    image.file.note_event("none")
    old = image.file.read_at(0, len(new))
    steps = _detour(Header.read(image.reader), old, new) if _sectors(old, new) > 1 else [new]
    for before, after in pairwise([old, *steps]):
        if before != after:
            _write_difference(disk, before, after)
            disk.barrier()
    image.restart(**fields)


def _sectors(old: bytes, new: bytes) -> int:
    """How many sectors differ."""
    different = np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)
    return int(np.count_nonzero(np.logical_or.reduceat(different, np.arange(0, len(new), SECTOR))))


def _write_difference(disk: Disk, before: bytes, after: bytes) -> None:
    """Write no more than the bytes that differ."""
    different = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)).tolist()
    first, last = different[0], different[-1]
    disk.write(first, after[first : last + 1])


def _detour(header: Header, old: bytes, new: bytes) -> list[bytes]:
    """What the header's cluster holds on the way to a header whose difference is not within one sector.

    The first sector is changed twice. In between it says what the old header says in so few words that nothing behind
    it is needed: the names of features, which are for messages alone, are left out, and the name of the backing file is
    read from a copy at the end of the cluster. All else can change then; what the copy leaves does no harm.

    :param header: what the old bytes say.
    :returns: each to be written over the one before, the new header last; that alone where there is no room.
    """
    name = header.backing_name
    place = int.from_bytes(old[BACKING_FILE_OFFSET_FIELD : BACKING_FILE_OFFSET_FIELD + 8], "big")
    spare = len(new) - len(name)
    used = max(place + len(name) if name and place != spare else 0, len(new.rstrip(b"\0")))
    head = header.header_length + len(header.build_extensions(feature_names=False))
    if max(used, SECTOR) > spare or head > SECTOR:
        return [new]
    between = header.build(feature_names=False, name_at=spare)[:SECTOR]
    rest = new[SECTOR:spare] + name
    return [old[:spare] + name, between + old[SECTOR:spare] + name, between + rest, new[:SECTOR] + rest, new]


def clear_autoclear(image: Qcow2Image) -> None:
    """Take back the autoclear bits that are not known here: whoever set them cannot rely on them any more."""
    known = Autoclear(int(image.header.autoclear_features) & int(Autoclear.SUPPORTED))
    if image.header.version > 2 and known != image.header.autoclear_features:
        disk = Disk(image.file)
        disk.write(AUTOCLEAR_FIELD, int(known).to_bytes(8, "big"))
        disk.barrier()
        image.header = image.header.replace(autoclear_features=known)
