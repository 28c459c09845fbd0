"""What is to be seen in an image, and whether that is what it was before or after an operation that did not end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..context import Context
from ..engine.checking import CheckRequest, check_file
from ..engine.snapshots import listed, view
from .faults import SECTOR


@dataclass(frozen=True)
class Seen:
    """What somebody who opens an image finds.

    :ivar content: the disk, all layers together.
    :ivar snapshots: name and content of each, by id.
    :ivar bitmaps: each one and the ranges that it marks, by name.
    """

    content: bytes
    snapshots: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    bitmaps: dict[str, Any] = field(default_factory=dict)


def look(path: Path | str, format: str, context: Context | None = None) -> Seen:
    """Open an image with its backing files and read all of it.

    :param context: knows the secrets that the image needs.
    """
    context = context or Context()
    with context.open(str(path), format) as image:
        snapshots = {}
        for snapshot in listed(context, image):
            with view(context, image, f"snapshot.id={snapshot.id}") as shown:
                snapshots[snapshot.id] = (snapshot.name, shown.read_at(0, shown.size))
        bitmaps: dict[str, Any] = {}
        if context.formats.has("bitmap_list", format):
            for bitmap in context.formats.call("bitmap_list", format, image=image):
                ranges: tuple[tuple[int, int], ...] = ()
                if not bitmap.inconsistent:
                    ranges = tuple(context.formats.call("bitmap_ranges", format, image=image, name=bitmap.name))
                bitmaps[bitmap.name] = (bitmap, ranges)
        return Seen(image.read_at(0, image.size), snapshots, bitmaps)


def require_sound(path: Path | str, format: str, context: Context | None = None) -> None:
    """The driver's own check finds leaks at most."""
    result = check_file(context or Context(), CheckRequest(str(path), format), lambda _: None).result
    assert (result.corruptions, result.check_errors) == (0, 0), result


def is_mixed(got: bytes, before: bytes, after: bytes) -> bool:
    """Whether each sector is as before or after, where a smaller disk counts as one with zeros behind its end."""
    if len(got) not in (len(before), len(after)):
        return False
    if got in (before, after):
        return True
    before, after = before.ljust(len(got), b"\0"), after.ljust(len(got), b"\0")
    return all(
        got[i : i + SECTOR] in (before[i : i + SECTOR], after[i : i + SECTOR]) for i in range(0, len(got), SECTOR)
    )


def require_before_or_after(got: Seen, before: Seen, after: Seen, *, atomic: bool) -> None:
    """Nothing is lost and nothing is made up; bitmaps that are inconsistent say that they are.

    :param atomic: the disk as a whole is as before or after, not each sector by itself.
    """
    if atomic:
        assert got.content in (before.content, after.content), "the disk is neither as before nor as after"
        assert got.snapshots in (before.snapshots, after.snapshots), "snapshots are neither as before nor as after"
    else:
        assert is_mixed(got.content, before.content, after.content), "the disk has sectors that it never had"
        assert list(got.snapshots) in (list(before.snapshots), list(after.snapshots)), "snapshots are missing"
        for id, (_, content) in got.snapshots.items():
            old, new = before.snapshots.get(id, ("", b""))[1], after.snapshots.get(id, ("", b""))[1]
            assert is_mixed(content, old, new), f"snapshot {id} has sectors that it never had"
    for name, (bitmap, ranges) in got.bitmaps.items():
        known = [seen.bitmaps[name] for seen in (before, after) if name in seen.bitmaps]
        assert known, f"bitmap {name} comes from nowhere"
        assert bitmap.inconsistent or (bitmap, ranges) in known, f"bitmap {name} says what it never said"
