"""What the library does in a process that runs already, against programs that are started for it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .process import RunFailed, module_command
from .results import Inside
from .runner import Setting
from .stats import spread

READ = 4096
"""Bytes of a random read."""
LARGEST_STEP = (1 << 31) - 1
"""Bytes."""
READS = 50_000
QUICK_READS = 5_000
PACKETS = 20
"""Opening is measured in so many packets, as one is too short for a clock."""

OPEN = "open and describe"
RANDOM = "random 4 KiB reads"
EXTENTS = "a million extents"
NAMES = (OPEN, RANDOM, EXTENTS)


def workloads(names: Sequence[str]) -> set[str]:
    """The workloads that measurements need."""
    return {workload for name in names for workload in _NEEDS[name]}


_NEEDS = {OPEN: ("small",), RANDOM: ("real_qcow2",), EXTENTS: ("fragmented",)}


def measure(setting: Setting, name: str) -> list[Inside]:
    """Measure one of :data:`NAMES`.

    :raises RunFailed: a program failed.
    """
    run: Callable[[Setting, Path], list[Inside]] = {OPEN: _open, RANDOM: _random, EXTENTS: _extents}[name]
    return run(setting, setting.shop.path(_NEEDS[name][0]))


def main(arguments: list[str]) -> None:
    """Measure the library, print seconds as JSON; called in a process of its own."""
    kind, name, *numbers = arguments
    print(json.dumps(WORK[kind](name, *map(int, numbers))))


def open_and_describe(name: str, count: int) -> float:
    """Seconds that one of ``count`` times takes to open an image, find out all that ``info`` tells, and close it."""
    import diskwright

    def once() -> None:
        with diskwright.open(name) as image:
            diskwright.describe(image)
            diskwright.snapshots(image)
            _ = image.size, image.allocated_size(), image.backing_file

    once()
    start = time.monotonic()
    for _ in range(count):
        once()
    return (time.monotonic() - start) / count


def random_reads(name: str, count: int, step: int) -> float:
    """Seconds that one of ``count`` reads of 4 KiB takes.

    :param step: bytes from one to the next, round and round the disk; 0: anywhere.
    """
    import diskwright

    buffer = bytearray(READ)
    with diskwright.open(name, "qcow2") as image:
        places = offsets(image.size, count, step)
        image.read_into(0, buffer)
        start = time.monotonic()
        for offset in places:
            image.read_into(offset, buffer)
        return (time.monotonic() - start) / count


def extents_one_by_one(name: str) -> tuple[float, int]:
    """Seconds to go over all extents of an image, one Python object each, and how many there are."""
    import diskwright

    with diskwright.open(name, "qcow2") as image:
        start = time.monotonic()
        count = sum(1 for _ in diskwright.extents(image))
        return time.monotonic() - start, count


def extents_in_tables(name: str) -> tuple[float, int]:
    """The same, as numpy tables."""
    import diskwright

    with diskwright.open(name, "qcow2") as image:
        start = time.monotonic()
        count = sum(len(table) for table in diskwright.extent_tables(image))
        return time.monotonic() - start, count


def offsets(size: int, count: int, step: int) -> list[int]:
    """Places of aligned 4 KiB blocks on a disk of so many bytes, each somewhere else."""
    import numpy as np

    blocks = size // READ
    if step:
        return [number * step % (blocks * READ) for number in range(count)]
    found: list[int] = (np.random.default_rng(1).integers(0, blocks, count) * READ).tolist()
    return found


def far_step(size: int) -> int:
    """A step over a disk, bytes, that visits places as if they were random: the golden section of the disk.

    It is an odd number of blocks, and no larger than qemu-img bench allows.
    """
    return (min(int(size // READ * 0.3819660113), LARGEST_STEP // READ - 1) // 2 * 2 + 1) * READ


WORK: dict[str, Callable[..., Any]] = {
    "open": open_and_describe,
    "random": random_reads,
    "extents": extents_one_by_one,
    "tables": extents_in_tables,
}


def _ours(setting: Setting, kind: str, path: Path, *numbers: int) -> Any:
    setting.launcher.run([*module_command("benchmarks.inprocess"), kind, str(path), *map(str, numbers)])
    return json.loads(setting.launcher.output())


def _open(setting: Setting, path: Path) -> list[Inside]:
    ours, theirs = [], []
    for _ in range(setting.runs):
        ours.append(_ours(setting, "open", path, 200))
        if "theirs" in setting.programs:
            command = [setting.programs["theirs"], "info", "--output=json", str(path)]
            theirs.append(spread([setting.launcher.run(command).wall for _ in range(PACKETS)]).median)
    return [Inside(OPEN, spread(ours), spread(theirs) if theirs else None, 0.05, "starting qemu-img info")]


def _random(setting: Setting, path: Path) -> list[Inside]:
    from .paths import recall

    recall(path)
    reads = QUICK_READS if setting.runs < 3 else READS
    size = _virtual_size(setting, path)
    step = far_step(size)
    stepping, anywhere, bench, io = [], [], [], []
    for _ in range(setting.runs):
        stepping.append(_ours(setting, "random", path, reads, step))
        if "theirs" in setting.programs:
            bench.append(_bench(setting, path, reads, step))
        anywhere.append(_ours(setting, "random", path, reads, 0))
        if program := _qemu_io(setting):
            io.append(_qemu_io_reads(setting, program, path, offsets(size, reads, 0)))
    return [
        Inside(f"{RANDOM}, far steps", spread(stepping), spread(bench) if bench else None, 2.0, "qemu-img bench -d 1"),
        Inside(f"{RANDOM}, anywhere", spread(anywhere), spread(io) if io else None, None, "qemu-io"),
    ]


def _virtual_size(setting: Setting, path: Path) -> int:
    setting.launcher.run([setting.programs["ours"], "info", "--output=json", str(path)])
    return int(json.loads(setting.launcher.output())["virtual-size"])


def _bench(setting: Setting, path: Path, reads: int, step: int) -> float:
    """Seconds of one read; the program itself tells, without its start."""
    options = ["-t", "writeback", "-d", "1", "-s", str(READ), "-c", str(reads), "-S", str(step), "-f", "qcow2"]
    setting.launcher.run([setting.programs["theirs"], "bench", *options, str(path)])
    told = re.search(r"completed in ([0-9.]+) seconds", setting.launcher.output())
    if told is None:
        raise RunFailed("qemu-img bench does not tell how long it took")
    return float(told[1]) / reads


def _qemu_io(setting: Setting) -> str | None:
    if "theirs" not in setting.programs:
        return None
    beside = Path(setting.programs["theirs"]).with_name("qemu-io")
    return str(beside) if beside.exists() else None


def _qemu_io_reads(setting: Setting, program: str, path: Path, places: Sequence[int]) -> float:
    """Seconds of one read by a script for qemu-io, without its start."""
    script = setting.scratch / "script"

    def seconds(commands: Sequence[str]) -> float:
        script.write_text("".join(f"{command}\n" for command in [*commands, "quit"]))
        shell = f'exec "{program}" -r -f qcow2 "{path}" <"{script}"'
        return setting.launcher.run(["sh", "-c", shell]).wall

    return (seconds([f"read -q {place} {READ}" for place in places]) - seconds([])) / len(places)


def _extents(setting: Setting, path: Path) -> list[Inside]:
    single, tables, theirs = [], [], []
    count = 0
    for _ in range(setting.runs):
        taken, count = _ours(setting, "extents", path)
        single.append(taken)
        tables.append(_ours(setting, "tables", path)[0])
        if "theirs" in setting.programs:
            command = [setting.programs["theirs"], "map", "--output=json", "-f", "qcow2", str(path)]
            theirs.append(setting.launcher.run(command).wall)
    reference = spread(theirs) if theirs else None
    return [
        Inside(f"{count:,} extents, one by one", spread(single), reference, None, "qemu-img map --output=json"),
        Inside(f"{count:,} extents, as tables", spread(tables), reference, None, "qemu-img map --output=json"),
    ]
