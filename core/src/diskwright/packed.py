"""Structures of fixed-size fields, read and built without ``construct``.

Importing construct takes longer than describing an image. So what is read of every image, and built for every new one,
has a counterpart here of its construct declaration, which remains the one to read; a test shows that both agree (see
:func:`diskwright.testing.packed.require_counterpart`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class PackedStruct:
    """Fields one behind the other, without padding; used like a construct declaration.

    :param byte_order: ``>`` or ``<``, as in the module ``struct``.
    :param fields: for each field its format character, with a count before it for bytes: ``4s``.
    """

    def __init__(self, byte_order: str, **fields: str) -> None:
        self.names = tuple(fields)
        self._struct = struct.Struct(byte_order + "".join(fields.values()))

    def sizeof(self) -> int:
        """Bytes."""
        return self._struct.size

    def parse(self, data: bytes) -> SimpleNamespace:
        """The fields as attributes.

        :param data: exactly as long as the structure.
        """
        return SimpleNamespace(**dict(zip(self.names, self._struct.unpack(data), strict=True)))

    def build(self, fields: Mapping[str, Any]) -> bytes:
        """The structure as stored; each field must be there."""
        return self._struct.pack(*(fields[name] for name in self.names))
