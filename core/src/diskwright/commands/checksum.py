"""Print a checksum of what the guest sees: the same for the same disk in any format, compressed or sparse or not.

The line printed, or only its digits, can be given to --compare later.

Examples:
  diskwright checksum disk.qcow2
  diskwright checksum --compare 0c1f...e2 copy.vdi
  diskwright checksum -l before-update --output json disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..engine.hashtree import ALGORITHMS
from .common import (
    add_output_argument,
    add_progress_argument,
    add_quiet_argument,
    add_source_arguments,
    progress_of,
    single_operand,
    snapshot_argument,
    wants_json,
)

if TYPE_CHECKING:
    from ..cli import App

EXIT_SAME, EXIT_DIFFERENT = 0, 1
EXIT_CODES = {EXIT_SAME: "it is done, and the content is the same", EXIT_DIFFERENT: "it failed, or the content differs"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``checksum``."""
    add_source_arguments(parser)
    parser.add_argument(
        "-a",
        "--algorithm",
        metavar="NAME",
        choices=ALGORITHMS,
        default="sha256",
        help="sha256 (default), sha512, sha3_256, blake2b or blake2s",
    )
    parser.add_argument("-c", "--compare", metavar="CHECKSUM", help="tell whether the checksum is this one")
    parser.add_argument("-l", "--snapshot", metavar="SNAPSHOT", help="of this internal snapshot, by ID or name")
    add_output_argument(parser)
    add_progress_argument(parser)
    add_quiet_argument(parser)
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``checksum``."""
    snapshot_argument(args.snapshot)
    as_json = wants_json(args)
    filename = single_operand(args)
    from ..engine.checksum import checksum
    from ..engine.snapshots import view

    with app.context.open(filename, args.format, force_share=args.force_share) as image, progress_of(args, app) as bar:
        disk = image if args.snapshot is None else view(app.context, image, args.snapshot)
        found = checksum(disk, args.algorithm, bar)
        size = disk.size
    same = None if args.compare is None else _digits(args.compare) == found
    if as_json:
        from ..render.json_text import json_text

        facts = {"filename": filename, "virtual-size": size, "algorithm": args.algorithm, "checksum": found}
        app.out.write(json_text(facts if same is None else {**facts, "matches": same}) + "\n")
    elif not args.quiet:
        app.out.line(f"{found}  {filename}" if same is None else f"{filename}: {'OK' if same else 'FAILED'}")
    return EXIT_DIFFERENT if same is False else EXIT_SAME


def _digits(text: str) -> str:
    """The digits of a checksum, which may be given as a whole line of output."""
    return (text.split() or [""])[0].lower()
