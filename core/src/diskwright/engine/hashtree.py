"""The hash tree that a checksum is the top of: built from the blocks of a disk in order, with zeros skipped in bulk.

``docs/checksum.md`` defines it.
"""

from __future__ import annotations

import hashlib

from ..errors import InvalidOption

BLOCK = 64 << 10
"""Bytes of the disk below each leaf."""
FANOUT = 256
"""Children of a node."""
ALGORITHMS = ("sha256", "sha512", "sha3_256", "blake2b", "blake2s")

_LEAF, _NODE, _DISK = b"\0", b"\1", b"\2"


class HashTree:
    """A tree that grows to the right.

    :param algorithm: one of :data:`ALGORITHMS`.
    """

    def __init__(self, algorithm: str) -> None:
        if algorithm not in ALGORITHMS:
            raise InvalidOption(f"Unknown checksum algorithm '{algorithm}': there are {', '.join(ALGORITHMS)}")
        self._algorithm = algorithm
        self._zeros = [self.leaf(bytes(BLOCK))]
        self._open: list[list[bytes]] = [[]]
        self._leaves = 0

    def leaf(self, block: bytes | bytearray | memoryview) -> bytes:
        """The digest of one block; threads call this in parallel."""
        state = hashlib.new(self._algorithm, _LEAF)
        state.update(block)
        return state.digest()

    def add(self, index: int, digest: bytes) -> None:
        """Put a leaf in its place; all leaves between the last one and it are of zeros.

        :param index: number of the block, larger than that of the last one.
        """
        self._skip_to(index)
        self._put(0, digest)

    def checksum(self, size: int) -> str:
        """The checksum of the disk, in hexadecimal digits; ends the building.

        :param size: of the disk, bytes; no leaf lies behind it.
        """
        height = 0
        while BLOCK * FANOUT**height < size:
            height += 1
        self._skip_to(FANOUT**height)
        (root,) = self._open[height]
        return hashlib.new(self._algorithm, _DISK + size.to_bytes(8, "big") + root).hexdigest()

    def _skip_to(self, index: int) -> None:
        while self._leaves < index:
            level = 0
            while self._leaves % FANOUT ** (level + 1) == 0 and self._leaves + FANOUT ** (level + 1) <= index:
                level += 1
            self._put(level, self._zero(level))

    def _zero(self, level: int) -> bytes:
        """The digest of a whole subtree over zeros."""
        while len(self._zeros) <= level:
            self._zeros.append(self._node([self._zeros[-1]] * FANOUT))
        return self._zeros[level]

    def _node(self, children: list[bytes]) -> bytes:
        return hashlib.new(self._algorithm, _NODE + b"".join(children)).digest()

    def _put(self, level: int, digest: bytes) -> None:
        self._leaves += FANOUT**level
        while True:
            while len(self._open) <= level:
                self._open.append([])
            siblings = self._open[level]
            siblings.append(digest)
            if len(siblings) < FANOUT:
                return
            digest = self._node(siblings)
            siblings.clear()
            level += 1
