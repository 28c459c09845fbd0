"""List, make, apply and delete the internal snapshots of an image. Without an action, they are listed.

Examples:
  diskwright snapshot disk.qcow2
  diskwright snapshot -c before-update disk.qcow2
  diskwright snapshot -a before-update disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from typing import TYPE_CHECKING

from ..arguments import UsageError
from .common import add_quiet_argument, add_source_arguments, single_operand

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``snapshot``."""
    add_source_arguments(parser)
    add_quiet_argument(parser)
    parser.add_argument(
        "-l", "--list", dest="actions", action="append_const", const=("list", ""), help="list the snapshots"
    )
    for letter, action, text in (
        ("c", "create", "keep the present content of the disk as a snapshot"),
        ("a", "apply", "give the disk back the content of a snapshot, by ID or name"),
        ("d", "delete", "delete a snapshot, by name"),
    ):
        add = partial(_action, action)
        parser.add_argument(
            f"-{letter}", f"--{action}", dest="actions", action="append", type=add, metavar="SNAPSHOT", help=text
        )
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def _action(action: str, name: str) -> tuple[str, str]:
    return action, name


def run(args: Namespace, app: App) -> int:
    """Run ``snapshot``."""
    actions = args.actions or [("list", "")]
    if len(actions) > 1:
        raise UsageError("Cannot mix '-l', '-a', '-c', '-d'")
    filename = single_operand(args)
    action, name = actions[0]
    from ..engine import snapshots

    if action == "list":
        return _list(args, app, filename)
    work = {"create": snapshots.create, "apply": snapshots.apply, "delete": snapshots.delete}[action]
    with app.context.open(
        filename, args.format, writable=True, backing=False, force_share=args.force_share, discard=True
    ) as image:
        work(app.context, image, name)
    return 0


def _list(args: Namespace, app: App, filename: str) -> int:
    from ..engine.snapshots import listed
    from ..render.info_text import snapshot_lines

    with app.context.open(
        filename, args.format, backing=False, describe_only=True, force_share=args.force_share
    ) as image:
        found = listed(app.context, image)
    if found:
        for line in snapshot_lines(found):
            app.out.line(line)
    return 0
