"""Look for inconsistencies in an image and, with -r, repair them.

What the guest sees is never changed by a repair.

Examples:
  diskwright check disk.qcow2
  diskwright check --output json disk.qcow2
  diskwright check -r all disk.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from ..errors import ImageError
from .common import add_cache_option, add_output_argument, add_source_arguments, cache_mode, single_operand, wants_json

if TYPE_CHECKING:
    from ..cli import App
    from ..facts import CheckResult

EXIT_CLEAN, EXIT_FAILED, EXIT_CORRUPT, EXIT_LEAKS, EXIT_NO_CHECK = 0, 1, 2, 3, 63
EXIT_CODES = {
    EXIT_CLEAN: "nothing is wrong, or not any more",
    EXIT_FAILED: "the check failed",
    EXIT_CORRUPT: "there are corruptions",
    EXIT_LEAKS: "space is leaked, nothing else is wrong",
    EXIT_NO_CHECK: "the format has no check, or no repair",
}
REPAIRS = ("leaks", "all")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``check``."""
    add_source_arguments(parser)
    add_output_argument(parser)
    parser.add_argument(
        "-r", "--repair", metavar="leaks|all", choices=REPAIRS, help="repair leaked clusters, or all that can be"
    )
    add_cache_option(parser, "-T", "--cache", help="cache mode (default: writeback)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no summary")
    parser.add_argument("operands", nargs="*", metavar="FILENAME", help="the image")


def run(args: Namespace, app: App) -> int:
    """Run ``check``."""
    as_json = wants_json(args)
    if args.repair not in (None, *REPAIRS):
        raise UsageError(f"--repair (-r) expects 'leaks' or 'all' not '{args.repair}'")
    filename = single_operand(args)
    cache = cache_mode(args.cache)
    from ..engine.checking import CheckRequest, check_file
    from ..render.check_text import repair_lines

    def show_repair(result: CheckResult) -> None:
        _show_findings(app, result)
        if not args.quiet and not as_json:
            for line in repair_lines(result):
                app.out.line(line)

    request = CheckRequest(filename, args.format, args.repair, args.force_share, cache)
    checked = check_file(app.context, request, show_repair)
    _show_findings(app, checked.result)
    _require_finished(app, checked.result)
    if not args.quiet:
        _report(app, filename, checked.driver, checked.result, as_json=as_json)
    return _exit_code(checked.result)


def _show_findings(app: App, result: CheckResult) -> None:
    for finding in result.findings:
        app.err.line(finding)
    app.err.flush()  # where both go to the same place, findings come before the summary


def _require_finished(app: App, result: CheckResult) -> None:
    """Fail if the check came to no end: what it counted is worth no summary."""
    if not result.failure:
        return
    if result.cause is not None:
        app.error(str(result.cause), result.cause.hint)
    raise ImageError(f"Check failed: {result.failure}")


def _report(app: App, filename: str, format: str, result: CheckResult, *, as_json: bool) -> None:
    from ..render.check_text import check_lines, check_object

    if as_json:
        from ..render.json_text import json_text

        app.out.write(json_text(check_object(filename, format, result)) + "\n")
        return
    for line in check_lines(result):
        app.out.line(line)


def _exit_code(result: CheckResult) -> int:
    if result.check_errors:
        raise ImageError("Check failed")
    if result.corruptions:
        return EXIT_CORRUPT
    return EXIT_LEAKS if result.leaks else EXIT_CLEAN
