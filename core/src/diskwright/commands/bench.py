"""Measure how fast an image answers many requests. With -w its content is overwritten.

Examples:
  diskwright bench -c 10000 -d 16 disk.qcow2
  diskwright bench -w -t none -n --flush-interval 100 -f raw /dev/vg/scratch
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..errors import InvalidOption
from ..sizes import parse_cli_number, parse_cli_size
from .common import add_cache_argument, add_quiet_argument, add_source_arguments, cache_mode, single_operand

if TYPE_CHECKING:
    from ..cli import App
    from ..engine.bench import BenchRequest

MAX_INT32 = 2**31 - 1
AIO_MODES = ("threads", "native", "io_uring")
DIRECT = ("none", "directsync")
"""Cache modes that pass by the system's cache."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``bench``."""
    add_source_arguments(parser)
    parser.add_argument("-c", "--count", metavar="N", default="75000", help="number of requests (default: 75000)")
    parser.add_argument("-d", "--depth", metavar="N", default="64", help="requests at a time (default: 64)")
    parser.add_argument("-o", "--offset", metavar="OFFSET", default="0", help="where the first request is")
    parser.add_argument("-s", "--buffer-size", metavar="SIZE", default="4k", help="size of a request (default: 4k)")
    parser.add_argument(
        "-S", "--step-size", metavar="SIZE", default="0", help="from request to request (default: the size of one)"
    )
    parser.add_argument(
        "-i",
        "--aio",
        metavar="AIO",
        choices=AIO_MODES,
        default="threads",
        help="threads, native or io_uring: accepted, threads do it all",
    )
    parser.add_argument("-n", "--native", action="store_const", dest="aio", const="native", help="as -i native")
    parser.add_argument("-w", "--write", action="store_true", help="write instead of reading")
    parser.add_argument("--pattern", metavar="BYTE", default="0", help="the byte to write (default: 0)")
    parser.add_argument("--flush-interval", metavar="N", default="0", help="flush after so many requests")
    parser.add_argument("--no-drain", action="store_true", help="flush without waiting for pending requests")
    add_cache_argument(parser)
    add_quiet_argument(parser)
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``bench``."""
    request = _request(args)
    cache = _cache(args)
    filename = single_operand(args)
    if request.flush_interval and not request.write:
        raise InvalidOption("--flush-interval is only available in write tests")
    if request.flush_interval and request.flush_interval < request.depth:
        raise InvalidOption("Flush interval can't be smaller than depth")
    if args.aio == "native" and cache not in DIRECT:
        raise InvalidOption(
            f"Could not open '{filename}': aio=native was specified, but it requires cache.direct=on, which was not "
            "specified."
        )
    from ..engine.bench import bench

    with app.context.open(
        filename, args.format, writable=request.write, force_share=args.force_share, cache=cache
    ) as image:
        app.out.line(
            f"Sending {request.count} {'write' if request.write else 'read'} requests, {request.buffer_size} bytes "
            f"each, {request.depth} in parallel (starting at offset {request.offset}, step size {request.step})"
        )
        if request.flush_interval:
            app.out.line(f"Sending flush every {request.flush_interval} requests")
        app.out.flush()
        app.out.line(f"Run completed in {bench(image, request):.3f} seconds.")
    return 0


def _request(args: Namespace) -> BenchRequest:
    from ..engine.bench import BenchRequest

    if args.aio not in AIO_MODES:
        raise InvalidOption(f"Invalid aio option: {args.aio}")
    size = parse_cli_size(args.buffer_size, "buffer size", 1, MAX_INT32)
    return BenchRequest(
        count=parse_cli_number(args.count, "request count", 1, MAX_INT32),
        depth=parse_cli_number(args.depth, "queue depth", 1, MAX_INT32),
        offset=parse_cli_size(args.offset, "offset"),
        buffer_size=size,
        step=parse_cli_size(args.step_size, "step size", 0, MAX_INT32) or size,
        write=args.write,
        pattern=parse_cli_number(args.pattern, "pattern byte", 0, 255),
        flush_interval=parse_cli_number(args.flush_interval, "flush interval", 0, MAX_INT32),
        drain=not args.no_drain,
    )


def _cache(args: Namespace) -> str:
    try:
        return cache_mode(args.cache)
    except InvalidOption:
        raise InvalidOption("Invalid cache mode") from None
