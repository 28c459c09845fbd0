"""Checking an image's metadata for consistency, and repairing it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ImageError, UnsupportedOperation, reason_of
from ..facts import CheckResult
from ..node import Image
from ..record import Record

if TYPE_CHECKING:
    from ..context import Context


class ChecksUnsupported(UnsupportedOperation):
    """The format has no checks."""

    exit_code = 63


class CheckRequest(Record):
    """What to check.

    :ivar repair: ``leaks`` or ``all`` to repair that, ``None`` to change nothing.
    """

    filename: str
    format: str | None = None
    repair: str | None = None
    force_share: bool = False
    cache: str = "writeback"


class Checked(Record):
    """How a check ended.

    :ivar driver: the format of the image.
    :ivar result: what is wrong with it now; the counts of what was repaired are those of the repair.
    """

    driver: str
    result: CheckResult


def check_file(context: Context, request: CheckRequest, repaired: Callable[[CheckResult], None]) -> Checked:
    """Open an image in spite of its faults and check it; what has been repaired is checked again, from scratch.

    :param repaired: called with the result of a repair, before the second check.
    :raises ChecksUnsupported: its format has no checks, or no repair.
    :raises ImageError: the metadata cannot be read at all.
    """
    with _opened(context, request, writable=request.repair is not None) as image:
        driver = image.driver
        first = check(context, image, request.repair)
        if request.repair is not None:
            image.flush()
    if not first.leaks_fixed and not first.corruptions_fixed:
        return Checked(driver, first)
    repaired(first)
    with _opened(context, request.replace(format=driver), writable=False) as image:
        second = check(context, image)
    second.leaks_fixed, second.corruptions_fixed = first.leaks_fixed, first.corruptions_fixed
    return Checked(driver, second)


def _opened(context: Context, request: CheckRequest, *, writable: bool) -> Image:
    return context.open(
        request.filename,
        request.format,
        writable=writable,
        force_share=request.force_share,
        cache=request.cache,
        check=True,
    )


def check(context: Context, image: Image, repair: str | None = None) -> CheckResult:
    """Check an open image.

    :param repair: ``None``: nothing is changed; see the hook ``check`` for what else there is.
    :raises ChecksUnsupported: its format has no checks, or no repair.
    :raises ImageError: the metadata cannot be read at all.
    """
    if not context.formats.has("check", image.driver) or (repair and not repairs(context, image.driver)):
        raise ChecksUnsupported("This image format does not support checks")
    try:
        result: CheckResult = context.formats.call("check", image.driver, image=image, repair=repair)
    except UnsupportedOperation as error:
        raise ChecksUnsupported(str(error)) from error
    except (ImageError, OSError) as error:
        raise ImageError(f"Check failed: {reason_of(error)}") from error
    return result


def repairs(context: Context, driver: str) -> bool:
    """Whether the driver's check looks at what is to be repaired: an implementation names the arguments it uses."""
    return "repair" in inspect.signature(getattr(context.formats.load(driver), "check")).parameters  # noqa: B009
