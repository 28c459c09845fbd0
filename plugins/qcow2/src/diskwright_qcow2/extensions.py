"""Header extensions: reading them, and laying them out in QEMU's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskwright.errors import InvalidImage
from diskwright.record import Record

from . import layout
from .layout import ExtensionType

if TYPE_CHECKING:
    from collections.abc import Iterator


class Extension(Record):
    """A header extension as it is stored; used for those that have no meaning here and are only to be kept."""

    type: int
    data: bytes


class CryptoPointer(Record):
    """Where the LUKS header stands in the file: bytes, cluster aligned; length in bytes."""

    offset: int
    length: int


class BitmapDirectory(Record):
    """Where the bitmap directory stands: number of bitmaps > 0, offset and size in bytes."""

    number: int
    offset: int
    size: int


class ExtensionContext(Record):
    """What of the header decides whether its extensions are valid.

    :ivar bitmaps_valid: whether the autoclear bit vouches for the bitmaps extension.
    """

    cluster_size: int
    crypt_method: int
    bitmaps_valid: bool


class Extensions(Record):
    """All header extensions of an image.

    :ivar stale_bitmaps: whether there is a bitmaps extension that nobody vouches for.
    :ivar unknown: the others, in their order.
    """

    backing_format: str | None
    data_file: str | None
    crypto: CryptoPointer | None
    bitmaps: BitmapDirectory | None
    stale_bitmaps: bool
    unknown: tuple[Extension, ...]

    @classmethod
    def parse(cls, area: bytes, context: ExtensionContext) -> Extensions:
        """Read the extensions from the header cluster.

        :param area: from the end of the header to the backing file name or the end of the cluster.
        :raises InvalidImage: one is longer than the area or contradicts the header.
        """
        stored = list(split_extensions(area))
        last = {extension.type: extension.data for extension in stored}
        known = frozenset(ExtensionType)
        return cls(
            backing_format=_backing_format(last.get(ExtensionType.BACKING_FORMAT)),
            data_file=_text(last.get(ExtensionType.DATA_FILE)),
            crypto=_crypto(last.get(ExtensionType.CRYPTO), context),
            bitmaps=_bitmaps(last.get(ExtensionType.BITMAPS), context),
            stale_bitmaps=ExtensionType.BITMAPS in last and not context.bitmaps_valid,
            unknown=tuple(extension for extension in stored if extension.type not in known),
        )


def split_extensions(area: bytes) -> Iterator[Extension]:
    """The extensions stored one behind the other, up to the end marker or the end of the area.

    :raises InvalidImage: an extension is longer than what is left.
    """
    header = layout.EXTENSION_HEADER
    position = 0
    while position + header.sizeof() <= len(area):
        fields = header.parse(area[position : position + header.sizeof()])
        position += header.sizeof()
        if fields.type == ExtensionType.END:
            return
        if fields.length > len(area) - position:
            raise InvalidImage("Header extension too large")
        yield Extension(fields.type, area[position : position + fields.length])
        position += -(-fields.length // 8) * 8


def build_extension(type: int, data: bytes) -> bytes:
    """One extension as stored, padded to a multiple of 8 bytes."""
    header: bytes = layout.EXTENSION_HEADER.build({"type": type, "length": len(data)})
    return header + data + bytes(-len(data) % 8)


def build_feature_names() -> bytes:
    """Data of the extension that names all features known here."""
    return b"".join(
        layout.FEATURE_NAME.build({"type": kind, "bit": bit, "name": name.encode().ljust(46, b"\0")})
        for kind, bit, name in layout.FEATURE_NAMES
    )


def feature_names(area: bytes) -> dict[tuple[int, int], str]:
    """(feature type, bit) -> name, as the image's own feature name table states it; empty without a sound table."""
    size = layout.FEATURE_NAME.sizeof()
    names = {}
    try:
        tables = [
            extension.data for extension in split_extensions(area) if extension.type == ExtensionType.FEATURE_NAMES
        ]
    except InvalidImage:
        return {}
    data = b"".join(tables[-1:])
    # There are three types of 64 bits each: a longer table has nothing more to tell. The last name may be cut short.
    for start in range(0, min(len(data), 3 * 64 * size), size):
        fields = layout.FEATURE_NAME.parse(data[start : start + size].ljust(size, b"\0"))
        names[fields.type, fields.bit] = fields.name.split(b"\0")[0].decode("utf-8", "replace")
    return names


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _backing_format(data: bytes | None) -> str | None:
    if data is not None and len(data) > layout.MAX_BACKING_FORMAT:
        raise InvalidImage(f"ERROR: ext_backing_format: len={len(data)} too large (>={layout.MAX_BACKING_FORMAT + 1})")
    return _text(data)


def _crypto(data: bytes | None, context: ExtensionContext) -> CryptoPointer | None:
    if data is None:
        if context.crypt_method == layout.CryptMethod.LUKS:
            raise InvalidImage(f"Missing CRYPTO header for crypt method {context.crypt_method}")
        return None
    if context.crypt_method != layout.CryptMethod.LUKS:
        raise InvalidImage("CRYPTO header extension only expected with LUKS encryption method")
    expected = layout.CRYPTO_EXTENSION.sizeof()
    if len(data) != expected:
        raise InvalidImage(f"CRYPTO header extension size {len(data)}, but expected size {expected}")
    fields = layout.CRYPTO_EXTENSION.parse(data)
    if fields.offset % context.cluster_size:
        raise InvalidImage(
            f"Encryption header offset '{fields.offset}' is not a multiple of cluster size '{context.cluster_size}'"
        )
    return CryptoPointer(fields.offset, fields.length)


def _bitmaps(data: bytes | None, context: ExtensionContext) -> BitmapDirectory | None:
    if data is None:
        return None
    if len(data) != layout.BITMAPS_EXTENSION.sizeof():
        raise InvalidImage("bitmaps_ext: Invalid extension length")
    if not context.bitmaps_valid:
        # A writer that did not know bitmaps has cleared the bit: what the extension points to may be anything by now.
        return None
    fields = layout.BITMAPS_EXTENSION.parse(data)
    if fields.reserved:
        raise InvalidImage("bitmaps_ext: Reserved field is not zero")
    if fields.nb_bitmaps > layout.MAX_BITMAPS:
        raise InvalidImage(
            f"bitmaps_ext: image has {fields.nb_bitmaps} bitmaps, exceeding the QEMU supported maximum of "
            f"{layout.MAX_BITMAPS}"
        )
    if fields.nb_bitmaps == 0:
        raise InvalidImage("found bitmaps extension with zero bitmaps")
    if fields.bitmap_directory_offset % context.cluster_size:
        raise InvalidImage("bitmaps_ext: invalid bitmap directory offset")
    if fields.bitmap_directory_size > layout.MAX_BITMAP_DIRECTORY_BYTES:
        raise InvalidImage(
            f"bitmaps_ext: bitmap directory size ({fields.bitmap_directory_size}) exceeds the maximum supported size "
            f"({layout.MAX_BITMAP_DIRECTORY_BYTES})"
        )
    return BitmapDirectory(fields.nb_bitmaps, fields.bitmap_directory_offset, fields.bitmap_directory_size)
