"""Checking an image's metadata for consistency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ImageError, UnsupportedOperation, reason_of
from ..hookspecs import CheckResult
from ..node import Image

if TYPE_CHECKING:
    from ..context import Context


class ChecksUnsupported(UnsupportedOperation):
    """The format has no checks."""

    exit_code = 63


def check(context: Context, image: Image) -> CheckResult:
    """Check an open image; nothing is changed.

    :raises ChecksUnsupported: its format has no checks.
    :raises ImageError: the metadata cannot be read at all.
    """
    if not context.formats.has("check", image.driver):
        raise ChecksUnsupported("This image format does not support checks")
    try:
        result: CheckResult = context.formats.call("check", image.driver, image=image, repair=None)
    except (ImageError, OSError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise ImageError(f"Check failed: {reason}") from error
    return result
