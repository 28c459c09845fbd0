"""Arguments that several subcommands share, and how their values are understood."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..arguments import UsageError
from ..errors import InvalidOption
from ..sizes import parse_cli_size
from ..trees import OptionString

if TYPE_CHECKING:
    from ..cli import App
    from ..render.printer import Printer
    from ..render.progress import Progress

OUTPUT_FORMATS = ("human", "json")
CACHE_MODES = {mode: mode for mode in ("none", "directsync", "writeback", "unsafe", "writethrough")} | {"off": "none"}


def add_output_argument(parser: argparse.ArgumentParser, forms: Sequence[str] = OUTPUT_FORMATS) -> None:
    """``--output``; read it with :func:`wants_json`, or :func:`output_form` where there are more forms than two.

    :param forms: those there are, the default one first.
    """
    default, *others, last = forms
    parser.add_argument(
        "--output",
        metavar="FORMAT",
        choices=forms,
        default=default,
        help=f"how to print: {', '.join([f'{default} (default)', *others])} or {last}",
    )


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """``-f``, ``--image-opts`` and ``-U`` of commands that can read an image which is in use."""
    add_image_arguments(parser)
    parser.add_argument("-U", "--force-share", action="store_true", help="open even while another process writes to it")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """``-f`` and ``--image-opts``; read the operand with :func:`single_operand` or :func:`image_name`."""
    parser.add_argument("-f", "--format", metavar="FMT", help="format of the image; found by probing if not given")
    add_image_opts_argument(parser)


def add_image_opts_argument(parser: argparse.ArgumentParser, *other_names: str) -> None:
    """``--image-opts``, which may have other names too."""
    parser.add_argument(
        "--image-opts",
        *other_names,
        action="store_true",
        help="name images by options: driver=qcow2,file.filename=disk.qcow2",
    )


def add_quiet_argument(parser: argparse.ArgumentParser) -> None:
    """``-q``."""
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def add_progress_argument(parser: argparse.ArgumentParser) -> None:
    """``-p``; use it with :func:`progress_of`."""
    parser.add_argument(
        "-p",
        "--progress",
        nargs="?",
        const="text",
        metavar="json",
        choices=("text", "json"),
        help="show progress; =json: on stderr for programs",
    )


def progress_of(args: argparse.Namespace, app: App, step: float = 1.0, out: Printer | None = None) -> Progress:
    """What shows the progress of a command with ``-p``, and perhaps ``-q``, as it was asked for.

    :param step: percent by which it must have moved to be shown again to scripts.
    :param out: where to show it if not on standard output.
    :raises UsageError: it was to be shown in a form that does not exist.
    """
    from ..render.progress import Progress

    if args.progress not in (None, "text", "json"):
        raise UsageError(f"--progress expects 'text' or 'json' not '{args.progress}'")
    return Progress(out or app.out, app.err, shown=None if args.quiet else args.progress, step=step)


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """``-t`` of commands that write to an image; read it with :func:`cache_mode`."""
    add_cache_option(parser, "-t", "--cache", help="cache mode (default: writeback)")


def add_cache_option(parser: argparse.ArgumentParser, *names: str, help: str, default: str = "writeback") -> None:
    """An option whose value is a cache mode; read it with :func:`cache_mode`."""
    parser.add_argument(*names, metavar="MODE", choices=tuple(CACHE_MODES), default=default, help=help)


def add_rate_argument(parser: argparse.ArgumentParser) -> None:
    """``-r``; read it with :func:`rate_limit`."""
    parser.add_argument(
        "-r", "--rate-limit", "--rate", dest="rate", metavar="RATE", help="most bytes to write in a second"
    )


def rate_limit(text: str | None) -> int | None:
    """A rate as given with ``-r``, bytes per second; ``None`` for no limit.

    :raises InvalidOption: it is no size.
    """
    return None if text is None else parse_cli_size(text, "rate limit") or None


def snapshot_argument(text: str | None) -> None:
    """Check what was given with ``-l``.

    :raises InvalidOption: it has the form ``snapshot.NAME=VALUE`` and there is no such NAME.
    """
    if text is None:
        return
    from ..engine.snapshots import require_well_formed

    try:
        require_well_formed(text)
    except InvalidOption as error:
        raise InvalidOption(f"Failed in parsing snapshot param '{text}'", hint=error.hint, before=str(error)) from None


def wants_json(args: argparse.Namespace) -> bool:
    """Whether ``--output json`` was given.

    :raises InvalidOption: something else than the two forms was.
    """
    return output_form(args, OUTPUT_FORMATS) == "json"


def output_form(args: argparse.Namespace, forms: Sequence[str]) -> str:
    """The form that was asked for with ``--output``.

    :raises UsageError: it is none of those that there are.
    """
    form = str(args.output)
    if form not in forms:
        raise UsageError(f"--output expects 'human' or 'json' not '{form}'")
    return form


def single_operand(args: argparse.Namespace) -> str:
    """The only operand of a command that takes one image: a file name, or an option string after ``--image-opts``.

    :raises InvalidOption: there is none, or more than one, or an option string and a format.
    """
    if len(args.operands) != 1:
        raise UsageError("Expecting one image file name")
    return image_name(args, args.operands[0], args.format)


def image_name(args: argparse.Namespace, text: str, *formats: str | None) -> str:
    """What an operand names: a file, or the tree of an option string after ``--image-opts``.

    :param formats: the formats that were given for the operands.
    :raises InvalidOption: option strings name the format themselves.
    """
    if not args.image_opts:
        return text
    if any(format is not None for format in formats):
        raise InvalidOption("--image-opts and --format are mutually exclusive")
    return OptionString(text)


def cache_mode(text: str, noun: str = "source cache") -> str:
    """A cache mode as given with ``-T`` or ``-t``, by its usual name.

    :param noun: what the option is called in the message.
    :raises InvalidOption: there is no such mode.
    """
    if text not in CACHE_MODES:
        raise InvalidOption(f"Invalid {noun} option: {text}")
    return CACHE_MODES[text]
