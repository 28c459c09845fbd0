"""The command line: finds the subcommand, runs it, and turns failures into one line and an exit code.

Nothing here or at import time loads a plugin or anything heavy; each subcommand's module is imported when it is chosen.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .arguments import Parser, UsageError, help_hint
from .errors import ImageError, UnknownFormat, reason_of
from .known import did_you_mean
from .limits import TimeIsOver
from .render.printer import Printer

if TYPE_CHECKING:
    from types import FrameType

    from .context import Context

COMMANDS = {
    "amend": "change options of an existing image",
    "bench": "measure how fast an image answers many requests",
    "bitmap": "change the persistent dirty bitmaps of an image",
    "check": "look for inconsistencies in an image and repair them",
    "checksum": "print a checksum of the content, the same for any format",
    "commit": "write what an overlay holds into its backing file",
    "compare": "tell whether two images have the same content",
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

QEMU_IMG = "qemu-img"

UNTRUSTED = "untrusted"
"""The policy that commands with an option of this name apply then."""

COMPATIBLE_VERSION = "10.0.2"
"""The version of QEMU whose options and messages are followed; told to programs that look for a minimum."""

TRACEBACK_VARIABLE = "DISKWRIGHT_TRACEBACK"
"""Environment variable: if set, expected errors show their traceback too."""

PROGRESS_SIGNALS = ("SIGUSR1", "SIGINFO")
"""Names of the signals that ask how far an operation has come; not every system has both."""


class Interrupted(BaseException):
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        self.number = number


class App:
    """What a subcommand works with.

    :ivar out: standard output.
    :ivar err: standard error.
    :ivar program: the name that messages start with.
    :ivar policies: what the user allows, in the syntax of :func:`diskwright.policy.parse_policy`.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.out = Printer(sys.stdout)
        self.err = Printer(sys.stderr)
        self._context: Context | None = None
        self.policies: list[str] = []

    @property
    def context(self) -> Context:
        """Drivers and policy; made when first used."""
        if self._context is None:
            from .context import Context
            from .limits import apply
            from .policy import Policy, parse_policy

            self._context = Context(reduce(Policy.narrowed, map(parse_policy, self.policies), Policy()))
            apply(self._context.gate.policy)
            self._context.warn = self._warn_of_image
        return self._context

    def error(self, message: str, hint: str = "", teller: str = "") -> None:
        """Tell of a failure.

        :param teller: who says so, if it is not the program as such.
        """
        self.err.line(f"{teller or self.program}: {message}")
        if hint:
            self.err.lines(hint)

    def warn(self, message: str) -> None:
        """Tell of something that does not stop the command."""
        self.err.line(f"{self.program}: warning: {message}")

    def _warn_of_image(self, text: str) -> None:
        if "\n" in text:
            self.err.lines(text.removesuffix("\n"))
        else:
            self.warn(text)


def main(arguments: list[str] | None = None, program: str = "diskwright") -> int:
    """Run the command line.

    :param arguments: as in ``sys.argv[1:]``, which is the default.
    :returns: the exit code.
    """
    # Image work needs no linear algebra: the threads that numpy's would start only take address space.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app = App(program)
    try:
        code = _dispatch(app, sys.argv[1:] if arguments is None else arguments)
        app.out.flush()
    except (Exception, KeyboardInterrupt, Interrupted, TimeIsOver) as failure:
        return _report(app, failure)
    return code


def _report(app: App, failure: BaseException) -> int:
    """Tell in one line why the program ends early; its exit code. A failure nobody expects keeps its traceback."""
    if isinstance(failure, Interrupted):
        return 128 + failure.number
    if isinstance(failure, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(failure, TimeIsOver):
        app.error(str(failure))
        return 1
    if isinstance(failure, BrokenPipeError) and not isinstance(failure, ImageError):
        _silence_stdout()
        return 128 + signal.SIGPIPE
    if not isinstance(failure, ImageError | MemoryError | OSError):
        raise failure
    if os.environ.get(TRACEBACK_VARIABLE):
        import traceback

        app.err.lines("".join(traceback.format_exception(failure)).rstrip("\n"))
    try:
        app.out.flush()
    except OSError:
        _silence_stdout()
    if isinstance(failure, ImageError):
        if failure.before:
            app.error(failure.before)
        app.error(str(failure), failure.hint, getattr(failure, "teller", ""))
        return failure.exit_code
    app.error(reason_of(failure) if isinstance(failure, OSError) else "Out of memory")
    return 1


def entry_point() -> NoReturn:
    """The installed program: the name it is called by is the one it answers with."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    for name in PROGRESS_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)  # until something has progress to tell of
    program = os.path.basename(sys.argv[0])
    sys.exit(main(program="diskwright" if program == "__main__.py" else program))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _dispatch(app: App, arguments: list[str]) -> int:
    parser = Parser(prog=app.program, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-V", "--version", action="store_true")
    parser.add_argument("-T", "--trace", action="append", default=[])
    options = parser.parse(arguments, first_only=True)
    if options.help:
        app.out.write(_help(app.program))
        return 0
    if options.version:
        app.out.write(_version(app.program))
        return 0
    for text in options.trace:
        app.warn(f"trace event '{text}' does not exist")
    if not options.operands:
        raise UsageError("Not enough arguments", hint=help_hint(app.program))
    name, *rest = options.operands
    if name not in COMMANDS:
        advice = [did_you_mean(name, COMMANDS), help_hint(app.program)]
        raise UsageError(f"Command not found: {name}", hint="\n".join(filter(None, advice)))
    return _run(app, name, rest)


def _run(app: App, name: str, arguments: list[str]) -> int:
    """Run a subcommand."""
    command: Any = import_module(f".commands.{name}", __package__)
    parser = Parser(prog=f"{app.program} {name}", description=command.__doc__, formatter_class=_HelpFormatter)
    command.add_arguments(parser)
    parser.add_argument(
        "--object",
        dest="objects",
        metavar="OBJECT",
        action="append",
        default=[],
        help="define a secret that images refer to: secret,id=ID,file=FILE",
    )
    parser.add_argument(
        "--policy",
        dest="policies",
        metavar="POLICY",
        action="append",
        default=[],
        help="what may be opened and used, as backing=off,protocols=file,directories=/srv,memory=512M,time=10",
    )
    split = getattr(command, "split_operands", None)
    arguments, operands = split(arguments) if split else (arguments, [])
    try:
        options = parser.parse(arguments)
    except SystemExit:  # --help has been printed
        return 0
    options.operands += operands
    app.policies = options.policies + ([UNTRUSTED] if getattr(options, "untrusted", False) else [])
    try:
        for text in options.objects:
            app.context.objects.add(text)
        code: int = command.run(options, app)
    except UsageError as error:
        error.hint = error.hint or help_hint(parser.prog)
        raise
    except UnknownFormat as error:
        error.hint = error.hint or _similar_format(options)
        raise
    return code


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions, and begins as users of image tools expect it."""

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, prefix or "Usage: ")


def _version(program: str) -> str:
    """What ``--version`` prints: by the name of qemu-img, in its form, since programs look for what it can do."""
    if program != QEMU_IMG:
        return f"diskwright {__version__}\n"
    return (
        f"{QEMU_IMG} version {COMPATIBLE_VERSION} (diskwright {__version__})\n"
        "Copyright (c) the diskwright authors. An independent program, not made by the QEMU project.\n"
    )


def _help(program: str) -> str:
    from textwrap import wrap

    from .discovery import FORMAT_GROUP, PROTOCOL_GROUP, entry_points

    names = " ".join(sorted({point.name for group in (FORMAT_GROUP, PROTOCOL_GROUP) for point in entry_points(group)}))
    lines = [
        _version(program).rstrip("\n"),
        f"Usage: {program} [-h | --help] [-V | --version] COMMAND [OPTIONS] ARGUMENTS",
        "",
        "Create, inspect, convert, check and change virtual disk images.",
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


def _similar_format(options: argparse.Namespace) -> str:
    """Advice for a format that does not exist: the installed one that was probably meant."""
    from .discovery import FORMAT_GROUP, entry_points

    installed = {point.name for point in entry_points(FORMAT_GROUP)}
    for name, value in vars(options).items():
        if name.endswith("format") and isinstance(value, str) and value not in installed:
            return did_you_mean(value, installed)
    return ""


def _silence_stdout() -> None:
    """Nobody reads standard output any more: keep the interpreter from complaining when it flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
