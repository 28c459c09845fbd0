"""``python -m benchmarks``: measure, and write table, JSON and plots."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from . import inprocess, machine, plot, report, scale
from .operations import OPERATIONS, chosen
from .process import Launcher, RunFailed
from .results import Inside, Row
from .runner import Setting, measure
from .workloads import GIB, MIB, QUICK, NoSpace, Sizes, Workshop, fragmented_size

ROOT = Path(__file__).parent.parent
UNITS = {"K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for.

    :returns: 0, whatever the figures are; 1 if something failed or contents differ that must not; 2 if nothing could be
        done; 130 if interrupted.
    """
    options = _parse(arguments)
    names = chosen(options.only, [operation.name for operation in OPERATIONS] + [*inprocess.NAMES])
    series = chosen(options.only, [*scale.SERIES])
    if options.list or not (series if options.scale else names):
        print("\n".join(scale.SERIES if options.scale else [*(item.name for item in OPERATIONS), *inprocess.NAMES]))
        return 0 if options.list else 2
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _setting(options) as setting:
            return _scale(setting, options, series) if options.scale else _side_by_side(setting, options, names)
    except NoSpace as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what was running has been ended", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure diskwright beside qemu-img; docs/performance.md tells how to read the result.",
    )
    add = parser.add_argument
    add("--scale", action="store_true", help="measure how time and memory grow, instead of single operations")
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="operations to measure: a name, pattern or part of it",
    )
    add("--list", action="store_true", help="list the names and end")
    add(
        "--runs", type=int, metavar="N", help="measured runs of each program (default: 5; 3 for --scale; 2 for --quick)"
    )
    add("--size", type=_size, metavar="SIZE", help="of the file system image (default: 4G)")
    add("--quick", action="store_true", help="small workloads, two minutes: to see that all works, not for figures")
    add("--cold", action="store_true", help="take what is read out of the page cache before each run")
    add("--no-limits", action="store_true", help="do not measure what the machine could do at best")
    add("--address-space", type=_size, metavar="SIZE", help="run both programs under this RLIMIT_AS")
    add("--directory", type=Path, help="for workloads (default: $DISKWRIGHT_BENCH_DIR or build/bench)")
    add("--output", type=Path, help="for the results (default: DIRECTORY/results)")
    add("--ours", help="our program (default: the one of this Python)")
    add("--theirs", help="qemu-img (default: $DISKWRIGHT_QEMU_IMG, or what PATH has; 'none' for none)")
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs must be at least 1")
    options.runs = options.runs or (2 if options.quick else 3 if options.scale else 5)
    options.directory = (
        options.directory or Path(os.environ.get("DISKWRIGHT_BENCH_DIR") or ROOT / "build/bench")
    ).resolve()
    options.output = (options.output or options.directory / "results").resolve()
    options.ours = options.ours or str(Path(sys.executable).with_name("diskwright"))
    options.theirs = shutil.which(options.theirs or os.environ.get("DISKWRIGHT_QEMU_IMG") or "qemu-img")
    return options


def _size(text: str) -> int:
    unit = UNITS.get(text[-1:].upper(), 1)
    return int(text.rstrip("kKmMgGtT")) * unit // MIB * MIB


@contextmanager
def _setting(options: argparse.Namespace) -> Iterator[Setting]:
    """What the measurements share, and the end of it all: no process and no file is left but the workloads."""
    sizes = QUICK if options.quick else Sizes()
    if options.size:
        sizes = Sizes(options.size, sizes.sparse, sizes.clusters, sizes.layers)
    programs = {"ours": options.ours} | ({"theirs": options.theirs} if options.theirs else {})
    if not options.theirs:
        print("qemu-img is not installed (Debian: qemu-utils): ours is measured alone\n", file=sys.stderr)
    options.directory.mkdir(parents=True, exist_ok=True)
    shop = Workshop(options.directory, sizes, options.theirs or options.ours, _say)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="scratch-") as name:
        scratch = Path(name)
        with Launcher(scratch, options.address_space) as launcher:
            limit_runs = 0 if options.no_limits else 1 if options.quick else min(3, options.runs)
            yield Setting(launcher, shop, scratch, programs, options.runs, options.cold, limit_runs)


def _side_by_side(setting: Setting, options: argparse.Namespace, names: list[str]) -> int:
    operations = [operation for operation in OPERATIONS if operation.name in names]
    inside = [name for name in inprocess.NAMES if name in names]
    needed = {workload for operation in operations for workload in operation.workloads}
    largest = max(setting.shop.sizes.disk, fragmented_size(setting.shop.sizes))
    setting.shop.require_space(needed | inprocess.workloads(inside), 2 * largest)
    facts = _facts(setting, options)
    rows: list[Row] = []
    inside_rows: list[Inside] = []
    failures: list[str] = []
    try:
        for operation in operations:
            rows.append(measure(setting, operation, _say))
            _progress(rows[-1])
        for name in inside:
            _say(name)
            try:
                inside_rows.extend(inprocess.measure(setting, name))
            except RunFailed as error:
                failures.append(f"{name}: {error}")
    finally:  # what has been measured is kept, also if the rest is interrupted
        _say("")
        content = {
            **facts,
            "operations": [row.as_json() for row in rows],
            "in_process": [row.as_json() for row in inside_rows],
        }
        _show(setting, options, facts, rows, inside_rows)
        _write(options.output, "bench", content, lambda: plot.ratios(rows, inside_rows, _caption(facts)))
    failures += [f"{row.name}: {row.error}" for row in rows if row.error]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _show(
    setting: Setting, options: argparse.Namespace, facts: dict[str, Any], rows: list[Row], inside: list[Inside]
) -> None:
    print(_caption(facts))
    print(_about(setting.shop.sizes))
    if machine.busy(facts["machine"]["load"]):
        print(f"The machine was busy (load {facts['machine']['load']:.1f}): do not trust wall times.")
    print(
        f"Ratios ours/theirs, medians of {setting.runs} pairs of runs (lowest-highest); less than 1: ours took less.\n"
    )
    if rows:
        print(report.table(rows))
    if inside:
        print(f"\n{report.inside_table(inside)}")


def _scale(setting: Setting, options: argparse.Namespace, names: list[str]) -> int:
    scale.require_space(setting, options.quick)
    facts = _facts(setting, options)
    curves: list[scale.Curve] = []
    try:
        for name in names:
            curves.extend(scale.measure(setting, name, options.quick, _say))
    finally:
        _say("")
        print(_caption(facts) + "\n")
        print(scale.table(curves))
        content = {**facts, "curves": [curve.as_json() for curve in curves]}
        _write(options.output, "scale", content, lambda: plot.curves(curves, _caption(facts)))
    failures = [f"{curve.series}, {curve.name}: {curve.error}" for curve in curves if curve.error]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _facts(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": machine.facts(setting.launcher, setting.programs, setting.shop.directory),
        "options": {
            "runs": setting.runs,
            "cold": setting.cold,
            "quick": options.quick,
            "address_space": options.address_space,
            "sizes": vars(setting.shop.sizes),
        },
    }


def _caption(facts: dict[str, Any]) -> str:
    found = facts["machine"]
    programs = " beside ".join(program["version"] or "?" for program in found["programs"].values())
    processors = f"{found['processors']} x {found['processor']}"
    return f"{programs}; {processors}, {found['memory'] / GIB:.0f} GiB, {found['file_system']}"


def _about(sizes: Sizes) -> str:
    return (
        f"File system image {sizes.disk / GIB:g} GiB; sparse and preallocated disk {sizes.sparse / GIB:g} GiB; "
        f"fragmented image {sizes.clusters:,} clusters; chain of {sizes.layers} layers."
    )


def _write(directory: Path, name: str, content: dict[str, Any], draw: Callable[[], str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    report.write_json(directory / f"{name}.json", content)
    (directory / f"{name}.svg").write_text(draw())
    print(f"\n{directory}/{name}.json and {name}.svg have all of it.")


def _progress(row: Row) -> None:
    if not sys.stderr.isatty():
        print(report.table([row]).splitlines()[-1], file=sys.stderr, flush=True)


def _say(text: str) -> None:
    """Tell what is going on, in a line that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
