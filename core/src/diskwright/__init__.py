"""Virtual disk images of many formats as Python objects: open, create, convert, compare, check and map them.

    import diskwright

    with diskwright.open("disk.qcow2") as image:
        print(image.driver, image.size, image.read_at(0, 512))
    diskwright.convert("disk.qcow2", "disk.vdi", format="vdi")

Importing this package is cheap: what a name needs is loaded when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

COMPATIBLE_VERSION = "10.0.2"
"""The version of QEMU whose options and messages are followed; told to programs that look for a minimum."""

if TYPE_CHECKING:
    from .api import amend as amend
    from .api import apply_snapshot as apply_snapshot
    from .api import bitmaps as bitmaps
    from .api import check as check
    from .api import checksum as checksum
    from .api import commit as commit
    from .api import compare as compare
    from .api import convert as convert
    from .api import create as create
    from .api import create_snapshot as create_snapshot
    from .api import delete_snapshot as delete_snapshot
    from .api import describe as describe
    from .api import examine as examine
    from .api import extent_tables as extent_tables
    from .api import extents as extents
    from .api import map_svg as map_svg
    from .api import measure as measure
    from .api import open as open  # noqa: A004  it is what the library is about
    from .api import overview as overview
    from .api import rebase as rebase
    from .api import resize as resize
    from .api import snapshot_view as snapshot_view
    from .api import snapshots as snapshots
    from .context import Context as Context
    from .errors import ImageError as ImageError
    from .errors import InvalidImage as InvalidImage
    from .errors import UnknownFormat as UnknownFormat
    from .errors import UnsupportedFeature as UnsupportedFeature
    from .errors import UnsupportedOperation as UnsupportedOperation
    from .extent import Extent as Extent
    from .extent import ExtentTable as ExtentTable
    from .extent import Kind as Kind
    from .node import Image as Image
    from .policy import Policy as Policy

_HOMES = {
    "amend": "api",
    "apply_snapshot": "api",
    "bitmaps": "api",
    "check": "api",
    "checksum": "api",
    "commit": "api",
    "compare": "api",
    "convert": "api",
    "create": "api",
    "create_snapshot": "api",
    "delete_snapshot": "api",
    "describe": "api",
    "examine": "api",
    "extent_tables": "api",
    "extents": "api",
    "map_svg": "api",
    "measure": "api",
    "open": "api",
    "overview": "api",
    "rebase": "api",
    "resize": "api",
    "snapshot_view": "api",
    "snapshots": "api",
    "Context": "context",
    "ImageError": "errors",
    "InvalidImage": "errors",
    "UnknownFormat": "errors",
    "UnsupportedFeature": "errors",
    "UnsupportedOperation": "errors",
    "Extent": "extent",
    "ExtentTable": "extent",
    "Kind": "extent",
    "Policy": "policy",
    "Image": "node",
}
__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605  the names are those of the table


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
