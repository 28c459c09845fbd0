"""The parsers of the program and of its commands: what runs a command, its help, its man page, the completion of shells
and ``capabilities`` read the same declarations.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .arguments import Parser

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS = {
    "amend": "change options of an existing image",
    "bench": "measure how fast an image answers many requests",
    "bitmap": "change the persistent dirty bitmaps of an image",
    "capabilities": "tell what is installed: formats, options, commands",
    "check": "look for inconsistencies in an image and repair them",
    "checksum": "print a checksum of the content, the same for any format",
    "commit": "write what an overlay holds into its backing file",
    "compare": "tell whether two images have the same content",
    "completion": "print a script that completes command lines in a shell",
    "convert": "copy images into a new one, in any format",
    "create": "make a new, empty image",
    "dd": "copy a part of an image into a new one",
    "info": "describe an image",
    "map": "show where the data of an image is",
    "measure": "tell how much space an image would take",
    "rebase": "give an overlay another backing file",
    "resize": "change the virtual size of an image",
    "snapshot": "list, make, apply and delete internal snapshots",
}
"""The subcommands; ``commands/NAME.py`` has the code of each."""

SUMMARY = "create, inspect, convert, check and change virtual disk images"

EXIT_CODES: Mapping[int, str] = {0: "it is done", 1: "it failed"}
"""The exit codes of commands that declare no ``EXIT_CODES`` of their own."""

_EXAMPLES = "\nExamples:\n"
"""What stands before the examples in the docstring of a command's module."""


class CommandParser(Parser):
    """The parser of a subcommand, with what else help tells of it.

    :ivar examples: whole command lines.
    :ivar exit_codes: what each exit code means.
    """

    examples: list[str]
    exit_codes: Mapping[int, str]

    def declare(self, name: str, program: str) -> None:
        """Declare the options of a subcommand.

        :param program: the name that the program was called by; examples use it.
        """
        command: Any = import_module(f".commands.{name}", __package__)
        text, _, examples = command.__doc__.partition(_EXAMPLES)
        lines = (line.strip() for line in examples.splitlines())
        self.examples = [program + line.removeprefix("diskwright") for line in lines if line]
        self.exit_codes = getattr(command, "EXIT_CODES", EXIT_CODES)
        self.description = text.strip()
        self.epilog = _epilog(self)
        self.formatter_class = HelpFormatter
        command.add_arguments(self)
        self.add_argument(
            "--object",
            dest="objects",
            metavar="OBJECT",
            action="append",
            default=[],
            help="define what images refer to, as secret,id=ID,file=FILE ('help' and 'TYPE,help' tell more)",
        )
        self.add_argument(
            "--policy",
            dest="policies",
            metavar="POLICY",
            action="append",
            default=[],
            help="what may be opened and used, as backing=off,protocols=file,directories=/srv,memory=512M,time=10",
        )


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions, and begins as users of image tools expect it."""

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, prefix or "Usage: ")

    def _format_usage(self, *parts: Any) -> str:
        return super()._format_usage(*parts).replace(" ]", "]")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs != "?":
            return super()._format_action_invocation(action)
        # The value follows an equals sign, not a space.
        return ", ".join(f"{name}[={action.metavar}]" if name[:2] == "--" else name for name in action.option_strings)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """What stands for values: the metavar of operands tells by itself how many there are."""
        if action.option_strings and action.nargs == "?":
            return ""
        return super()._format_args(action, default_metavar) if action.option_strings else str(action.metavar)


def _epilog(parser: CommandParser) -> str:
    codes = [f"  {code:<3} {text}" for code, text in parser.exit_codes.items()]
    return "\n".join(["Exit codes:", *codes, "", "Examples:", *(f"  {line}" for line in parser.examples)])


def command_parser(name: str, program: str) -> CommandParser:
    """The parser of a subcommand.

    :param name: one of :data:`COMMANDS`.
    :param program: the name that the program was called by.
    """
    parser = CommandParser(prog=f"{program} {name}")
    parser.declare(name, program)
    return parser


def program_parser(program: str) -> Parser:
    """The parser of what stands before the subcommand."""
    parser = Parser(
        prog=program,
        usage="%(prog)s [STANDARD OPTIONS] COMMAND [OPTIONS] ARGUMENTS",
        add_help=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("-V", "--version", action="store_true", help="show the version")
    parser.add_argument(
        "-T",
        "--trace",
        metavar="TRACE",
        action="append",
        default=[],
        help="print events, as 'file_*,file=LOG' ('help' lists them)",
    )
    return parser


def whole_parser(program: str) -> Parser:
    """The parser of the program with those of all subcommands in it; to be described, it cannot parse."""
    parser = program_parser(program)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=CommandParser)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text).declare(name, program)
    return parser


def program_help(program: str) -> str:
    """What ``--help`` prints of the program itself, from its usage on. No driver is loaded for it."""
    from textwrap import wrap

    from .discovery import GROUPS, entry_points

    names = " ".join(sorted({point.name for group in GROUPS for point in entry_points(group)}))
    parser = program_parser(program)
    parser.description = f"{SUMMARY[0].upper()}{SUMMARY[1:]}."
    lines = [
        parser.format_help().rstrip("\n"),
        "",
        "Commands:",
        *(f"  {name} - {text}" for name, text in COMMANDS.items()),
        "",
        f"'{program} COMMAND --help' tells the options of a command.",
        "",
        "Supported image formats:",
        "",
        *wrap(names, 75, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False),
    ]
    return "\n".join(lines) + "\n"
