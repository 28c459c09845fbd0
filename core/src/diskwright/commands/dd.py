"""Copy a part of an image into a new one, as dd does.

Operands: if=FILE (the input), of=FILE (the output, always created new), bs=SIZE (block size, default: 512),
count=N (stop behind the first N blocks of the input), skip=N (leave out the first N blocks; they count for count=).

Examples:
  diskwright dd if=disk.qcow2 of=start.img bs=1M count=10
  diskwright dd -f raw -O qcow2 if=disk.img of=rest.qcow2 bs=1M skip=10
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..errors import InvalidOption
from ..sizes import parse_cli_size
from .common import add_source_arguments, image_name

if TYPE_CHECKING:
    from ..cli import App

MAX_BLOCK_SIZE = 2**31 - 1
OPERANDS = ("if", "of", "bs", "count", "skip")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``dd``."""
    add_source_arguments(parser)
    parser.add_argument(
        "-O", "--output-format", metavar="FMT", default="raw", help="format of the output (default: raw)"
    )
    parser.add_argument(
        "operands",
        nargs="*",
        metavar="NAME=VALUE",
        choices=tuple(f"{name}=" for name in OPERANDS),
        help="what to copy where, see above",
    )


def run(args: Namespace, app: App) -> int:
    """Run ``dd``."""
    values = _values(args.operands)
    if "if" not in values or "of" not in values:
        raise InvalidOption("Must specify both input and output files")
    block_size = parse_cli_size(values.get("bs", "512"), "bs", 1, MAX_BLOCK_SIZE)
    count = parse_cli_size(values["count"], "count") if "count" in values else None
    skip = parse_cli_size(values.get("skip", "0"), "skip")
    from ..engine.dd import DdRequest, dd
    from ..render.progress import Progress

    request = DdRequest(
        source=image_name(args, values["if"], args.format),
        target=values["of"],
        source_format=args.format,
        format=args.output_format,
        block_size=block_size,
        count=count,
        skip=skip,
        force_share=args.force_share,
    )
    with Progress(app.out, app.err, shown=False) as progress:
        inside = dd(app.context, request, progress)
    if not inside:
        app.error(f"{values['if']}: cannot skip to specified offset")
    return 0 if inside else 1


def _values(operands: list[str]) -> dict[str, str]:
    """The operands by name; the last one of a name counts."""
    values: dict[str, str] = {}
    for operand in operands:
        name, equals, value = operand.partition("=")
        if name not in OPERANDS or not equals:
            raise InvalidOption(f"unrecognized operand {name}")
        values[name] = value
    return values
