"""Give an overlay another backing file, or none; the content of the disk stays the same.

With -u only the name is changed: for a backing file that was moved or whose content is known to be the same.

Examples:
  diskwright rebase -b newbase.qcow2 -F qcow2 overlay.qcow2
  diskwright rebase -b "" overlay.qcow2
  diskwright rebase -u -b /new/place/base.qcow2 -F qcow2 overlay.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from .common import (
    add_cache_argument,
    add_cache_option,
    add_progress_argument,
    add_quiet_argument,
    add_source_arguments,
    cache_mode,
    progress_of,
    single_operand,
)

if TYPE_CHECKING:
    from ..cli import App

PROGRESS_STEP = 2.0
"""Percent by which the work must have moved to be shown again."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``rebase``."""
    add_source_arguments(parser)
    parser.add_argument("-b", "--backing", metavar="FILE", help='new backing file; "" for none')
    parser.add_argument("-F", "-B", "--backing-format", metavar="FMT", help="format of the new backing file")
    parser.add_argument("-u", "--backing-unsafe", action="store_true", help="change the name only")
    parser.add_argument("-c", "--compress", action="store_true", help="compress what has to be written")
    add_cache_argument(parser)
    add_cache_option(parser, "-T", "--backing-cache", help="cache mode of the backing files (default: writeback)")
    add_progress_argument(parser)
    add_quiet_argument(parser)
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the overlay")


def run(args: Namespace, app: App) -> int:
    """Run ``rebase``."""
    filename = single_operand(args)
    if args.backing is None and not args.backing_unsafe:
        raise UsageError("Must specify backing file (-b) or use unsafe mode (-u)")
    from ..engine.rebase import RebaseRequest, rebase

    request = RebaseRequest(
        filename=filename,
        backing_file=args.backing or "",
        format=args.format,
        backing_format=args.backing_format,
        unsafe=args.backing_unsafe,
        compress=args.compress,
        force_share=args.force_share,
        cache=cache_mode(args.cache, "cache"),
        backing_cache=cache_mode(args.backing_cache),
    )
    with progress_of(args, app, PROGRESS_STEP) as progress:
        rebase(app.context, request, progress)
    return 0
