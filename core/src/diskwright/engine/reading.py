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


class failing:  # noqa: N801  used like a function
    """Say where and at what a copy failed.

    Not a generator: this is passed through for each cell, and those take three times as long.

    :param action: ``reading`` or ``writing``.
    :param offset: bytes.
    """

    __slots__ = ("_action", "_offset")

    def __init__(self, action: str, offset: int) -> None:
        self._action = action
        self._offset = offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        where = f"error while {self._action} at byte {self._offset}"
        if isinstance(error, OSError):
            raise NodeIOError(where, error) from error
        if isinstance(error, ImageError):
            raise error.in_context(where) from error
