"""Change the virtual size of an image.

SIZE is in bytes, or with a suffix k, M, G, T, P or E (powers of 1024); with + or - in front it is added or taken away.
What is inside the image (partitions, file systems) is not changed: shrink that first, or grow it afterwards.

Examples:
  diskwright resize disk.qcow2 40G
  diskwright resize disk.qcow2 +10G
  diskwright resize --shrink disk.qcow2 -5G
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from ..options import PREALLOCATION_MODES, Option, OptionType
from .common import add_image_arguments, add_quiet_argument, image_name

if TYPE_CHECKING:
    from ..cli import App

_SHRINK_WARNING = (
    "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, "
    "make sure there is no important data there."
)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``resize``."""
    add_image_arguments(parser)
    parser.add_argument("--shrink", action="store_true", help="allow to cut off what is behind the new end")
    parser.add_argument(
        "--preallocation",
        metavar="MODE",
        choices=PREALLOCATION_MODES,
        default="off",
        help="reserve space for what is new: off (default), metadata, falloc or full",
    )
    add_quiet_argument(parser)
    parser.add_argument("operands", nargs="*", metavar="FILENAME [+|-]SIZE", help="the image and its new size")


def split_operands(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Let the last argument be an operand if it is a negative size, which looks like an option."""
    if arguments and re.match(r"-[\d.]", arguments[-1]):
        return arguments[:-1], arguments[-1:]
    return arguments, []


def run(args: Namespace, app: App) -> int:
    """Run ``resize``."""
    if len(args.operands) < 2:
        raise UsageError("Expecting image file name and size")
    if len(args.operands) > 2:
        raise UsageError("Extra argument(s) in command line")
    from ..engine.resize import ResizeRequest, ShrinkRefused, resize

    filename, text = args.operands
    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    size = Option("size", OptionType.SIZE, "").parse(text[1:] if sign else text)
    request = ResizeRequest(
        filename=image_name(args, filename, args.format),
        size=size,
        sign=sign,
        format=args.format,
        preallocation=args.preallocation,
        shrink=args.shrink,
    )
    try:
        resize(app.context, request)
    except ShrinkRefused as refused:
        app.error(str(refused))
        app.warn(_SHRINK_WARNING)
        return refused.exit_code
    if not args.quiet:
        app.out.line("Image resized.")
    return 0
