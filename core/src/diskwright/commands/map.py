"""Show where the data of an image is: in which file, at which offset, and what reads as zeros.

Examples:
  diskwright map disk.qcow2
  diskwright map --output json -s 1G -l 64M disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..sizes import parse_cli_size
from .common import add_output_argument, add_source_arguments, single_operand, wants_json

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``map``."""
    add_source_arguments(parser)
    add_output_argument(parser)
    parser.add_argument("-s", "--start-offset", metavar="OFFSET", help="where to begin (default: 0)")
    parser.add_argument("-l", "--max-length", metavar="LENGTH", help="how much to show (default: up to the end)")
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``map``."""
    as_json = wants_json(args)
    filename = single_operand(args)
    start = 0 if args.start_offset is None else parse_cli_size(args.start_offset, "start offset")
    length = None if args.max_length is None else parse_cli_size(args.max_length, "max length")
    from ..engine.mapping import map_image
    from ..render.map_text import print_map_json, print_map_table

    with app.context.open(filename, args.format, force_share=args.force_share) as image:
        (print_map_json if as_json else print_map_table)(map_image(image, start, length), app.out)
    return 0
