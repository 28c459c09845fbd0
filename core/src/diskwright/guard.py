"""The first bytes of an image whose format was guessed must not come to look like those of another format.

A guest can write anything into its disk. If it writes another format's header to the start of a raw image that is
probed at each opening, the next opening takes the disk for that format, and follows whatever names the header holds.
Source: qemu ``block/raw-format.c``, ``raw_co_pwritev``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from .errors import UnknownFormat, io_error
from .hookspecs import PROBE_LENGTH
from .node import Bytes, Node
from .passing import Passing


class ProbeGuard(Passing):
    """Refuses writes to the start of a node after which it would be taken for something else.

    :param probe: tells the format of a file's first bytes.
    :param format: the format that was guessed.
    """

    def __init__(self, below: Node, probe: Callable[[bytes], str], format: str) -> None:
        super().__init__(below, writable=True)
        self.driver = below.driver
        self._probe = probe
        self._format = format

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write what does no harm.

        :raises NodeIOError: EPERM for what would.
        """
        if offset < PROBE_LENGTH and not self._is_harmless(offset, memoryview(data).cast("B")):
            raise io_error(f"Could not write '{self.below.filename}'", errno.EPERM)
        super().write_at(offset, data)

    def _is_harmless(self, offset: int, data: memoryview) -> bool:
        head = bytearray(self.below.read_at(0, min(PROBE_LENGTH, max(self.below.size, offset + len(data)))))
        part = data[: PROBE_LENGTH - offset]
        head[offset : offset + len(part)] = part
        try:
            return self._probe(bytes(head)) == self._format
        except UnknownFormat:
            return False
