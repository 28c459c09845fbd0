"""Copy images into a new one, in any format.

Several sources are put one behind the other. The target is created, unless -n says that it exists. The target "-" is
standard output, for formats that can be written from the first byte to the last; a file of that name is "./-".

Examples:
  diskwright convert -p -O qcow2 disk.img disk.qcow2
  diskwright convert -c -O qcow2 -o compression_type=zstd disk.img small.qcow2
  diskwright convert disk.qcow2 - | zstd > disk.raw.zst
  diskwright convert -n -O raw disk.qcow2 /dev/vg/disk
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..errors import InvalidOption
from ..options import ask_for_help
from ..sizes import parse_cli_number, parse_cli_size
from ..trees import OptionString
from .common import (
    add_cache_option,
    add_image_opts_argument,
    add_progress_argument,
    add_rate_argument,
    cache_mode,
    image_name,
    progress_of,
    rate_limit,
    snapshot_argument,
)
from .create import show_options

if TYPE_CHECKING:
    from ..cli import App
    from ..engine.convert import ConvertRequest

STANDARD_OUTPUT = "stdout:"
"""The name that "-" is short for."""
MAX_SPARSE_SIZE = 16 << 20
MAX_PARALLEL = 16


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``convert``."""
    parser.add_argument("-f", "--source-format", metavar="FMT", help="format of the sources (default: probed)")
    add_image_opts_argument(parser, "--source-image-opts")
    parser.add_argument(
        "-l", "--snapshot", "--source-snapshot", metavar="SNAPSHOT", help="convert a snapshot, by ID or name"
    )
    parser.add_argument("--bitmaps", action="store_true", help="also copy the persistent dirty bitmaps")
    parser.add_argument("--skip-broken-bitmaps", action="store_true", help="leave out inconsistent bitmaps")
    parser.add_argument("--salvage", action="store_true", help="turn what cannot be read into zeros, with a warning")
    _add_target_arguments(parser)
    _add_copy_arguments(parser)
    parser.add_argument("operands", nargs="*", metavar="SOURCE... TARGET", help="the images")


def _add_target_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-O", "--target-format", "--output-format", metavar="FMT", help="target format (default: raw)")
    parser.add_argument("--target-image-opts", action="store_true", help="name the target by options; needs -n")
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
    parser.add_argument("--target-is-zero", action="store_true", help="the existing target reads as zeros; needs -n")


def _add_copy_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-C",
        "--copy-range-offloading",
        dest="offload",
        action="store_true",
        help="let the system copy from file to file",
    )
    add_rate_argument(parser)
    parser.add_argument(
        "-S",
        "--sparse-size",
        metavar="SIZE",
        help="leave out runs of zeros at least this long; 0: none (default: 4k)",
    )
    parser.add_argument("-m", "--parallel", metavar="N", default="8", help="most requests at a time, 1 to 16")
    parser.add_argument("-W", "--oob-writes", action="store_true", help="allow writing out of order")
    add_cache_option(
        parser,
        "-t",
        "--target-cache",
        "--output-cache",
        default="unsafe",
        help="cache mode of the target (default: unsafe)",
    )
    add_cache_option(parser, "-T", "--source-cache", help="cache mode of the sources (default: writeback)")
    parser.add_argument("-U", "--force-share", action="store_true", help="open sources that others are writing to")
    add_progress_argument(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def run(args: Namespace, app: App) -> int:
    """Run ``convert``."""
    if ask_for_help(args.options):
        return show_options(app, args.target_format or "raw", args.operands[-1] if args.operands else None)
    snapshot_argument(args.snapshot)
    if len(args.operands) < 2:
        raise InvalidOption("Must specify image file name")
    _check_source(args)
    _check_target(args)
    from ..engine.convert import convert

    format = None if args.target_image_opts else args.target_format or "raw"
    request = _request(args, format)
    # Nothing but the image may be on standard output then.
    shown_on = app.err if request.target == STANDARD_OUTPUT else app.out
    with progress_of(args, app, out=shown_on) as progress:
        convert(app.context, request, progress)
    return 0


def _request(args: Namespace, format: str | None) -> ConvertRequest:
    from ..engine.convert import ConvertRequest

    *sources, target = args.operands
    if target == "-" and not args.target_image_opts:
        if args.no_create:
            raise InvalidOption("Standard output is no existing image: it does not go with -n")
        target = STANDARD_OUTPUT
    return ConvertRequest(
        sources=[image_name(args, source, args.source_format) for source in sources],
        target=OptionString(target) if args.target_image_opts else target,
        source_format=args.source_format,
        format=format,
        options=args.options,
        snapshot=args.snapshot,
        create=not args.no_create,
        target_is_zero=args.target_is_zero,
        backing_file=args.backing,
        backing_format=args.backing_format,
        cache=cache_mode(args.target_cache, "cache"),
        source_cache=cache_mode(args.source_cache),
        force_share=args.force_share,
        compress=args.compress,
        sparse_size=_sparse_size(args.sparse_size or "4k"),
        parallel=_parallel(args.parallel),
        out_of_order=args.oob_writes,
        bitmaps=args.bitmaps,
        skip_broken_bitmaps=args.skip_broken_bitmaps,
        salvage=args.salvage,
        rate=rate_limit(args.rate),
        offload=args.offload,
    )


def _check_source(args: Namespace) -> None:
    """Refuse what does not go together in reading."""
    if args.offload:
        if args.compress:
            raise InvalidOption("Cannot enable copy offloading when -c is used")
        if args.sparse_size is not None:
            raise InvalidOption("Cannot enable copy offloading when -S is used")
        if args.salvage:
            raise InvalidOption("Cannot use copy offloading in salvaging mode")
    if args.skip_broken_bitmaps and not args.bitmaps:
        raise InvalidOption("Use of --skip-broken-bitmaps requires --bitmaps")


def _check_target(args: Namespace) -> None:
    """Refuse what does not go together in writing."""
    if args.target_image_opts and not args.no_create:
        raise InvalidOption("--target-image-opts requires use of -n flag")
    if args.target_image_opts and args.target_format is not None:
        raise InvalidOption("--target-image-opts and --target-format are mutually exclusive")
    if args.target_is_zero and not args.no_create:
        raise InvalidOption("--target-is-zero requires use of -n flag")
    if args.target_is_zero and args.backing is not None:
        raise InvalidOption("Cannot use --target-is-zero when the destination image has a backing file")
    if args.no_create and args.options:
        raise InvalidOption("-o has no effect when skipping image creation")


def _sparse_size(text: str) -> int:
    size = parse_cli_size(text, "buffer size for sparse output")
    if size % 512 or size > MAX_SPARSE_SIZE:
        raise InvalidOption(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to "
            f"{MAX_SPARSE_SIZE}. Select 0 to disable sparse detection (fully allocates output)."
        )
    return size


def _parallel(text: str) -> int:
    return parse_cli_number(text, "number of coroutines", 1, MAX_PARALLEL)
