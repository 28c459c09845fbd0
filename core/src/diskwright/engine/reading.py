"""Reading what is to be copied, and saying where that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from ..errors import ImageError, NodeIOError
from ..extent import Extent
from ..node import SECTOR, Node, read_extent
from .plan import Piece

Salvage: TypeAlias = Callable[[int, int, Exception], None]
"""Called with offset and length of what cannot be read, bytes, and the reason; by several threads."""


def read_piece(piece: Piece, buffer: memoryview, salvage: Salvage | None = None) -> None:
    """Fill the buffer, which is as long as the piece; without an extent there is nothing to read.

    :param salvage: what cannot be read at once is read sector by sector; the sectors that cannot be read become zeros,
        and are told of. ``None``: what cannot be read is an error.
    """
    layer, extent = piece.layer, piece.extent
    if layer is None or extent is None:
        return
    try:
        read_extent(layer, extent, buffer)
    except (OSError, ImageError):
        if salvage is None:
            raise
        _read_sectors(piece, layer, extent, buffer, salvage)


def _read_sectors(piece: Piece, layer: Node, extent: Extent, buffer: memoryview, salvage: Salvage) -> None:
    """Fill the buffer sector by sector; those that cannot be read become zeros, and are told of."""
    for start in range(0, piece.length, SECTOR):
        end = min(start + SECTOR, piece.length)
        sector = piece.part(piece.offset + start, piece.offset + end)
        try:
            read_extent(layer, sector.extent or extent, buffer[start:end])
        except (OSError, ImageError) as error:
            buffer[start:end] = bytes(end - start)
            salvage(sector.offset, sector.length, error)


@contextmanager
def failing_map() -> Iterator[None]:
    """Say that it is not the data that cannot be read."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"error while reading block status: {NodeIOError('', error)}") from error


@contextmanager
def failing(action: str, offset: int) -> Iterator[None]:
    """Say where and at what a copy failed."""
    try:
        yield
    except OSError as error:
        raise NodeIOError(f"error while {action} at byte {offset}", error) from error
    except ImageError as error:
        raise error.in_context(f"error while {action} at byte {offset}") from error
