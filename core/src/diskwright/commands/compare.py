"""Tell whether two images have the same content, in whatever formats, through their backing chains.

Examples:
  diskwright compare disk.img disk.qcow2
  diskwright compare -p -f raw -F qcow2 disk.img disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from ..errors import ImageError, InvalidOption
from .common import (
    add_cache_option,
    add_image_opts_argument,
    add_progress_argument,
    cache_mode,
    image_name,
    progress_of,
)

if TYPE_CHECKING:
    from ..cli import App
    from ..engine.compare import Comparison
    from ..node import Image

EXIT_SAME, EXIT_DIFFERENT, EXIT_NOT_OPENED, EXIT_NO_MAP, EXIT_NO_DATA = range(5)
EXIT_CODES = {
    EXIT_SAME: "the images have the same content",
    EXIT_DIFFERENT: "they differ",
    EXIT_NOT_OPENED: "an image cannot be opened, or the command line makes no sense",
    EXIT_NO_MAP: "the map of an image cannot be read",
    EXIT_NO_DATA: "the data of an image cannot be read",
}

PROGRESS_STEP = 2.0
"""Percent by which the comparison must have moved to be shown again."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``compare``."""
    parser.add_argument("-f", "--a-format", "--left-format", metavar="FMT", help="format of the first image")
    parser.add_argument("-F", "--b-format", "--right-format", metavar="FMT", help="format of the second image")
    add_image_opts_argument(parser)
    parser.add_argument("-s", "--strict", action="store_true", help="sizes and allocation must be the same too")
    add_cache_option(parser, "-T", "--cache", help="cache mode (default: writeback)")
    parser.add_argument("-U", "--force-share", action="store_true", help="open images that others are writing to")
    add_progress_argument(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the two images")


def run(args: Namespace, app: App) -> int:
    """Run ``compare``."""
    if len(args.operands) != 2:
        raise UsageError("Expecting two image file names")
    from ..engine.compare import compare

    def warn_of_size() -> None:
        if not args.quiet:
            app.out.line("Warning: Image size mismatch!")

    try:
        left, right = (image_name(args, text, args.a_format, args.b_format) for text in args.operands)
    except InvalidOption as error:
        error.exit_code = EXIT_NOT_OPENED
        raise
    with (
        _open(app, left, args.a_format, args) as first,
        _open(app, right, args.b_format, args) as second,
        progress_of(args, app, PROGRESS_STEP) as progress,
    ):
        result = compare(first, second, strict=args.strict, progress=progress, on_tail=warn_of_size)
        if not args.quiet:
            app.out.line(_verdict(result))
    return EXIT_SAME if result else EXIT_DIFFERENT


def _open(app: App, filename: str, format: str | None, args: Namespace) -> Image:
    try:
        return app.context.open(filename, format, force_share=args.force_share, cache=cache_mode(args.cache))
    except ImageError as error:
        error.exit_code = EXIT_NOT_OPENED
        raise


def _verdict(result: Comparison) -> str:
    from ..engine.compare import Difference

    if result.difference is None:
        return "Images are identical."
    if result.difference is Difference.SIZE:
        return "Strict mode: Image size mismatch!"
    if result.difference is Difference.STATUS:
        return f"Strict mode: Offset {result.offset} block status mismatch!"
    return f"Content mismatch at offset {result.offset}!"
