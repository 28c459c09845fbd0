"""The qcow2 driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskwright.facts import Bitmap, CheckResult, Description, Finding, Measurement, Snapshot
from diskwright.hookspecs import CreateOptions, OpenOptions, ProbeHit, hookimpl

if TYPE_CHECKING:
    from diskwright.extent import Extent, ExtentTable
    from diskwright.node import Image, Node
    from diskwright.options import Option
    from diskwright.tracing import Event

    from .image import Qcow2Image

_MAGIC = b"QFI\xfb"
_FIRST_VERSION = 2
"""Version 1 of the signature is the format qcow."""


class Qcow2Driver:
    """QEMU copy-on-write images, versions 2 and 3.

    :cvar data_roles: a data file holds nothing but guest data.
    """

    data_roles = ("data-file",)

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
    def runtime_options(self) -> Sequence[Option]:
        from .options import RUNTIME_OPTIONS

        return RUNTIME_OPTIONS

    @hookimpl
    def child_roles(self) -> Sequence[str]:
        return ("data-file",)

    @hookimpl
    def trace_events(self) -> Sequence[Event]:
        from .events import EVENTS

        return EVENTS

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
    def findings(self, image: Qcow2Image) -> Iterable[Finding]:
        from .findings import findings

        return findings(image)

    @hookimpl
    def snapshot_list(self, image: Qcow2Image) -> Sequence[Snapshot]:
        return image.snapshot_list()

    @hookimpl
    def snapshot_create(self, image: Qcow2Image, name: str) -> bool:
        from .snapshot_ops import create_snapshot

        create_snapshot(image, name)
        return True

    @hookimpl
    def snapshot_apply(self, image: Qcow2Image, snapshot: Snapshot) -> bool:
        from .snapshot_ops import apply_snapshot

        apply_snapshot(image, snapshot)
        return True

    @hookimpl
    def snapshot_delete(self, image: Qcow2Image, snapshot: Snapshot) -> bool:
        from .snapshot_ops import delete_snapshot

        delete_snapshot(image, snapshot)
        return True

    @hookimpl
    def snapshot_view(self, image: Qcow2Image, snapshot: Snapshot) -> Image:
        from .snapshot_ops import view_snapshot

        return view_snapshot(image, snapshot)

    @hookimpl
    def amend_options(self) -> Sequence[Option]:
        from .options import AMEND_OPTIONS

        return AMEND_OPTIONS

    @hookimpl
    def amend(
        self, image: Qcow2Image, values: Mapping[str, Any], force: bool, progress: Callable[[int, int], None]
    ) -> bool:
        from .amend import amend

        amend(image, values, force, progress)
        return True

    @hookimpl
    def resize(self, image: Qcow2Image, size: int, preallocation: str) -> bool:
        from .resize import resize

        resize(image, size, preallocation)
        return True

    @hookimpl
    def set_backing(self, image: Qcow2Image, backing_file: str | None, backing_format: str | None) -> bool:
        from .backing import set_backing

        set_backing(image, backing_file, backing_format)
        return True

    @hookimpl
    def make_empty(self, image: Qcow2Image) -> bool:
        from .empty import make_empty

        make_empty(image)
        return True

    @hookimpl
    def measure(
        self,
        size: int,
        values: Mapping[str, Any],
        ranges: Iterable[tuple[int, int]],
        source: Image | None,
        secret: Callable[[str], bytes],
    ) -> Measurement:
        from .measure import measure

        return measure(size, values, ranges, source, secret)

    @hookimpl
    def bitmap_list(self, image: Qcow2Image) -> Sequence[Bitmap]:
        from .bitmap_ops import list_bitmaps

        return list_bitmaps(image)

    @hookimpl
    def bitmap_add(self, image: Qcow2Image, bitmap: Bitmap) -> bool:
        from .bitmap_ops import add_bitmap

        add_bitmap(image, bitmap)
        return True

    @hookimpl
    def bitmap_remove(self, image: Qcow2Image, name: str) -> bool:
        from .bitmap_ops import remove_bitmap

        remove_bitmap(image, name)
        return True

    @hookimpl
    def bitmap_enable(self, image: Qcow2Image, name: str, enabled: bool) -> bool:
        from .bitmap_ops import enable_bitmap

        enable_bitmap(image, name, enabled)
        return True

    @hookimpl
    def bitmap_ranges(self, image: Qcow2Image, name: str) -> Iterable[tuple[int, int]]:
        from .bitmap_ops import bitmap_ranges

        return bitmap_ranges(image, name)

    @hookimpl
    def bitmap_fill(self, image: Qcow2Image, name: str, ranges: Iterable[tuple[int, int]], clear: bool) -> bool:
        from .bitmap_ops import fill_bitmap

        fill_bitmap(image, name, ranges, clear)
        return True

    @hookimpl
    def check(self, image: Qcow2Image, repair: str | None) -> CheckResult:
        if repair is None:
            from .check import check

            return check(image)
        from .repair import repair as repair_image
        from .switching import clear_autoclear

        clear_autoclear(image)
        return repair_image(image, repair)
