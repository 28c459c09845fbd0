"""Tell how much space an image would take: one that is to be converted, or a new one of a given size.

Examples:
  diskwright measure -O qcow2 disk.img
  diskwright measure -O qcow2 -o cluster_size=2M --size 1T --output json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..errors import InvalidOption
from ..options import ask_for_help
from ..sizes import parse_cli_size
from .common import add_image_opts_argument, add_output_argument, image_name, snapshot_argument, wants_json
from .create import show_options

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``measure``."""
    parser.add_argument(
        "-f", "--format", "--source-format", metavar="FMT", help="format of the image (default: probed)"
    )
    add_image_opts_argument(parser, "--source-image-opts")
    parser.add_argument("-l", "--snapshot", metavar="SNAPSHOT", help="measure this internal snapshot of the image")
    parser.add_argument("-O", "--target-format", metavar="FMT", default="raw", help="target format (default: raw)")
    parser.add_argument(
        "-o",
        "--options",
        "--target-format-options",
        metavar="OPTS",
        action="append",
        default=[],
        help="creation options of the target; '-o help' lists them",
    )
    parser.add_argument("-s", "--size", metavar="SIZE", help="measure a new image of that virtual size")
    parser.add_argument("-U", "--force-share", action="store_true", help="open even while another process writes to it")
    add_output_argument(parser)
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image that would be converted")


def run(args: Namespace, app: App) -> int:
    """Run ``measure``."""
    if ask_for_help(args.options):
        return show_options(app, args.target_format, None)
    snapshot_argument(args.snapshot)
    as_json = wants_json(args)
    size = None if args.size is None else parse_cli_size(args.size, "image size")
    source = _source(args)
    from ..engine.measure import MeasureRequest, measure

    found = measure(
        app.context,
        MeasureRequest(
            format=args.target_format,
            options=args.options,
            size=size,
            source=source,
            source_format=args.format,
            snapshot=args.snapshot,
            force_share=args.force_share,
        ),
    )
    facts = {"bitmaps": found.bitmaps, "required": found.required, "fully-allocated": found.fully_allocated}
    if as_json:
        from ..render.json_text import json_text

        app.out.write(json_text({name: value for name, value in facts.items() if value is not None}) + "\n")
        return 0
    app.out.line(f"required size: {found.required}")
    app.out.line(f"fully allocated size: {found.fully_allocated}")
    if found.bitmaps is not None:
        app.out.line(f"bitmaps size: {found.bitmaps}")
    return 0


def _source(args: Namespace) -> str | None:
    """The image to measure, ``None`` if a size is given instead."""
    if len(args.operands) > 1:
        raise InvalidOption("At most one filename argument is allowed.")
    if not args.operands:
        if args.image_opts or args.format is not None or args.snapshot is not None:
            raise InvalidOption("--image-opts, -f, and -l require a filename argument.")
        if args.size is None:
            raise InvalidOption("Either --size N or one filename must be specified.")
        return None
    if args.size is not None:
        raise InvalidOption("--size N cannot be used together with a filename.")
    return image_name(args, args.operands[0], args.format)
