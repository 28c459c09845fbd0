"""Arguments that several subcommands share, and how their values are understood."""

from __future__ import annotations

import argparse

from ..errors import InvalidOption

_CACHE_MODES = {mode: mode for mode in ("none", "directsync", "writeback", "unsafe", "writethrough")} | {"off": "none"}


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """``--output human|json``; read it with :func:`wants_json`."""
    parser.add_argument("--output", metavar="FORMAT", default="human", help="how to print: human (default) or json")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """``-f`` and ``-U`` of commands that only read one image."""
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image; found by probing if not given")
    parser.add_argument("-U", "--force-share", action="store_true", help="open even while another process writes to it")


def wants_json(args: argparse.Namespace) -> bool:
    """Whether ``--output json`` was given.

    :raises InvalidOption: something else than the two forms was.
    """
    if args.output not in ("human", "json"):
        raise InvalidOption(f"--output expects 'human' or 'json', not '{args.output}'")
    return bool(args.output == "json")


def single_operand(args: argparse.Namespace) -> str:
    """The only operand of a command that takes one image.

    :raises InvalidOption: there is none, or more than one.
    """
    if len(args.operands) != 1:
        raise InvalidOption("Expecting one image file name")
    return str(args.operands[0])


def cache_mode(text: str) -> str:
    """A cache mode as given with ``-T``, by its usual name.

    :raises InvalidOption: there is no such mode.
    """
    if text not in _CACHE_MODES:
        raise InvalidOption(f"Invalid source cache option: {text}")
    return _CACHE_MODES[text]
