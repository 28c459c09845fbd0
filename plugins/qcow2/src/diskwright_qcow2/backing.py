"""Changing what an overlay says of its backing file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskwright.errors import InvalidOption

from . import layout
from .switching import switch_header

if TYPE_CHECKING:
    from .image import Qcow2Image


def set_backing(image: Qcow2Image, backing_file: str | None, backing_format: str | None) -> None:
    """See the ``set_backing`` hook; all other extensions of the header stay as they are."""
    backing_file = backing_file or None
    backing_format = (backing_format or None) if backing_file else None
    if backing_file is not None:
        if image.header.raw_data_file:
            raise InvalidOption("Backing file and data-file-raw cannot be used at the same time")
        if _length(backing_file) > layout.MAX_BACKING_NAME:
            raise InvalidOption("No space left in the file header")
        if backing_format is not None and _length(backing_format) > layout.MAX_BACKING_FORMAT:
            raise InvalidOption(f"Parameter 'backing-fmt' does not accept value '{backing_format}'")
    with image.lock:
        switch_header(image, backing_file=backing_file, backing_format=backing_format)
        image.backing_file, image.backing_format = backing_file, backing_format


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
