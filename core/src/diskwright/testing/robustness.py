"""Conformance with images from strangers: whatever the bytes are, there is an answer or an error that says why not."""

from __future__ import annotations

import random
from itertools import islice

from ..errors import ImageError
from ..extent import Extent, Kind
from ..node import Image
from .base import DriverTests, singly
from .nodes import MemoryNode

STEP = 512
MAX_CUTS = 200
HEADER = 1024
"""Bytes at the start of the file in each of which bits are flipped."""
FURTHER_FLIPS = 500
EXTENTS_READ = 16
MAX_EXTENTS = 20_000
READ_LENGTH = 65536


class RobustnessTests(DriverTests):
    """Damaged files."""

    def test_truncated_file(self) -> None:
        """The start of an image, cut anywhere, is refused, or opens and maps."""
        sample = self.sample()
        cuts = list(range(0, len(sample), STEP))
        near, far = cuts[: MAX_CUTS // 2], cuts[MAX_CUTS // 2 :]
        for length in near + far[:: max(1, len(far) // (MAX_CUTS // 2))]:
            self._survive(sample[:length], f"cut to {length} bytes")

    def test_flipped_bytes(self) -> None:
        """An image with a single wrong byte is refused, or opens and maps."""
        sample = self.sample()
        chance = random.Random(0)
        flips = [(offset, flip) for offset in range(min(HEADER, len(sample))) for flip in (0x01, 0x80, 0xFF)]
        flips += [(chance.randrange(len(sample)), chance.randrange(1, 256)) for _ in range(FURTHER_FLIPS)]
        damaged = bytearray(sample)
        for offset, flip in flips:
            damaged[offset] ^= flip
            self._survive(damaged, f"byte {offset} xor {flip:#x}")
            damaged[offset] ^= flip

    def test_empty_and_foreign_files(self) -> None:
        """Files that are no image at all are refused, or open and map."""
        self._survive(b"", "empty")
        self._survive(bytes(4096), "zeros")
        self._survive(b"\xff" * 4096, "ones")

    def _survive(self, data: bytes | bytearray, damage: str) -> None:
        node = MemoryNode(data, filename=f"damaged.{self.name}")
        try:
            image = self.open_node(node)
            self._use(image)
        except ImageError as error:
            assert str(error), f"{damage}: an error without a message"
            assert "\n" not in str(error), f"{damage}: a message of several lines"
        except Exception as error:
            error.add_note(f"{self.name}: {damage}: must be an ImageError")
            raise

    def _use(self, image: Image) -> None:
        for hook in ("describe", "snapshot_list", "bitmap_list"):
            if self.has(hook):
                self.context.formats.call(hook, self.name, image=image)
        readable: list[Extent] = []
        position = 0
        for extent in islice(singly(image.extents()), MAX_EXTENTS):
            assert extent.offset == position
            assert extent.length > 0
            position = extent.end
            if extent.kind in (Kind.DATA, Kind.ENCODED) and len(readable) < EXTENTS_READ:
                readable.append(extent)
        for extent in readable:
            image.read_at(extent.offset, min(extent.length, READ_LENGTH))
        if self.has("check"):
            self.context.formats.call("check", self.name, image=image, repair=None)
