"""Copy images into a new one, in any format.

Several sources are put one behind the other. The target is created, unless -n says that it exists.

Examples:
  diskwright convert -p -O qcow2 disk.img disk.qcow2
  diskwright convert -c -O qcow2 -o compression_type=zstd disk.img small.qcow2
  diskwright convert -n -O raw disk.qcow2 /dev/vg/disk
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..errors import InvalidOption, UnknownFormat
from ..options import asks_for_help
from ..sizes import parse_cli_size
from .create import show_options

if TYPE_CHECKING:
    from ..cli import App

MAX_SPARSE_SIZE = 16 << 20
MAX_PARALLEL = 16
CACHE_MODES = ("none", "off", "directsync", "writeback", "writethrough", "unsafe")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``convert``."""
    parser.add_argument("-f", "--source-format", metavar="FMT", help="format of the sources (default: probed)")
    parser.add_argument(
        "-O", "--target-format", "--output-format", metavar="FMT", default="raw", help="target format (default: raw)"
    )
    parser.add_argument(
        "-o",
        "--target-format-options",
        "--target-options",
        "--options",
        dest="options",
        metavar="OPTS",
        action="append",
        default=[],
        help="creation options of the target; '-o help' lists them",
    )
    parser.add_argument("-b", "-B", "--backing", metavar="FILE", help="backing file of the target")
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="format of the backing file")
    parser.add_argument("-c", "--compress", action="store_true", help="compress the data in the target")
    parser.add_argument("-n", "--no-create", action="store_true", help="write into an existing target")
    parser.add_argument(
        "-S",
        "--sparse-size",
        metavar="SIZE",
        default="4k",
        help="leave out runs of zeros at least this long; 0: none (default: 4k)",
    )
    parser.add_argument("-m", "--parallel", metavar="N", default="8", help="most requests at a time, 1 to 16")
    parser.add_argument("-W", "--oob-writes", action="store_true", help="allow writing out of order")
    parser.add_argument(
        "-t", "--target-cache", "--output-cache", metavar="MODE", default="unsafe", help="cache mode of the target"
    )
    parser.add_argument("-T", "--source-cache", metavar="MODE", default="writeback", help="cache mode of the sources")
    parser.add_argument("-U", "--force-share", action="store_true", help="open sources that others are writing to")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("operands", nargs="*", metavar="SOURCE... TARGET", help="the images")


def run(args: Namespace, app: App) -> int:
    """Run ``convert``."""
    if any(asks_for_help(text) for text in args.options):
        return show_options(app, args.target_format, args.operands[-1] if args.operands else None)
    if len(args.operands) < 2:
        raise InvalidOption("Must specify image file name")
    _check(args)
    from ..engine.convert import ConvertRequest, convert
    from ..render.progress import Progress

    try:
        app.context.formats.load(args.target_format)
    except UnknownFormat as error:
        raise UnknownFormat(f"Unknown file format '{args.target_format}'", hint=error.hint) from None
    *sources, target = args.operands
    request = ConvertRequest(
        sources=sources,
        target=target,
        source_format=args.source_format,
        format=args.target_format,
        options=args.options,
        create=not args.no_create,
        backing_file=args.backing,
        backing_format=args.backing_format,
        cache=_cache_mode(args.target_cache, "cache"),
        source_cache=_cache_mode(args.source_cache, "source cache"),
        force_share=args.force_share,
        compress=args.compress,
        sparse_size=_sparse_size(args.sparse_size),
        parallel=_parallel(args.parallel),
        out_of_order=args.oob_writes,
    )
    with Progress(app.out, app.err, shown=args.progress and not args.quiet, step=1.0) as progress:
        convert(app.context, request, progress.update)
    return 0


def _check(args: Namespace) -> None:
    if args.no_create and args.options:
        raise InvalidOption("-o has no effect when skipping image creation")
    if args.backing is not None and args.no_create:
        raise InvalidOption("-B has no effect when skipping image creation")


def _sparse_size(text: str) -> int:
    size = parse_cli_size(text, "buffer size for sparse output")
    if size % 512 or size > MAX_SPARSE_SIZE:
        raise InvalidOption(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to "
            f"{MAX_SPARSE_SIZE}. Select 0 to disable sparse detection (fully allocates output)."
        )
    return size


def _parallel(text: str) -> int:
    if not text.isdecimal():
        raise InvalidOption(f"Invalid number of coroutines specified: '{text}'")
    count = int(text)
    if not 1 <= count <= MAX_PARALLEL:
        raise InvalidOption(f"Invalid number of coroutines specified. Must be between 1 and {MAX_PARALLEL}.")
    return count


def _cache_mode(mode: str, noun: str) -> str:
    if mode not in CACHE_MODES:
        raise InvalidOption(f"Invalid {noun} option: {mode}")
    return "none" if mode == "off" else mode
