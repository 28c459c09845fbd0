"""Tell what is installed and allowed: formats and what can be done with them, options, protocols, filters, commands.

With --output json, all of it for programs; the user guide lists the keys, which stay.

Examples:
  diskwright capabilities
  diskwright capabilities --output json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from .common import add_output_argument, wants_json

if TYPE_CHECKING:
    from ..cli import App


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``capabilities``."""
    add_output_argument(parser)


def run(args: Namespace, app: App) -> int:
    """Run ``capabilities``."""
    as_json = wants_json(args)
    if args.operands:
        raise UsageError(f"Unexpected argument: {args.operands[0]}")
    from ..engine.capabilities import capabilities

    facts = capabilities(app.context, app.program)
    if as_json:
        import json

        app.out.write(json.dumps(facts, indent=4) + "\n")
        return 0
    from ..render.capabilities_text import capability_lines

    for line in capability_lines(facts):
        app.out.line(line)
    return 0
