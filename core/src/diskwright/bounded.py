"""The one way in which format drivers read metadata: every range is checked against the file before anything is sized.

Offsets and counts from an image are hostile until they have passed here; Python's integers do not wrap around.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Protocol

from .errors import InvalidImage, RefusedByPolicy
from .node import Node
from .packed import PackedStruct

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Structure(Protocol):
    """The part of a ``construct`` declaration, or of a :class:`PackedStruct`, that is used here."""

    def parse(self, data: bytes) -> Any: ...

    def sizeof(self) -> int: ...


class BoundedReader:
    """Reads structures and tables of one file, inside that file.

    :param node: the file.
    :param what: the format's name, for messages.
    """

    def __init__(self, node: Node, what: str) -> None:
        self.node = node
        self.what = what

    def require(self, offset: int, length: int, name: str, *, limit: int | None = None) -> None:
        """Refuse a range that does not lie in the file or is longer than allowed.

        :param name: what stands there, for the message.
        :param limit: most bytes this structure may have.
        :raises InvalidImage: it does not.
        """
        if limit is not None and length > limit:
            raise self.error(f"{name} too large ({length} bytes, at most {limit} are allowed)", offset)
        if offset < 0 or length < 0 or offset + length > self.node.size:
            raise self.error(
                f"{name} at offset {offset}, {length} bytes, is outside the file of {self.node.size} bytes", offset
            )

    def bytes(self, offset: int, length: int, name: str, *, limit: int | None = None) -> bytes:
        """Exactly ``length`` bytes at ``offset``."""
        self.require(offset, length, name, limit=limit)
        if self.node.metadata_budget is not None:
            self.node.metadata_budget -= length
            if self.node.metadata_budget < 0:
                raise RefusedByPolicy(f"'{self.node.filename}' has more metadata than the policy allows to read")
        self.node.note_event("none")
        return self.node.read_at(offset, length)

    def structure(self, declaration: Structure, offset: int, name: str) -> Any:
        """One structure of fixed size, parsed by its construct declaration or by the counterpart of that."""
        raw = self.bytes(offset, declaration.sizeof(), name)
        if isinstance(declaration, PackedStruct):
            return declaration.parse(raw)
        from construct import ConstructError

        try:
            return declaration.parse(raw)
        except ConstructError as error:
            reason = " ".join(str(error).split("\n")[-1].split())
            raise self.error(f"{name} is malformed: {reason}", offset) from None

    def integers(
        self, typecode: str, offset: int, count: int, name: str, *, big_endian: bool, limit: int
    ) -> array[int]:
        """A short table of integers, without numpy.

        :param typecode: of the module ``array``: ``I`` for 32 bits, ``Q`` for 64.
        :param limit: most entries allowed.
        """
        import sys

        table = array(typecode)
        if count > limit:
            raise self.error(f"{name} too large ({count} entries, at most {limit} are allowed)", offset)
        table.frombytes(self.bytes(offset, count * table.itemsize, name))
        if (sys.byteorder == "big") != big_endian:
            table.byteswap()
        return table

    def table(self, dtype: str, offset: int, count: int, name: str, *, limit: int) -> npt.NDArray[Any]:
        """A long table of integers as a numpy array in native byte order.

        :param dtype: numpy type as on disk, e.g. ``>u8``.
        :param limit: most entries allowed.
        """
        import numpy as np

        if count > limit:
            raise self.error(f"{name} too large ({count} entries, at most {limit} are allowed)", offset)
        stored: np.dtype[Any] = np.dtype(dtype)
        raw = self.bytes(offset, count * stored.itemsize, name)
        return np.frombuffer(raw, stored).astype(stored.newbyteorder("="))

    def error(self, message: str, offset: int | None = None) -> InvalidImage:
        """An error of this image, ready to be raised."""
        return InvalidImage(f"{self.what}: {message}", filename=self.node.filename, offset=offset)
