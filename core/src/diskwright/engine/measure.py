"""Telling how much space an image would take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOption, UnsupportedOperation
from ..facts import Measurement
from ..node import Image
from ..options import InvalidChoice, parse_options
from ..record import Record
from .chain import data_ranges
from .creation import declared_options

if TYPE_CHECKING:
    from ..context import Context


class MeasureRequest(Record):
    """What to measure.

    :ivar format: format of the image that would be created.
    :ivar options: its creation options, as option strings.
    :ivar size: its virtual size, bytes; ``None``: it would hold what the source holds.
    :ivar source: name of the image that would be converted.
    :ivar snapshot: the snapshot of it that would be converted, see :func:`diskwright.engine.snapshots.view`.
    """

    format: str = "raw"
    options: Sequence[str] = ()
    size: int | None = None
    source: str | None = None
    source_format: str | None = None
    snapshot: str | None = None
    force_share: bool = False


def measure(context: Context, request: MeasureRequest) -> Measurement:
    """How large the file of an image would be; nothing is created.

    :raises UnsupportedOperation: the format cannot tell.
    :raises ImageError: the source cannot be read, or the options do not fit.
    """

    def call(size: int, ranges: Iterator[tuple[int, int]], source: Image | None) -> Measurement:
        values = _typed_options(context, request)
        found: Measurement = context.formats.call(
            "measure",
            request.format,
            size=size,
            values=values,
            ranges=ranges,
            source=source,
            secret=context.objects.secret,
        )
        return found

    if request.source is None:
        if request.size is None:
            raise InvalidOption("Either --size N or one filename must be specified.")
        return call(request.size, iter(()), None)
    with context.open(request.source, request.source_format, force_share=request.force_share) as image:
        disk = image
        if request.snapshot is not None:
            from .snapshots import view

            disk = view(context, image, request.snapshot)
        return call(disk.size, data_ranges([disk]), image)


def _typed_options(context: Context, request: MeasureRequest) -> dict[str, Any]:
    """The creation options, without the size."""
    declared = declared_options(context, request.format, "any")
    try:
        values = parse_options(declared, request.options)
    except InvalidChoice:
        raise
    except InvalidOption as error:
        told = f"Invalid options for file format '{request.format}'"
        raise InvalidOption(told, before=str(error), hint=error.hint) from error
    values.pop("size", None)
    if not context.formats.has("measure", request.format):
        raise UnsupportedOperation(f"Block driver '{request.format}' does not support size measurement")
    return values
