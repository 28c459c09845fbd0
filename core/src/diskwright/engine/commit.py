"""Committing: what the layers above a base hold is written into the base."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import ImageError, NodeIOError, UnsupportedOperation
from ..filenames import protocol_prefix
from ..node import Image, Node, WritableImage
from ..passing import unfiltered
from ..record import Record
from .chain import layers
from .copy import CopyOptions, Progress, copy, no_progress
from .resize import set_size

if TYPE_CHECKING:
    from ..context import Context


class CommitRequest(Record):
    """What to commit.

    :ivar filename: the top layer.
    :ivar base: the layer to commit into, as the chain names it; ``None``: the one below the top.
    :ivar drop: leave the top layer as it is, instead of emptying it.
    :ivar rate: most bytes to write in a second, ``None`` for as many as there can be.
    """

    filename: str
    format: str | None = None
    base: str | None = None
    drop: bool = False
    cache: str = "writeback"
    rate: int | None = None


def commit(context: Context, request: CommitRequest, progress: Progress = no_progress) -> None:
    """Write into the base what the layers above it hold; the base grows if it is smaller.

    The layers above stay complete until the base is on stable storage, so that the disk reads the same at any time.

    :raises ImageError: it failed.
    """
    # For writing, since there are filters that can do nothing else.
    with context.open(request.filename, request.format, writable=True, cache=request.cache) as chain:
        depth = find_base(chain, request.base, request.filename)
    with context.open(
        request.filename, request.format, writable=True, cache=request.cache, writable_depths={depth}, discard=True
    ) as top:
        base = layers(top)[depth]
        base = unfiltered(base) if isinstance(base, Image) else base
        if not isinstance(base, WritableImage):
            raise UnsupportedOperation(f"Format driver '{base.driver}' does not support writing")
        if base.size < top.size:
            set_size(context, base, top.size)
        try:
            copy([top], base, CopyOptions(target_is_zero=False, depth_limit=depth, rate=request.rate), progress)
            base.flush()
        except OSError as error:
            raise NodeIOError("Block job failed", error) from error
        # With layers between top and base, an emptied top would show their data again where the top had newer.
        if not request.drop and depth == 1 and context.formats.has("make_empty", top.driver):
            context.formats.call("make_empty", top.driver, image=top)
        top.flush()


def find_base(top: Image, base: str | None, filename: str) -> int:
    """The depth of the layer of that name.

    :param filename: the name of the top layer, for messages.
    :raises ImageError: there is none.
    """
    chain = layers(top)
    if len(chain) == 1:
        raise ImageError("Image does not have a backing file")
    if base is None:
        return 1
    for depth, (overlay, layer) in enumerate(pairwise(chain), 1):
        if _names(overlay, layer, base):
            return depth
    raise ImageError(f"Did not find '{base}' in the backing chain of '{filename}'")


def _names(overlay: Node, layer: Node, base: str) -> bool:
    """Whether a name means the layer below an overlay: as the overlay spells it, or as a path from where that is."""
    if isinstance(overlay, Image) and overlay.backing_file == base:
        return True
    if protocol_prefix(base) is not None:
        return layer.filename == base
    if protocol_prefix(layer.filename) is not None:
        return False
    path = os.path.join(os.path.dirname(_path(overlay)), base)
    return os.path.realpath(path) == os.path.realpath(layer.filename)


def _path(overlay: Node) -> str:
    """The path of an overlay, however it was named."""
    return overlay.file.filename if isinstance(overlay, Image) else overlay.filename
