"""Show where the data of an image is: in which file, at which offset, and what reads as zeros.

As a picture it shows how data, zeros and what is in no layer are spread over the disk: on the terminal, or as SVG.

Examples:
  diskwright map disk.qcow2
  diskwright map --output picture disk.qcow2
  diskwright map --output svg disk.qcow2 > disk.svg
  diskwright map --output json -s 1G -l 64M disk.qcow2
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..sizes import parse_cli_size
from .common import add_output_argument, add_source_arguments, output_form, single_operand

if TYPE_CHECKING:
    from ..cli import App
    from ..node import Image

FORMS = ("human", "json", "picture", "svg")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``map``."""
    add_source_arguments(parser)
    add_output_argument(parser, FORMS)
    parser.add_argument("-s", "--start-offset", metavar="OFFSET", help="where to begin (default: 0)")
    parser.add_argument("-l", "--max-length", metavar="LENGTH", help="how much to show (default: up to the end)")
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``map``."""
    form = output_form(args, FORMS)
    filename = single_operand(args)
    start = 0 if args.start_offset is None else parse_cli_size(args.start_offset, "start offset")
    length = None if args.max_length is None else parse_cli_size(args.max_length, "max length")
    with app.context.open(filename, args.format, force_share=args.force_share) as image:
        if form in ("picture", "svg"):
            _draw(app, image, start, length, as_svg=form == "svg")
            return 0
        from ..engine.mapping import map_image
        from ..render.map_text import print_map_json, print_map_table

        (print_map_json if form == "json" else print_map_table)(map_image(image, start, length), app.out)
    return 0


def _draw(app: App, image: Image, start: int, length: int | None, *, as_svg: bool) -> None:
    from ..engine.overview import overview

    if as_svg:
        from ..render.map_svg import CELLS, svg_lines

        for line in svg_lines(overview(image, CELLS, start, length), image.filename):
            app.out.write(line + "\n")
        return
    from ..render.map_picture import ROWS, layer_lines, picture_lines, wants_colour, width_of

    width = width_of(app.out)
    view = overview(image, width * ROWS, start, length)
    for line in picture_lines(view, width, colour=wants_colour(app.out, os.environ)):
        app.out.write(line + "\n")
    for line in layer_lines(view):
        app.out.line(line)
