"""Describe an image: format, sizes, backing file, snapshots and the format's own facts. Its data is not read.

Examples:
  diskwright info disk.qcow2
  diskwright info --output json --backing-chain disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from .common import add_output_argument, add_source_arguments, single_operand, wants_json

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``info``."""
    add_source_arguments(parser)
    add_output_argument(parser)
    parser.add_argument("-b", "--backing-chain", action="store_true", help="describe all layers of the backing chain")
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``info``."""
    from ..engine.info import inspect, inspect_chain
    from ..render.info_text import info_lines, info_object

    as_json = wants_json(args)
    filename = single_operand(args)
    if args.backing_chain:
        layers = inspect_chain(app.context, filename, args.format, force_share=args.force_share)
    else:
        layers = [inspect(app.context, filename, args.format, force_share=args.force_share)]
    if as_json:
        from ..render.json_text import json_text

        objects = [info_object(info) for info in layers]
        app.out.write(json_text(objects if args.backing_chain else objects[0]) + "\n")
        return 0
    for index, info in enumerate(layers):
        if index:
            app.out.line("")
        for line in info_lines(info):
            app.out.line(line)
    return 0
