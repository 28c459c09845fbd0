"""What is odd about an image from a stranger, as far as its header tells."""

from __future__ import annotations

from collections.abc import Iterator

from diskwright.facts import Finding, Severity
from diskwright.scrutiny import reference_findings

from .image import Qcow2Image
from .layout import Autoclear, Compatible, CryptMethod, Incompatible

_KNOWN_COMPATIBLE = int(Compatible.LAZY_REFCOUNTS)


def findings(image: Qcow2Image) -> Iterator[Finding]:
    """See the hook ``findings``."""
    header = image.header
    if header.data_file:
        yield from reference_findings("data-file", header.data_file, plain=True)
    elif header.has_data_file:
        yield Finding(Severity.DANGER, "data-file-reference", "guest data is in another file, which is not named")
    if header.incompatible_features & Incompatible.CORRUPT:
        yield Finding(Severity.DANGER, "corrupt", "the image is marked as corrupt")
    for name, bits, known in (
        ("compatible", header.compatible_features, _KNOWN_COMPATIBLE),
        ("autoclear", header.autoclear_features, int(Autoclear.SUPPORTED)),
    ):
        if unknown := int(bits) & ~known:
            yield Finding(Severity.WARNING, "unknown-features", f"unknown {name} feature bits: {unknown:#x}")
    for extension in header.unknown_extensions:
        message = f"unknown header extension {extension.type:#010x} of {len(extension.data)} bytes"
        yield Finding(Severity.WARNING, "unknown-extension", message)
    if any(header.unknown_fields):
        message = f"the header has {len(header.unknown_fields)} bytes of unknown fields"
        yield Finding(Severity.WARNING, "unknown-fields", message)
    if header.stale_bitmaps:
        yield Finding(Severity.NOTE, "stale-bitmaps", "there are bitmaps that may not be right any more")
    if header.crypt_method == CryptMethod.AES:
        yield Finding(Severity.WARNING, "weak-encryption", "the encryption is the old AES kind, which is not secure")
