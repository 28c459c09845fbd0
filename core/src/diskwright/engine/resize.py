"""Changing the virtual size of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ImageError, InvalidOption, UnsupportedOperation
from ..node import SECTOR, Image
from ..options import PREALLOCATION_MODES
from ..passing import Passing, unfiltered
from ..record import Record
from ..sizes import MAX_INT64

if TYPE_CHECKING:
    from ..context import Context


class ShrinkRefused(ImageError):
    """The new size is smaller and nobody said that data may be cut off."""


class ResizeRequest(Record):
    """What size to give to an image.

    :ivar size: bytes.
    :ivar sign: 0: the size is the new one; 1: the image grows by it; -1: it shrinks by it.
    :ivar preallocation: how space for the new part is reserved.
    :ivar shrink: whether the image may become smaller and lose what is behind its new end.
    """

    filename: str
    size: int
    sign: int = 0
    format: str | None = None
    preallocation: str = "off"
    shrink: bool = False


def resize(context: Context, request: ResizeRequest) -> None:
    """Give an image another virtual size.

    :raises ShrinkRefused: it would become smaller, which was not allowed.
    :raises ImageError: it failed; the size is as before.
    """
    if request.preallocation not in PREALLOCATION_MODES:
        raise InvalidOption(f"Invalid preallocation mode '{request.preallocation}'")
    with context.open(request.filename, request.format, writable=True) as image:
        size = new_size(image, request)
        if size <= image.size and request.preallocation != "off":
            raise InvalidOption("Preallocation can only be used for growing images")
        if size < image.size and not request.shrink:
            raise ShrinkRefused("Use the --shrink option to perform a shrink operation.")
        set_size(context, image, size, request.preallocation)
        image.flush()


def set_size(context: Context, image: Image, size: int, preallocation: str = "off") -> None:
    """Give an open image, or the one below the filters, another size in bytes.

    :raises UnsupportedOperation: its format cannot.
    :raises InvalidOption: its format has no such sizes.
    """
    disk = unfiltered(image)
    if context.formats.has("resize", disk.driver):
        if size % SECTOR and disk.cluster_size is not None:
            raise InvalidOption(f"The new size must be a multiple of {SECTOR}")
        context.formats.call("resize", disk.driver, image=disk, size=size, preallocation=preallocation)
    elif isinstance(disk, Passing):
        disk.truncate(size, preallocation)
    else:
        raise UnsupportedOperation("Image format driver does not support resize")


def new_size(image: Image, request: ResizeRequest) -> int:
    """The size in bytes that a request asks for.

    :raises InvalidOption: no image can have it.
    """
    size = image.size + request.sign * request.size if request.sign else request.size
    if size <= 0:
        raise InvalidOption("New image size must be positive")
    if size > MAX_INT64:
        raise InvalidOption(f"Invalid image size specified. Must be between 0 and {MAX_INT64}.")
    return size
