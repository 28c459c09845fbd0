"""Change options of an existing image, such as its version or its passphrases.

Examples:
  diskwright amend -o compat=1.1 disk.qcow2
  diskwright amend -f qcow2 -o help
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from ..errors import InvalidOption
from ..options import ask_for_help, help_table
from .common import (
    add_cache_argument,
    add_image_arguments,
    add_progress_argument,
    add_quiet_argument,
    cache_mode,
    progress_of,
    single_operand,
)

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``amend``."""
    add_image_arguments(parser)
    parser.add_argument(
        "-o", "--options", metavar="OPTS", action="append", default=[], help="what to change; '-o help' lists it"
    )
    parser.add_argument("--force", action="store_true", help="go ahead even if data may become unreadable")
    add_cache_argument(parser)
    add_progress_argument(parser)
    add_quiet_argument(parser)
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``amend``."""
    if not args.options:
        raise UsageError("Must specify options (-o)")
    if ask_for_help(args.options):
        return _show_options(args, app)
    filename = _operand(args)
    cache = cache_mode(args.cache, "cache")
    from ..engine.amend import AmendRequest, amend

    with progress_of(args, app) as progress:
        amend(app.context, AmendRequest(filename, args.options, args.format, args.force, cache), progress)
        progress(1, 1)
    return 0


def _operand(args: Namespace) -> str:
    try:
        return single_operand(args)
    except UsageError as error:
        raise InvalidOption(str(error)) from None  # said without advice here


def _show_options(args: Namespace, app: App) -> int:
    """Print what can be changed of images of a format: the one given, or that of the image."""
    from ..engine.amend import amend_options

    format = args.format
    if format is None:
        with app.context.open(_operand(args), backing=False, describe_only=True) as image:
            format = image.driver
    app.out.lines(help_table(f"Amend options for '{format}':", amend_options(app.context, format)))
    return 0
