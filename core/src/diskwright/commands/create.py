"""Make a new, empty image.

SIZE is in bytes, or with a suffix k, M, G, T, P or E (powers of 1024). Without SIZE the image is as large as its
backing file.

Examples:
  diskwright create -f qcow2 disk.qcow2 20G
  diskwright create -f qcow2 -o compression_type=zstd,cluster_size=2M disk.qcow2 20G
  diskwright create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from ..errors import ImageError, InvalidOption
from ..options import ask_for_help, help_table, parse_options
from ..sizes import MAX_INT64, parse_cli_size

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``create``."""
    parser.add_argument("-f", "--format", metavar="FMT", default="raw", help="format of the image (default: raw)")
    parser.add_argument(
        "-o", "--options", metavar="OPTS", action="append", default=[], help="creation options; '-o help' lists them"
    )
    parser.add_argument("-b", "--backing", metavar="FILE", help="backing file, below the new image")
    parser.add_argument("-F", "-B", "--backing-format", metavar="FMT", help="format of the backing file")
    parser.add_argument("-u", "--backing-unsafe", action="store_true", help="do not open the backing file")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("operands", nargs="*", metavar="FILE [SIZE]", help="name and virtual size of the image")


def run(args: Namespace, app: App) -> int:
    """Run ``create``."""
    if ask_for_help(args.options):
        return show_options(app, args.format, args.operands[0] if args.operands else None)
    if not args.operands:
        raise UsageError("Expecting image file name")
    filename, *rest = args.operands
    size = parse_cli_size(rest[0], "image size") if rest else None
    if len(rest) > 1:
        raise UsageError(f"Unexpected argument: {rest[1]}")
    try:
        _create(args, app, filename, size)
    except ImageError as error:
        raise error.in_context(filename) from error
    return 0


def _create(args: Namespace, app: App, filename: str, size: int | None) -> None:
    from ..engine.creation import CreateRequest, create, declared_options

    declared = declared_options(app.context, args.format, filename)
    values = parse_options(declared, args.options)
    if size is not None and "size" in values:
        raise InvalidOption("The image size must be specified only once")
    size = values.pop("size", size)
    if size is not None and size > MAX_INT64:
        raise InvalidOption(f"Invalid image size specified. Must be between 0 and {MAX_INT64}.")
    backing_file = values.pop("backing_file", None)
    backing_format = values.pop("backing_fmt", None)
    request = CreateRequest(
        filename=filename,
        format=args.format,
        size=size,
        values=values,
        backing_file=backing_file if args.backing is None else args.backing,
        backing_format=args.backing_format or backing_format,
        backing_unsafe=args.backing_unsafe,
    )

    def announce(line: str) -> None:
        if not args.quiet:
            app.out.line(line)
            app.out.flush()  # where errors go to the same place, this comes before them

    create(app.context, request, announce)


def show_options(app: App, format: str, filename: str | None) -> int:
    """Print the table of a format's creation options, with those of the file's protocol if there is a file."""
    from ..engine.creation import declared_options

    if filename is not None:
        app.out.lines(help_table("Supported options:", declared_options(app.context, format, filename)))
        return 0
    declared_options(app.context, format, "any")  # refuses formats that cannot create
    app.out.lines(help_table(f"Supported {format} options:", app.context.formats.call("creation_options", format)))
    app.out.lines(
        "\nThe protocol level may support further options.\nSpecify the target filename to include those options."
    )
    return 0
