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
from .errors import ImageError, reason_of
from .limits import TimeIsOver
from .render.printer import Printer

if TYPE_CHECKING:
    from types import FrameType

    from .context import Context

COMMANDS = {
    "amend": "change options of an existing image",
    "bitmap": "change the persistent dirty bitmaps of an image",
    "check": "look for inconsistencies in an image and repair them",
    "commit": "write what an overlay holds into its backing file",
    "compare": "tell whether two images have the same content",
    "convert": "copy images into a new one, in any format",
    "create": "make a new, empty image",
    "info": "describe an image",
    "map": "show where the data of an image is",
    "measure": "tell how much space an image would take",
    "rebase": "give an overlay another backing file",
    "resize": "change the virtual size of an image",
    "snapshot": "list, make, apply and delete internal snapshots",
}
"""The subcommands; ``commands/NAME.py`` has the code of each."""

TRACEBACK_VARIABLE = "DISKWRIGHT_TRACEBACK"
"""Environment variable: if set, expected errors show their traceback too."""


class Interrupted(BaseException):
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        self.number = number


class Parser(argparse.ArgumentParser):
    """Ends with the exit code and the advice that users of image tools know."""

    def error(self, message: str) -> NoReturn:
        raise ImageError(message, hint=f"Try '{self.prog} --help' for more information")


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

    def error(self, message: str, hint: str = "") -> None:
        """Tell of a failure."""
        self.err.line(f"{self.program}: {message}")
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
    if not isinstance(failure, ImageError | MemoryError | OSError) or os.environ.get(TRACEBACK_VARIABLE):
        raise failure
    try:
        app.out.flush()
    except OSError:
        _silence_stdout()
    if isinstance(failure, ImageError):
        app.error(str(failure), failure.hint)
        return failure.exit_code
    app.error(reason_of(failure) if isinstance(failure, OSError) else "Out of memory")
    return 1


def entry_point() -> NoReturn:
    """The installed program: the name it is called by is the one it answers with."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    program = os.path.basename(sys.argv[0])
    sys.exit(main(program="diskwright" if program == "__main__.py" else program))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _dispatch(app: App, arguments: list[str]) -> int:
    if not arguments:
        raise ImageError("Not enough arguments", hint=f"Try '{app.program} --help' for more information")
    first, *rest = arguments
    if first in ("-h", "--help"):
        app.out.write(_help(app.program))
        return 0
    if first in ("-V", "--version"):
        app.out.line(f"{app.program} {__version__}")
        return 0
    if first.startswith("-"):
        raise ImageError(f"unrecognized option '{first}'", hint=f"Try '{app.program} --help' for more information")
    if first not in COMMANDS:
        raise ImageError(f"Command not found: {first}", hint=_similar_command(first))
    command: Any = import_module(f".commands.{first}", __package__)
    parser = Parser(
        prog=f"{app.program} {first}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    rest, operands = getattr(command, "split_operands", split_at_dashes)(rest)
    try:
        # Options may stand anywhere among the operands.
        options = parser.parse_intermixed_args(rest)
    except SystemExit as done:  # --help has been printed
        return int(done.code or 0)
    options.operands += operands
    app.policies = options.policies
    for text in options.objects:
        app.context.objects.add(text)
    code: int = command.run(options, app)
    return code


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after ``--``: what comes after are operands, even if they look like options."""
    if "--" not in arguments:
        return arguments, []
    index = arguments.index("--")
    return arguments[:index], arguments[index + 1 :]


def _help(program: str) -> str:
    width = max(map(len, COMMANDS))
    lines = [
        f"Usage: {program} COMMAND [OPTIONS] ARGUMENTS",
        "",
        "Create, inspect, convert, check and change virtual disk images.",
        "",
        "Commands:",
        *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
        "",
        f"'{program} COMMAND --help' tells the options of a command.",
    ]
    return "\n".join(lines) + "\n"


def _similar_command(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS, n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def _silence_stdout() -> None:
    """Nobody reads standard output any more: keep the interpreter from complaining when it flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
