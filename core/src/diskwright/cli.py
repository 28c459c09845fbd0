"""The command line: finds the subcommand, runs it, and turns failures into one line and an exit code.

Nothing here or at import time loads a plugin or anything heavy; each subcommand's module is imported when it is chosen.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from . import COMPATIBLE_VERSION, __version__
from .arguments import UsageError, help_hint
from .errors import ImageError, reason_of
from .known import did_you_mean, without_advice
from .later import load_later
from .limits import TimeIsOver
from .parsers import COMMANDS, command_parser, program_help, program_parser
from .render.printer import Printer

if TYPE_CHECKING:
    from types import FrameType

    from .context import Context

QEMU_IMG = "qemu-img"

UNTRUSTED = "untrusted"
"""The policy that commands with an option of this name apply then."""

LARGE_BLOCK = 31 << 20
"""Bytes: the most that glibc learns to keep, less what it needs itself."""

OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""New objects after which Python looks for cycles, of which there are few here."""

RARELY_USED = (
    "ctypes",
    "numpy._core._add_newdocs",
    "numpy._core._add_newdocs_scalars",
    "pickle",
    "platform",
    "textwrap",
)
"""Modules that numpy imports for what few commands do, if any: a quarter of the time that it takes to load."""

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
    :ivar stop_tracing: called at the end; does nothing unless the program is traced.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.out = Printer(sys.stdout)
        self.err = Printer(sys.stderr)
        self._context: Context | None = None
        self.policies: list[str] = []
        self.stop_tracing: Callable[[], None] = lambda: None

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
        if self.program == QEMU_IMG:
            # Programs compare what it says.
            hint = without_advice(hint)
        if hint:
            self.err.lines(hint)
        self.err.flush()

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
    _settle()
    app = App(program)
    try:
        code = _dispatch(app, sys.argv[1:] if arguments is None else arguments)
        app.out.flush()
    except (Exception, KeyboardInterrupt, Interrupted, TimeIsOver) as failure:
        return _report(app, failure)
    finally:
        app.stop_tracing()
    return code


def _settle() -> None:
    """Prepare the process for modules, whose objects all stay, and for arrays, which come and go by the thousand."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    # Image work needs no linear algebra: the threads that numpy's would start only take address space.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # glibc returns a large block to the system as soon as it is free, until it has seen one as large come and go: the
    # page faults of those that follow would take longer than the work on them. This one is never touched.
    bytes(LARGE_BLOCK)


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
    code = _explain(app, failure)
    try:
        app.out.flush()  # not before: in one pipe for both, QEMU's errors precede what standard output still holds
    except OSError:
        _silence_stdout()
    return code


def _explain(app: App, failure: ImageError | MemoryError | OSError) -> int:
    if isinstance(failure, ImageError):
        if failure.before:
            app.error(failure.before)
        app.error(str(failure), failure.hint, getattr(failure, "teller", ""))
        return failure.exit_code
    app.error(reason_of(failure) if isinstance(failure, OSError) else "Out of memory")
    return 1


def entry_point() -> NoReturn:
    """The installed program: the name it is called by is the one it answers with."""
    load_later(*RARELY_USED)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    for name in PROGRESS_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)  # until something has progress to tell of
    program = os.path.basename(sys.argv[0])
    _leave(main(program="diskwright" if program == "__main__.py" else program))


def _leave(code: int) -> NoReturn:
    """End the process at once: to take its objects apart one by one would take longer than to describe an image."""
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it was closed when we began
                stream.flush()
    except OSError:
        sys.exit(code or 1)  # the interpreter tells, as far as it can
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _dispatch(app: App, arguments: list[str]) -> int:
    options = program_parser(app.program).parse(arguments, first_only=True)
    if options.help:
        app.out.write(_version(app.program) + program_help(app.program))
        return 0
    if options.version:
        app.out.write(_version(app.program))
        return 0
    if options.trace:
        from .trace_option import start_tracing
        from .tracing import stop

        app.stop_tracing = stop
        if start_tracing(app, options.trace, options.operands):
            return 0
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
    parser = command_parser(name, app.program)
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
            if _printed_object_help(app, text):
                return 0
            app.context.objects.add(text)
        code: int = command.run(options, app)
    except UsageError as error:
        error.hint = error.hint or help_hint(parser.prog)
        raise
    return code


def _printed_object_help(app: App, text: str) -> bool:
    """Whether an object's definition asks for help, which has been printed."""
    from .objects.store import object_help

    found = object_help(text)
    if found is not None:
        app.out.lines(found)
    return found is not None


def _version(program: str) -> str:
    """What ``--version`` prints: by the name of qemu-img, in its form, since programs look for what it can do."""
    if program != QEMU_IMG:
        return f"diskwright {__version__}\n"
    return (
        f"{QEMU_IMG} version {COMPATIBLE_VERSION} (diskwright {__version__})\n"
        "Copyright (c) the diskwright authors. An independent program, not made by the QEMU project.\n"
    )


def _silence_stdout() -> None:
    """Nobody reads standard output any more: keep the interpreter from complaining when it flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
