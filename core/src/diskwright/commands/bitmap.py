"""Add, remove, clear, enable, disable or merge a persistent dirty bitmap; several actions are done in their order.

Examples:
  diskwright bitmap --add disk.qcow2 backup0
  diskwright bitmap --disable disk.qcow2 backup0
  diskwright bitmap --add --merge backup0 -b base.qcow2 -F qcow2 overlay.qcow2 backup0
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..errors import InvalidOption
from ..sizes import parse_cli_size
from .common import add_image_arguments, image_name

if TYPE_CHECKING:
    from ..cli import App

_ACTIONS = {
    "add": "add the bitmap, empty and enabled",
    "remove": "remove the bitmap",
    "clear": "forget what the bitmap marks",
    "enable": "record writes in the bitmap",
    "disable": "do not record writes in the bitmap",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``bitmap``."""
    add_image_arguments(parser)
    for action, text in _ACTIONS.items():
        parser.add_argument(f"--{action}", dest="actions", action="append_const", const=(action, ""), help=text)
    parser.add_argument(
        "--merge", dest="actions", action="append", type=_merge, metavar="SOURCE", help="mark what SOURCE marks"
    )
    parser.add_argument("-g", "--granularity", metavar="SIZE", help="bytes for each bit of a bitmap that is added")
    parser.add_argument("-b", "--source-file", metavar="FILE", help="image that has the bitmap to merge")
    parser.add_argument("-F", "--source-format", metavar="FMT", help="format of that image")
    parser.add_argument("operands", nargs="*", metavar="FILENAME BITMAP", help="the image and the name of the bitmap")


def _merge(source: str) -> tuple[str, str]:
    return "merge", source


def run(args: Namespace, app: App) -> int:
    """Run ``bitmap``."""
    actions: list[tuple[str, str]] = args.actions or []
    _check(args, {kind for kind, _ in actions})
    if len(args.operands) != 2:
        raise InvalidOption("Expecting filename and bitmap name")
    from ..engine.bitmaps import Action, BitmapRequest, change_bitmap

    filename, name = args.operands
    change_bitmap(
        app.context,
        BitmapRequest(
            filename=image_name(args, filename, args.format),
            bitmap=name,
            actions=[Action(kind, source) for kind, source in actions],
            format=args.format,
            granularity=0 if args.granularity is None else parse_cli_size(args.granularity, "granularity"),
            source=args.source_file,
            source_format=args.source_format,
        ),
    )
    return 0


def _check(args: Namespace, kinds: set[str]) -> None:
    if not kinds:
        raise InvalidOption("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    if args.granularity is not None and "add" not in kinds:
        raise InvalidOption("granularity only supported with --add")
    if args.source_format is not None and args.source_file is None:
        raise InvalidOption("-F only supported with -b")
    if args.source_file is not None and "merge" not in kinds:
        raise InvalidOption("Merge bitmap source file only supported with --merge")
