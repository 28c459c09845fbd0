"""What ``info`` and ``snapshot -l`` print, for people and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..engine.info import NodeInfo
from ..facts import Limits, Snapshot
from ..sizes import human_size

_INDENT = "    "


def info_object(info: NodeInfo) -> dict[str, Any]:
    """The facts as QEMU's ``ImageInfo``, ready for the JSON writer."""
    children = [{"name": role, "info": info_object(child)} for role, child in info.children.items()]
    specific = None if info.specific is None else {"type": info.specific_type or info.driver, "data": info.specific}
    facts: dict[str, Any] = {
        "filename": info.filename,
        "format": info.driver,
        "dirty-flag": info.dirty,
        "actual-size": info.allocated_size,
        "virtual-size": info.size,
        "cluster-size": info.cluster_size,
        "encrypted": info.encrypted or None,
        "backing-filename": info.backing_file,
        "full-backing-filename": info.backing_path,
        "backing-filename-format": info.backing_format,
        "limits": None if info.limits is None else limits_object(info.limits),
        "snapshots": [_snapshot_object(snapshot) for snapshot in info.snapshots] or None,
        "format-specific": specific,
        "children": children,
    }
    return {name: value for name, value in facts.items() if value is not None}


def limits_object(limits: Limits) -> dict[str, Any]:
    """Limits as QEMU's ``BlockLimitsInfo``."""
    facts = {name.replace("_", "-"): value for name, value in limits.as_dict().items()}
    return {name: value for name, value in facts.items() if value is not None}


def _snapshot_object(snapshot: Snapshot) -> dict[str, Any]:
    seconds, nanoseconds = divmod(snapshot.vm_clock_nsec, 10**9)
    facts: dict[str, Any] = {
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": seconds,
        "vm-clock-nsec": nanoseconds,
    }
    if snapshot.icount is not None:
        facts["icount"] = snapshot.icount
    return facts


def info_lines(info: NodeInfo, path: str = "") -> Iterator[str]:
    """The facts for people, a line each.

    :param path: the roles that lead from the image asked for to this node, each with a slash before it.
    """
    size = f"{human_size(info.size)} ({info.size} bytes)"
    if path and not info.children:
        yield from (f"filename: {info.filename}", f"protocol type: {info.driver}", f"file length: {size}")
    else:
        yield from (f"image: {info.filename}", f"file format: {info.driver}", f"virtual size: {size}")
    unknown = info.allocated_size is None
    yield f"disk size: {'unavailable' if unknown else human_size(info.allocated_size or 0)}"
    if info.encrypted:
        yield "encrypted: yes"
    if info.cluster_size:
        yield f"cluster_size: {info.cluster_size}"
    if info.dirty:
        yield "cleanly shut down: no"
    yield from _backing_lines(info)
    if info.limits is not None:
        yield "Block limits:"
        yield from _value_lines(limits_object(info.limits), 1)
    if info.snapshots:
        yield from snapshot_lines(info.snapshots)
    if info.specific:
        yield "Format specific information:"
        yield from _value_lines(info.specific, 1)
    for role, child in info.children.items():
        yield f"Child node '{path}/{role}':"
        for line in info_lines(child, f"{path}/{role}"):
            yield _INDENT + line


def _backing_lines(info: NodeInfo) -> Iterator[str]:
    if info.backing_file is None:
        return
    actual = ""
    if info.backing_path is None:
        actual = " (cannot determine actual path)"
    elif info.backing_path != info.backing_file:
        actual = f" (actual path: {info.backing_path})"
    yield f"backing file: {info.backing_file}{actual}"
    if info.backing_format:
        yield f"backing file format: {info.backing_format}"


def snapshot_lines(snapshots: Sequence[Snapshot]) -> Iterator[str]:
    """The table of internal snapshots, with title and header; dates are in local time."""
    yield "Snapshot list:"
    yield _row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")
    for snapshot in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.date_sec))
        minutes, milliseconds = divmod(snapshot.vm_clock_nsec // 10**6, 60_000)
        clock = f"{minutes // 60:04}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"
        icount = "--" if snapshot.icount is None else str(snapshot.icount)
        yield _row(snapshot.id, snapshot.name, human_size(snapshot.vm_state_size), date, clock, icount)


def _row(id: str, tag: str, size: str, date: str, clock: str, icount: str) -> str:
    return f"{_padded(id, 7)} {_padded(tag, 16)} {size:>8} {date:>19} {clock:>15} {icount:>10}"


def _padded(text: str, width: int) -> str:
    """Text filled up to a width in bytes, as C does it, so that columns are where scripts cut them."""
    return text + " " * (width - len(text.encode("utf-8", "replace")))


def _value_lines(value: Any, depth: int) -> Iterator[str]:
    """Nested facts, in the order of their JSON."""
    from .json_text import ordered_items

    indent = _INDENT * depth
    if isinstance(value, Mapping):
        labelled = [(key.replace("-", " "), item) for key, item in ordered_items(value)]
    else:
        labelled = [(f"[{index}]", item) for index, item in enumerate(value)]
    for label, item in labelled:
        if isinstance(item, Mapping) or (isinstance(item, Sequence) and not isinstance(item, str)):
            yield f"{indent}{label}:"
            yield from _value_lines(item, depth + 1)
        else:
            yield f"{indent}{label}: {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
