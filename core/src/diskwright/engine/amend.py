"""Changing what was laid down when an image was created."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOption, UnsupportedOperation
from ..options import Option, parse_options, split_option_string
from ..record import Record
from .copy import Progress, no_progress
from .creation import require_format

if TYPE_CHECKING:
    from ..context import Context


class AmendRequest(Record):
    """What to change.

    :ivar options: option strings.
    :ivar force: go ahead where guest data may become unreadable.
    """

    filename: str
    options: Sequence[str]
    format: str | None = None
    force: bool = False
    cache: str = "writeback"


def amend(context: Context, request: AmendRequest, progress: Progress = no_progress) -> None:
    """Change options of an existing image.

    :param progress: called with the work done and the work there is, if the format tells.
    :raises ImageError: it cannot be done; the image is as before.
    """
    with context.open(request.filename, request.format, writable=True, cache=request.cache) as image:
        values = _values(context, image.driver, request.options)
        context.formats.call("amend", image.driver, image=image, values=values, force=request.force, progress=progress)
        image.flush()


def amend_options(context: Context, format: str) -> Sequence[Option]:
    """The options of a format's images that can be changed.

    :raises UnsupportedOperation: none of them can.
    """
    what = "option amendment"
    require_format(context, format, what)
    if not (context.formats.has("amend", format) and context.formats.has("amend_options", format)):
        raise UnsupportedOperation(f"Format driver '{format}' does not support {what}")
    declared: Sequence[Option] = context.formats.call("amend_options", format)
    return declared


def _values(context: Context, format: str, texts: Sequence[str]) -> dict[str, Any]:
    declared = amend_options(context, format)
    changeable = {option.name for option in declared}
    creation = {option.name for option in context.formats.call("creation_options", format)} - changeable
    for text in texts:
        for name, _ in split_option_string(text):
            if name in creation:
                raise InvalidOption(
                    f"Invalid parameter '{name}'", hint="This option is only supported for image creation"
                )
    return parse_options(declared, texts)
