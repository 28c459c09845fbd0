"""The qcow2 driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from diskwright.hookspecs import CheckResult, CreateOptions, Description, OpenOptions, ProbeHit, Snapshot, hookimpl

if TYPE_CHECKING:
    from diskwright.extent import Extent, ExtentTable
    from diskwright.node import Image, Node
    from diskwright.options import Option

    from .image import Qcow2Image

_MAGIC = b"QFI\xfb"
_FIRST_VERSION = 2
"""Version 1 of the signature is the format qcow."""


class Qcow2Driver:
    """QEMU copy-on-write images, versions 2 and 3."""

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        if len(head) >= 8 and head[:4] == _MAGIC and int.from_bytes(head[4:8], "big") >= _FIRST_VERSION:
            return ProbeHit("qcow2", 100)
        return None

    @hookimpl
    def open(self, source: Node, options: OpenOptions) -> Image:
        from .image import Qcow2Image

        return Qcow2Image(source, options)

    @hookimpl
    def creation_options(self) -> Sequence[Option]:
        from .options import CREATION_OPTIONS

        return CREATION_OPTIONS

    @hookimpl
    def create(self, target: Node, options: CreateOptions) -> bool:
        from .create import create

        create(target, options)
        return True

    @hookimpl
    def block_status(self, image: Qcow2Image, offset: int, length: int) -> Iterable[Extent | ExtentTable]:
        return image.map_range(offset, length)

    @hookimpl
    def describe(self, image: Qcow2Image) -> Description:
        return image.describe()

    @hookimpl
    def snapshot_list(self, image: Qcow2Image) -> Sequence[Snapshot]:
        return image.snapshot_list()

    @hookimpl
    def check(self, image: Qcow2Image) -> CheckResult:
        from .check import check

        return check(image)
