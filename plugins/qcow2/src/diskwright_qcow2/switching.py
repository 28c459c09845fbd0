"""Rewriting the header in one step, when everything that it will point to is in the file already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .layout import AUTOCLEAR_FIELD, Autoclear
from .order import Disk

if TYPE_CHECKING:
    from .image import Qcow2Image


def switch_header(image: Qcow2Image, **changes: Any) -> None:
    """Change fields, extensions and names of the header by a single write.

    Everything written before is made durable first, the new header after. Only the bytes that differ are written: the
    fewer there are, the less can a power cut tear them apart.

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
    different = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)).tolist()
    if different:
        first, last = different[0], different[-1]
        disk.write(first, new[first : last + 1])
        disk.barrier()
    image.restart(**fields)


def clear_autoclear(image: Qcow2Image) -> None:
    """Take back the autoclear bits that are not known here: whoever set them cannot rely on them any more."""
    known = Autoclear(int(image.header.autoclear_features) & int(Autoclear.SUPPORTED))
    if image.header.version > 2 and known != image.header.autoclear_features:
        disk = Disk(image.file)
        disk.write(AUTOCLEAR_FIELD, int(known).to_bytes(8, "big"))
        disk.barrier()
        image.header = image.header.replace(autoclear_features=known)
