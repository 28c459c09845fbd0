"""Persistent dirty bitmaps: changing them one action after the other, and copying them from image to image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import ImageError, InvalidImage, InvalidOption, UnsupportedOperation
from ..facts import Bitmap
from ..node import Image
from ..record import Record

if TYPE_CHECKING:
    from ..context import Context

MIN_GRANULARITY, MAX_GRANULARITY = 512, 1 << 31
"""Bytes."""
MAX_NAME = 1023
"""Bytes."""
ACTIONS = ("add", "remove", "clear", "enable", "disable", "merge")


class Action(Record):
    """One thing to do with a bitmap.

    :ivar kind: one of :data:`ACTIONS`.
    :ivar source: the bitmap to merge.
    """

    kind: str
    source: str = ""


class BitmapRequest(Record):
    """What to do with a bitmap of an image.

    :ivar actions: in the order in which they are done.
    :ivar granularity: of a bitmap that is added, bytes for each bit; 0 for one that fits the image.
    :ivar source: image that the merged bitmaps are in, the same one if None.
    """

    filename: str
    bitmap: str
    actions: Sequence[Action]
    format: str | None = None
    granularity: int = 0
    source: str | None = None
    source_format: str | None = None


def change_bitmap(context: Context, request: BitmapRequest) -> None:
    """Do all actions with a bitmap.

    :raises ImageError: one could not be done; those before it have been.
    """
    with context.open(request.filename, request.format, writable=True, backing=False) as image:
        if request.source is None:
            _change(context, request, image, image)
        else:
            with context.open(request.source, request.source_format, backing=False) as source:
                _change(context, request, image, source)
        image.flush()


def _change(context: Context, request: BitmapRequest, image: Image, source: Image) -> None:
    for action in request.actions:
        with _failing(f"Operation {action.kind} on bitmap {request.bitmap} failed"):
            if action.kind == "merge":
                merge(context, image, request.bitmap, source, action.source)
            elif action.kind == "add":
                add(context, image, request.bitmap, request.granularity)
            else:
                _SIMPLE[action.kind](context, image, request.bitmap)


def listed(context: Context, image: Image) -> Sequence[Bitmap]:
    """The bitmaps of an image; none if its format has none."""
    if not context.formats.has("bitmap_list", image.driver):
        return ()
    found: Sequence[Bitmap] = context.formats.call("bitmap_list", image.driver, image=image)
    return found


def add(context: Context, image: Image, name: str, granularity: int = 0, *, enabled: bool = True) -> None:
    """Add an empty bitmap to an image opened for writing.

    :param granularity: bytes for each bit, 0 for what fits the image.
    :raises InvalidOption: the name is taken, or name or granularity are out of range.
    """
    granularity = granularity or min(max(image.cluster_size or 1 << 16, 1 << 12), 1 << 16)
    if not MIN_GRANULARITY <= granularity <= MAX_GRANULARITY or granularity & (granularity - 1):
        raise InvalidOption("Granularity must be power of 2 and at least 512")
    if not name:
        raise InvalidOption("Bitmap name cannot be empty")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
        raise InvalidOption(f"Bitmap name too long: {name}")
    if any(bitmap.name == name for bitmap in listed(context, image)):
        raise InvalidOption(f"Bitmap already exists: {name}")
    if not context.formats.has("bitmap_add", image.driver):
        raise InvalidOption(f"Can't store persistent bitmaps to {image.filename}: Operation not supported")
    try:
        context.formats.call("bitmap_add", image.driver, image=image, bitmap=Bitmap(name, granularity, enabled))
    except InvalidOption as error:
        raise error.in_context(f"Can't make bitmap '{name}' persistent in '{image.filename}'") from error


def find(context: Context, image: Image, name: str, *, usable: bool = True) -> Bitmap:
    """The bitmap of that name.

    :param usable: refuse one that is inconsistent.
    :raises InvalidOption: there is none.
    """
    for bitmap in listed(context, image):
        if bitmap.name == name:
            if bitmap.inconsistent and usable:
                raise InvalidOption(
                    f"Bitmap '{name}' is inconsistent and cannot be used",
                    hint="Try --remove to delete this bitmap from the image",
                )
            return bitmap
    raise InvalidOption(f"Dirty bitmap '{name}' not found")


def merge(context: Context, image: Image, name: str, source: Image, source_name: str) -> None:
    """Mark in a bitmap what another one marks, which may be in another image and have another granularity."""
    find(context, image, name)
    find(context, source, source_name)
    if image.size != source.size:
        raise InvalidOption(
            f"Bitmaps are of different sizes (destination size is {image.size}, source size is {source.size}) and "
            "can't be merged"
        )
    if source is image and source_name == name:
        return
    ranges = context.formats.call("bitmap_ranges", source.driver, image=source, name=source_name)
    _fill(context, image, name, ranges, clear=False)


def to_copy(context: Context, source: Image, *, skip_broken: bool) -> Sequence[Bitmap]:
    """The bitmaps of an image that can be copied into another one.

    :param skip_broken: leave out inconsistent ones, with a warning.
    :raises UnsupportedOperation: the image cannot have bitmaps.
    :raises InvalidImage: one is inconsistent.
    """
    if not context.formats.has("bitmap_list", source.driver):
        raise UnsupportedOperation("Source lacks bitmap support")
    usable = []
    for bitmap in listed(context, source):
        if not bitmap.inconsistent:
            usable.append(bitmap)
        elif skip_broken:
            context.warn(f"Skipping inconsistent bitmap '{bitmap.name}'")
        else:
            raise InvalidImage(
                f"Cannot copy inconsistent bitmap '{bitmap.name}'",
                hint="Try --skip-broken-bitmaps, or use 'bitmap --remove'",
            )
    return usable


def copy_bitmap(context: Context, bitmap: Bitmap, source: Image, target: Image) -> None:
    """Copy a bitmap into another image of the same size, which has got its data already.

    :raises ImageError: the target has one of that name, or cannot have it.
    """
    with _failing(f"Failed to create bitmap {bitmap.name}"):
        # Enabled at the end only: that it is filled is no change of the disk.
        add(context, target, bitmap.name, bitmap.granularity, enabled=False)
    with _failing(f"Failed to populate bitmap {bitmap.name}"):
        ranges = context.formats.call("bitmap_ranges", source.driver, image=source, name=bitmap.name)
        _fill(context, target, bitmap.name, ranges, clear=False)
        if bitmap.enabled:
            enable(context, target, bitmap.name)


def _fill(context: Context, image: Image, name: str, ranges: Iterable[tuple[int, int]], *, clear: bool) -> None:
    context.formats.call("bitmap_fill", image.driver, image=image, name=name, ranges=ranges, clear=clear)


def remove(context: Context, image: Image, name: str) -> None:
    """Remove a bitmap."""
    find(context, image, name, usable=False)
    context.formats.call("bitmap_remove", image.driver, image=image, name=name)


def clear(context: Context, image: Image, name: str) -> None:
    """Forget all that a bitmap marks."""
    find(context, image, name)
    _fill(context, image, name, (), clear=True)


def enable(context: Context, image: Image, name: str, *, enabled: bool = True) -> None:
    """Set whether writes are recorded in a bitmap."""
    find(context, image, name)
    context.formats.call("bitmap_enable", image.driver, image=image, name=name, enabled=enabled)


def disable(context: Context, image: Image, name: str) -> None:
    """Let writes no longer be recorded in a bitmap."""
    enable(context, image, name, enabled=False)


_SIMPLE: dict[str, Callable[[Context, Image, str], None]] = {
    "remove": remove,
    "clear": clear,
    "enable": enable,
    "disable": disable,
}


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Say what has failed."""
    try:
        yield
    except ImageError as error:
        raise error.in_context(what) from error
