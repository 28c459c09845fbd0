"""Finding free host clusters, and making the refcount structures grow with the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diskwright.errors import NodeIOError
from diskwright.extent import runs_of

from . import events, layout
from .refcount import MAX_TABLE_ENTRIES, Column, RefcountBlocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WINDOW = 1024
"""Counts looked at first when searching a block; the window doubles from there."""


class Run(NamedTuple):
    """Neighbouring host clusters."""

    first: int
    length: int

    @property
    def end(self) -> int:
        """The cluster behind the last."""
        return self.first + self.length


class ClusterAllocator:
    """Hands out free clusters, lowest first, each with one reference.

    :param guard: called with each run before it is handed out; raises if metadata that is in use stands there.
    :param note: called with each run that is used for refcount structures.
    :ivar hint: clusters below this one are not looked at.
    :ivar moved_table: where a grown refcount table is to be written, ``None`` while it stays where it is.
    :ivar outgrown: places that were meant for it before it grew once more.
    """

    def __init__(
        self, blocks: RefcountBlocks, guard: Callable[[Run], None], note: Callable[[Run], None] = lambda _: None
    ) -> None:
        self.blocks = blocks
        self.hint = 0
        self.moved_table: Run | None = None
        self.outgrown: list[Run] = []
        self._guard = guard
        self._note = note
        self._known = Run(0, 0)

    def take(self, wanted: int) -> Run:
        """Allocate up to ``wanted`` neighbouring clusters, at least one: the first that are free."""
        if not self._known.length:
            self._known = self._search()
        free = self._known
        run = Run(free.first, min(wanted, free.length))
        self._claim(run)
        self._known = Run(run.end, free.length - run.length)
        self.hint = run.end
        return run

    def take_contiguous(self, number: int) -> Run:
        """Allocate exactly ``number`` neighbouring clusters."""
        if number == 1:
            return self.take(1)
        self._known = Run(0, 0)
        extra = 0
        while True:
            start = self._find(number + extra)
            missing = self._missing(start, start + number + extra)
            if missing and not self._make_room(missing[-1]):
                continue  # the table itself has moved into the free space
            if len(missing) == extra:
                break
            # Blocks that are not there yet go right behind the run, where they may need further ones.
            extra = len(missing)
        self._check(Run(start, number + extra))
        events.CLUSTER_ALLOC(start, number + extra)
        self.blocks.note("cluster_alloc")
        for place, index in enumerate(missing, start + number):
            self._create_block(index, place)
        self.blocks.add(start, number + extra)
        return Run(start, number)

    def freed(self, lowest: int) -> None:
        """Clusters from this one on may have become free."""
        if lowest < self.hint:
            self.hint = lowest
            self._known = Run(0, 0)

    def search_from(self, cluster: int) -> None:
        """Hand out no clusters below this one, until some of them are freed."""
        self.hint = cluster
        self._known = Run(0, 0)

    def _claim(self, run: Run) -> None:
        self._check(run)
        events.CLUSTER_ALLOC(run.first, run.length)
        self.blocks.note("cluster_alloc")
        self.blocks.add(run.first, run.length)

    def _check(self, run: Run) -> None:
        if run.end << self.blocks.cluster_bits > layout.MAX_HOST_OFFSET:
            raise NodeIOError("", OSError(27, "file too large"))
        self._guard(run)

    def _search(self) -> Run:
        """The first free clusters, inside one block; the block is made if there is none."""
        size = self.blocks.block_entries
        index, position = divmod(self.hint, size)
        while True:
            block = self.blocks.block(index)
            if block is None:
                return self._new_block(index, position)
            start = _next(block, position, free=True)
            if start < size:
                return Run(index * size + start, _next(block, start, free=False) - start)
            index, position = index + 1, 0

    def _new_block(self, index: int, position: int) -> Run:
        """Make a block that describes itself; what is free behind it."""
        if not self._make_room(index):
            return self._search()
        size = self.blocks.block_entries
        place = index * size + position
        self._check(Run(place, 1))
        self._create_block(index, place)
        self.blocks.add(place)
        if position + 1 == size:
            self.hint = place + 1
            return self._search()
        return Run(place + 1, size - position - 1)

    def _create_block(self, index: int, place: int) -> None:
        self.blocks.create(index, place << self.blocks.cluster_bits)
        self._note(Run(place, 1))

    def _make_room(self, index: int) -> bool:
        """See that the refcount table has an entry for a block; False if clusters were allocated for a larger one."""
        blocks = self.blocks
        if index < len(blocks.table):
            return True
        blocks.note("reftable_grow")
        per_cluster = (1 << blocks.cluster_bits) // layout.REFCOUNT_TABLE_ENTRY_SIZE
        # Half as much again, so that a growing image does not move its table often; and room to describe itself.
        clusters = -(-(index + 1) * 3 // 2 // per_cluster)
        clusters += -(-clusters // (blocks.block_entries * per_cluster)) + 1
        clusters = max(-(-(index + 2) // per_cluster), min(clusters, MAX_TABLE_ENTRIES // per_cluster))
        blocks.enlarge(clusters * per_cluster)
        if self.moved_table is not None:
            self.outgrown.append(self.moved_table)
        self.moved_table = self.take_contiguous(clusters)
        self._note(self.moved_table)
        return False

    def _missing(self, start: int, end: int) -> list[int]:
        """Blocks that clusters of a range need and that do not exist."""
        size = self.blocks.block_entries
        table = self.blocks.table
        needed = range(start // size, (end - 1) // size + 1)
        return [index for index in needed if index >= len(table) or not table[index]]

    def _find(self, number: int) -> int:
        """The first of ``number`` neighbouring free clusters, which may span blocks."""
        start = end = self.hint
        for run in self._free_runs():
            if run.first != end:
                start = run.first
            end = run.end
            if end - start >= number:
                return start
        return start

    def _free_runs(self) -> Iterator[Run]:
        """All free runs from the hint on, in order; the last is without end."""
        size = self.blocks.block_entries
        first_index, position = divmod(self.hint, size)
        for index in range(first_index, len(self.blocks.table)):
            block = self.blocks.block(index)
            if block is None:
                yield Run(index * size + position, size - position)
            else:
                base = index * size + position
                for start, end in runs_of(block[position:] == 0):
                    yield Run(base + start, end - start)
            position = 0
        last = max(first_index, len(self.blocks.table))
        yield Run(last * size + position, layout.MAX_HOST_OFFSET)


def _next(counts: Column, position: int, *, free: bool) -> int:
    """Index of the next count that is zero (or not) from a position on; the number of counts if there is none."""
    window = _WINDOW
    while position < len(counts):
        part = counts[position : position + window]
        matches = part == 0 if free else part != 0
        found = int(matches.argmax())
        if matches[found]:
            return position + found
        position += len(part)
        window *= 2
    return len(counts)
