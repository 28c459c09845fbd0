"""Write what an overlay holds into its backing file, or into a layer further down.

Afterwards the overlay is emptied, unless -d or -b says otherwise.

Examples:
  diskwright commit overlay.qcow2
  diskwright commit -p -d overlay.qcow2
  diskwright commit -b base.qcow2 overlay.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from .common import (
    add_cache_argument,
    add_image_arguments,
    add_progress_argument,
    add_quiet_argument,
    add_rate_argument,
    cache_mode,
    progress_of,
    rate_limit,
    single_operand,
)

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``commit``."""
    add_image_arguments(parser)
    parser.add_argument("-b", "--base", metavar="FILE", help="layer to write into (default: the one below); implies -d")
    parser.add_argument("-d", "--drop", action="store_true", help="do not empty the overlay: it will not be used again")
    add_cache_argument(parser)
    add_rate_argument(parser)
    add_progress_argument(parser)
    add_quiet_argument(parser)
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the overlay")


def run(args: Namespace, app: App) -> int:
    """Run ``commit``."""
    filename = single_operand(args)
    from ..engine.commit import CommitRequest, commit

    request = CommitRequest(
        filename=filename,
        format=args.format,
        base=args.base,
        drop=args.drop or args.base is not None,
        cache=cache_mode(args.cache, "cache"),
        rate=rate_limit(args.rate),
    )
    with progress_of(args, app) as progress:
        commit(app.context, request, progress)
    if not args.quiet:
        app.out.line("Image committed.")
    return 0
