"""Where a disk would read differently on another backing file: found in the maps first, then in the bytes.

The maps tell which ranges may differ, as arrays; they are gathered in windows that are read at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..extent import Kind, merged, row_starts, run_edges, runs_of
from ..node import Image
from .chain import resolve, side_by_side
from .ranges import Range
from .zeros import block_runs, nonzero_blocks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..extent import Column

NEAR = 64 << 10
"""Bytes: ranges with less than this between them are read as one."""


class Ranges(NamedTuple):
    """Sorted ranges of a disk without overlaps.

    :ivar starts: offset of the first byte of each.
    :ivar ends: offset of the byte behind the last of each.
    """

    starts: Column
    ends: Column

    @property
    def start(self) -> int:
        """Where the first one starts."""
        return int(self.starts[0])

    @property
    def end(self) -> int:
        """Where the last one ends."""
        return int(self.ends[-1])


def suspects(top: Image, new: Image | None, depth_limit: int | None, block: int) -> Iterator[Ranges]:
    """What the top layer inherits and what has data in the old backing layers or in the new one, in whole blocks.

    :param new: the new backing file.
    :param depth_limit: number of layers to look at; what lies below is the same in both.
    """
    import numpy as np

    done = 0
    # Where the layers between say nothing, old and new share what is below: only they can make a difference.
    maps = [resolve(top, depth_limit=depth_limit)]
    if new is not None and depth_limit is None:
        maps.append(resolve(new, 0, top.size))
    for old, *others in side_by_side(*maps):
        offsets = row_starts(old, *others)
        place = old.rows_at(offsets)
        kinds, depths = old.rows["kind"][place], old.rows["depth"][place]
        suspect = old.stored[place]
        if depth_limit:
            suspect |= kinds == Kind.ZERO
        for table in others:
            suspect |= table.stored[table.rows_at(offsets)]
        suspect &= (depths > 0) | (kinds == Kind.ABSENT)
        firsts, ends = run_edges(suspect)
        ranges = _in_blocks(offsets[firsts], np.append(offsets, old.end)[ends], block, done, top.size)
        if len(ranges.starts):
            yield ranges
            done = ranges.end


def _in_blocks(starts: Column, ends: Column, block: int, done: int, size: int) -> Ranges:
    """Ranges rounded out to whole blocks, without what is done already, and those that touch each other as one."""
    import numpy as np

    starts, ends = np.maximum(starts // block * block, done), np.minimum(-(-ends // block) * block, size)
    left = starts < ends
    return Ranges(*merged(starts[left], ends[left]))


def windows(ranges: Iterable[Ranges], step: int) -> Iterator[Ranges]:
    """Ranges gathered that lie between the same multiples of ``step`` and near each other: they are read at once."""
    import numpy as np

    for starts, ends in ranges:
        breaks = np.flatnonzero(starts[1:] - ends[:-1] > NEAR) + 1
        index, position = 0, int(starts[0])
        while index < len(starts):
            limit = (position // step + 1) * step
            stop = int(starts.searchsorted(limit))
            following = int(breaks.searchsorted(index, side="right"))
            if following < len(breaks):
                stop = min(stop, int(breaks[following]))
            window = Ranges(starts[index:stop].copy(), np.minimum(ends[index:stop], limit))
            window.starts[0] = position
            yield window
            index = stop
            if ends[stop - 1] > limit:
                index, position = stop - 1, limit
            elif stop < len(starts):
                position = int(starts[stop])


def differing_runs(
    old: memoryview, new: memoryview | None, block: int, wanted: Ranges
) -> tuple[list[Range], list[Range]]:
    """Where a part of the disk differs from the new backing file, in whole blocks.

    :param new: what the new backing file has there; ``None`` for zeros.
    :param wanted: which ranges to look at, in whole blocks; the part goes from the first to the last.
    :returns: ranges, relative to the part, where the disk has data, and where it has zeros.
    """
    import numpy as np

    data = nonzero_blocks(old, block)
    borders = np.zeros(len(data) + 1, np.int8)
    borders[(wanted.starts - wanted.start) // block] = 1
    borders[-(-(wanted.ends - wanted.start) // block)] = -1
    differing = (data if new is None else _unequal_blocks(old, new, block)) & (borders.cumsum()[:-1] > 0)
    zeros = differing & ~data
    if zeros.any():
        for first, last in _short_zeros(differing, zeros, NEAR // block):
            zeros[first:last] = False
        return block_runs(differing & ~zeros, block, len(old)), block_runs(zeros, block, len(old))
    return block_runs(differing, block, len(old)), []


def _short_zeros(differing: npt.NDArray[np.bool_], zeros: npt.NDArray[np.bool_], most: int) -> Iterator[Range]:
    """Runs of up to so many blocks of zeros right behind or before data: they are written in one go with it."""
    data = (differing & ~zeros).tolist()
    for first, last in runs_of(zeros):
        if last - first <= most and (any(data[max(first - 1, 0) : first]) or any(data[last : last + 1])):
            yield first, last


def _unequal_blocks(left: memoryview, right: memoryview, block: int) -> npt.NDArray[np.bool_]:
    """Which blocks of two buffers of the same length differ; the last one may be shorter."""
    import numpy as np

    whole = len(left) // block * block
    unequal = np.ones(-(-len(left) // block), dtype=bool)
    words = [np.frombuffer(view[:whole], np.uint64).reshape(-1, block // 8) for view in (left, right)]
    unequal[: whole // block] = (words[0] != words[1]).any(axis=1)
    if whole < len(left):
        unequal[-1] = bytes(left[whole:]) != bytes(right[whole:])
    return unequal
