"""What is measured: each operation is one command line, given to both programs, and the goals for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

MIB = 1 << 20
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Goals:
    """The most that ours may take. ``None``: no goal.

    :ivar wall: times their wall time.
    :ivar cpu: times their processor time.
    :ivar peak: bytes of memory.
    :ivar size: times the size of their output.
    :ivar over_python: seconds of processor time more than an interpreter that does nothing.
    """

    wall: float | None = None
    cpu: float | None = None
    peak: int | None = None
    size: float | None = None
    over_python: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Operation:
    """A command and what must come of it.

    :ivar command: subcommand and arguments. ``{out}`` is the output, ``{secret}`` the key of the LUKS volumes,
        other names in braces are workloads.
    :ivar changes: the workloads that it changes: each run gets copies of its own.
    :ivar result: the disk that it makes or changes, in the syntax of ``--image-opts``.
    :ivar like: a disk that must have the same content, in the same syntax.
    :ivar sound: whether ``check`` must find nothing wrong with the result.
    :ivar prints: how its standard outputs are compared: ``text``, ``json``, or not at all if empty.
    :ivar limits: what bounds it, as :func:`benchmarks.limits.measure` takes it.
    """

    name: str
    command: str
    goals: Goals = field(default_factory=Goals)
    changes: tuple[str, ...] = ()
    result: str = ""
    like: str = ""
    sound: bool = False
    prints: str = ""
    limits: tuple[str, ...] = ()

    @property
    def workloads(self) -> list[str]:
        """The names of all that it needs, in order, each once."""
        named = PLACE.findall(f"{self.command} {self.like} {' '.join(self.limits)}")
        return [name for name in dict.fromkeys([*named, *self.changes]) if name not in ("out", "secret")]


def fill(template: str, place: Callable[[str], str]) -> str:
    """A word of a command, or a disk's options, with files instead of the names in braces."""
    comma = ",," if template.startswith("driver=") else ","
    return PLACE.sub(lambda match: place(match[1]).replace(",", comma), template)


OUT = {format: f"driver={format},file.filename={{out}}" for format in ("raw", "qcow2")}
OUT_LUKS = "driver=luks,key-secret=key,file.filename={out}"
IN_LUKS = "driver=luks,key-secret=key,file.filename={real_luks}"

SAME = Goals(1.0, 1.1, 150 * MIB)
SPARSE = Goals(1.0, 1.0, 150 * MIB)


def _file(format: str, workload: str) -> str:
    return f"driver={format},file.filename={{{workload}}}"


def _convert(
    name: str,
    source: str,
    target: str,
    goals: Goals,
    *,
    options: str = "",
    like: str = "",
    limits: tuple[str, ...] = (),
) -> Operation:
    """Conversion of a workload, whose name ends in its format, into another format."""
    format = "raw" if source.endswith("_raw") else "qcow2"
    return Operation(
        name,
        f"convert -f {format} -O {target} {options}{' ' if options else ''}{{{source}}} {{out}}",
        goals,
        result=OUT[target],
        like=_file("raw", like) if like else _file(format, source),
        sound=target == "qcow2",
        limits=limits or (f"cp {{{source}}}", f"read {{{source}}}"),
    )


PLAIN = [
    _convert("raw -> qcow2", "real_raw", "qcow2", SAME),
    _convert("qcow2 -> raw", "real_qcow2", "raw", SAME, like="real_raw"),
    _convert("qcow2 -> qcow2", "real_qcow2", "qcow2", SAME, like="real_raw"),
    _convert("raw -> raw", "real_raw", "raw", SAME),
    _convert("random raw -> qcow2", "random_raw", "qcow2", SAME),
    _convert("random qcow2 -> raw", "random_qcow2", "raw", SAME, like="random_raw"),
    _convert("sparse raw -> qcow2", "sparse_raw", "qcow2", SPARSE),
    _convert("sparse qcow2 -> raw", "sparse_qcow2", "raw", SPARSE, like="sparse_raw"),
]

CODED = [
    _convert(
        "raw -> qcow2 -c zlib",
        "real_raw",
        "qcow2",
        Goals(0.5, 0.4, 150 * MIB, size=1.04),
        options="-c",
        limits=("read {real_raw}", "deflate {real_raw}"),
    ),
    _convert(
        "raw -> qcow2 -c zstd",
        "real_raw",
        "qcow2",
        Goals(1.0, 0.9, 150 * MIB, size=1.04),
        options="-c -o compression_type=zstd",
        limits=("read {real_raw}", "zstd {real_raw}"),
    ),
    _convert(
        "qcow2 zlib -> raw",
        "real_zlib",
        "raw",
        Goals(0.6, 0.7, 150 * MIB),
        like="real_raw",
        limits=("read {real_zlib}", "cp {real_raw}", "inflate {real_raw}"),
    ),
    _convert(
        "qcow2 zstd -> raw",
        "real_zstd",
        "raw",
        Goals(1.0, 1.1, 150 * MIB),
        like="real_raw",
        limits=("read {real_zstd}", "cp {real_raw}", "unzstd {real_raw}"),
    ),
    Operation(
        "raw -> luks",
        "convert --object {secret} -f raw -O luks -o key-secret=key,iter-time=10 {real_raw} {out}",
        Goals(0.5, 0.5, 150 * MIB),
        result=OUT_LUKS,
        like=_file("raw", "real_raw"),
        limits=("read {real_raw}", "cp {real_luks}", "xts {real_luks}"),
    ),
    Operation(
        "luks -> raw",
        f"convert --object {{secret}} --image-opts -O raw {IN_LUKS} {{out}}",
        Goals(0.9, 0.9, 150 * MIB),
        result=OUT["raw"],
        like=_file("raw", "real_raw"),
        limits=("read {real_luks}", "cp {real_raw}", "xts {real_luks}"),
    ),
]


def _metadata(name: str, command: str, goal: float, **more: Any) -> Operation:
    """Something that works on tables more than on data."""
    return Operation(name, command, Goals(goal, goal, 200 * MIB), **more)


READ_TABLES = ("read {preallocated}",)
PREALLOCATED = [
    _metadata("check, preallocated", "check -f qcow2 {preallocated}", 0.6, prints="text", limits=READ_TABLES),
    _metadata("map, preallocated", "map -f qcow2 --output=json {preallocated}", 0.8, prints="json", limits=READ_TABLES),
    _metadata(
        "measure, preallocated",
        "measure -f qcow2 -O qcow2 --output=json {preallocated}",
        0.6,
        prints="json",
        limits=READ_TABLES,
    ),
    _metadata(
        "snapshot -c, preallocated",
        "snapshot -c new {preallocated}",
        0.15,
        changes=("preallocated",),
        result=_file("qcow2", "preallocated"),
        sound=True,
        limits=READ_TABLES,
    ),
    _metadata(
        "snapshot -d, preallocated",
        "snapshot -d kept {with_snapshot}",
        0.15,
        changes=("with_snapshot",),
        result=_file("qcow2", "with_snapshot"),
        sound=True,
        limits=READ_TABLES,
    ),
]

LAYERS = ("fragmented", "frag_base", "frag_other")
FRAGMENTED = [
    _metadata("check, fragmented", "check -f qcow2 {fragmented}", 0.2, prints="text"),
    _metadata("map, fragmented", "map -f qcow2 --output=json {fragmented}", 1.0, prints="json"),
    _metadata(
        "commit, fragmented",
        "commit -f qcow2 {fragmented}",
        1.0,
        changes=LAYERS,
        result=_file("qcow2", "frag_base"),
        like=_file("raw", "fragmented_raw"),
        sound=True,
    ),
    _metadata(
        "rebase, fragmented",
        "rebase -f qcow2 -b frag-other.qcow2 -F qcow2 {fragmented}",
        1.0,
        changes=LAYERS,
        result=_file("qcow2", "fragmented"),
        like=_file("raw", "fragmented_raw"),
        sound=True,
    ),
    _metadata("compare, fragmented", "compare -f qcow2 -F raw {fragmented} {fragmented_raw}", 1.0, prints="text"),
]

COMPARED = Goals(1.0, 1.2, 150 * MIB)
OTHER = [
    Operation(
        "compare raw/raw",
        "compare -f raw -F raw {real_raw} {real_copy}",
        COMPARED,
        prints="text",
        limits=("read {real_raw}",),
    ),
    Operation(
        "compare raw/qcow2",
        "compare -f raw -F qcow2 {real_raw} {real_qcow2}",
        COMPARED,
        prints="text",
        limits=("read {real_raw}",),
    ),
    Operation(
        "info, small",
        "info --output=json {small}",
        Goals(peak=40 * MIB, over_python=0.040),
        prints="json",
    ),
    Operation("info, deep chain", "info --backing-chain --output=json {chain}", prints="json"),
    Operation("map, deep chain", "map -f qcow2 --output=json {chain}", prints="json"),
    Operation(
        "deep chain -> raw",
        "convert -f qcow2 -O raw {chain} {out}",
        result=OUT["raw"],
        like=_file("qcow2", "chain"),
    ),
]

OPERATIONS = [*PLAIN, *CODED, *PREALLOCATED, *FRAGMENTED, *OTHER]
"""All operations, in the order in which they are measured and shown."""


def chosen(patterns: list[str], names: list[str]) -> list[str]:
    """The names that patterns stand for, in their own order.

    :param patterns: each a name, a shell pattern, or a part of names; none: all names.
    """
    if not patterns:
        return names
    found = set()
    for pattern in patterns:
        exact = [name for name in names if name == pattern]
        found.update(exact or [name for name in names if fnmatchcase(name, pattern) or pattern in name])
    return [name for name in names if name in found]
