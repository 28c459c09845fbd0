"""Describe an image: format, sizes, backing file, snapshots and the format's own facts. Its data is not read.

With --untrusted, for an image from a stranger, nothing but its one file is opened, within limits of memory and time,
and everything odd about it is listed.

Examples:
  diskwright info --untrusted from-a-stranger.qcow2
  diskwright info disk.qcow2
  diskwright info --output json --backing-chain disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOption
from .common import add_cache_option, add_output_argument, add_source_arguments, cache_mode, single_operand, wants_json

if TYPE_CHECKING:
    from ..cli import App

EXIT_SAFE, EXIT_NOT_SAFE = 0, 3
EXIT_CODES = {
    EXIT_SAFE: "it is done; with --untrusted, nothing worse than notes was found",
    1: "it failed",
    EXIT_NOT_SAFE: "with --untrusted: the image is not safe",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``info``."""
    add_source_arguments(parser)
    add_output_argument(parser)
    parser.add_argument("-b", "--backing-chain", action="store_true", help="describe all layers of the backing chain")
    parser.add_argument("--limits", action="store_true", help="also tell what requests should look like")
    add_cache_option(parser, "-t", "--cache", help="cache mode for --limits (default: writeback)")
    parser.add_argument("--untrusted", action="store_true", help="look for everything odd in an image from a stranger")
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``info``."""
    from ..engine.info import inspect, inspect_chain
    from ..render.info_text import info_lines, info_object

    as_json = wants_json(args)
    filename = single_operand(args)
    how: dict[str, Any] = {
        "force_share": args.force_share,
        "limits": args.limits,
        "cache": cache_mode(args.cache, "cache"),
    }
    if args.untrusted:
        if args.backing_chain or args.limits:
            raise InvalidOption("--untrusted looks at one file only: no --backing-chain and no --limits with it")
        return _examine(app, filename, args, as_json=as_json)
    if args.backing_chain:
        layers = inspect_chain(app.context, filename, args.format, **how)
    else:
        layers = [inspect(app.context, filename, args.format, **how)]
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


def _examine(app: App, filename: str, args: Namespace, *, as_json: bool) -> int:
    from ..engine.untrusted import examine
    from ..render.findings import finding_lines, findings_object

    found = examine(app.context, filename, args.format, force_share=args.force_share)
    if as_json:
        from ..render.json_text import json_text

        app.out.write(json_text(findings_object(found)) + "\n")
    else:
        for line in finding_lines(found):
            app.out.line(line)
    return EXIT_SAFE if found.is_safe else EXIT_NOT_SAFE
