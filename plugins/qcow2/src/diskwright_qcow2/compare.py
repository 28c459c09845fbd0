"""Comparing the refcounts of an image with the references that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diskwright.facts import CheckResult

if TYPE_CHECKING:
    from .check_references import References, StoredRefcounts
    from .refcount import Column

_AT_ONCE = 1 << 20
_ONCE = "further non-fatal corruption events will be suppressed"


class Difference(NamedTuple):
    """A cluster whose refcount is wrong, or, if both counts are negative, cannot be read."""

    cluster: int
    stored: int
    computed: int


class Comparison:
    """The differences between refcounts and references.

    :ivar highest: the last cluster that has any.
    :ivar leaks: clusters with too high a refcount.
    :ivar low: clusters with too low a refcount.
    :ivar unreadable: clusters with none that could be read.
    :ivar reason: why the first of them could not, if it is said.
    :ivar lost: whether any that is in use counts as free.
    :ivar shown: differences in order, no more than are shown of the largest kind.
    """

    def __init__(self, references: References, stored: StoredRefcounts) -> None:
        self.highest = self.leaks = self.low = self.unreadable = 0
        self.lost = False
        self.reason = stored.unreadable_reason()
        self.shown: list[Difference] = []
        if not references.counts[-1]:
            # Behind the last cluster of the file only what is referred to is looked at.
            stored.counts[-1] = 0
        last = len(references.counts) - (not references.counts[-1])
        for start, end in stored.unreadable:
            number = max(0, min(end, last) - start)
            self.unreadable += number
            self.shown += [Difference(start + i, -1, -1) for i in range(min(number, CheckResult.MAX_FINDINGS))]
        for start, end in stored.covered(references.touched_ranges()):
            for position in range(start, end, _AT_ONCE):
                stop = min(end, position + _AT_ONCE)
                self._compare(position, references.counts[position:stop], stored.counts[position:stop])
        self.shown.sort()

    def _compare(self, start: int, computed: Column, on_disk: Column) -> None:
        used = np.flatnonzero((computed != 0) | (on_disk != 0))
        if not len(used):
            return
        self.highest = start + int(used[-1])
        different = used[computed[used] != on_disk[used]]
        leaks = int((on_disk[different] > computed[different]).sum())
        self.leaks += leaks
        self.low += len(different) - leaks
        self.lost |= not on_disk[different].all()
        for index in different[: max(0, 2 * CheckResult.MAX_FINDINGS - len(self.shown))].tolist():
            self.shown.append(Difference(start + index, int(on_disk[index]), int(computed[index])))

    def report(self, result: CheckResult, *, leaks_fixed: bool = False, low_fixed: bool = False) -> None:
        """Note the differences, and count those that are not repaired."""
        reason = self.reason
        for cluster, stored, computed in self.shown:
            if stored < 0:
                if reason:
                    result.note(f"qcow2: Image is corrupt: {reason}; {_ONCE}")
                reason = ""
                result.note(f"Can't get refcount for cluster {cluster}: Input/output error")
                continue
            leak = stored > computed
            word = "Leaked" if leak else "ERROR"
            if leaks_fixed if leak else low_fixed:
                word = "Repairing"
            result.note(f"{word} cluster {cluster} refcount={stored} reference={computed}")
        result.check_errors += self.unreadable
        if not leaks_fixed:
            result.leaks += self.leaks
        if not low_fixed:
            result.corruptions += self.low
