"""The map of a disk through all its layers, and reading by it.

Each layer's map comes in tables; where a layer has nothing, the table of the layer below is laid under it. That happens
with array operations, table by table, so that time goes by the number of extents and memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..extent import NO_OFFSET, Extent, ExtentTable, Flag, Kind, distinct, merged, row_starts, tabulate
from ..node import Image, Node, read_extent

if TYPE_CHECKING:
    from ..extent import Column

FAR = 64 << 20
"""Bytes: two absent ranges with more than this between them are asked for separately in the layer below."""


def layers(image: Image) -> list[Node]:
    """The layers of a disk from top to bottom; a map's ``depth`` is an index into this list."""
    found: list[Node] = []
    layer: Node | None = image
    while layer is not None:
        found.append(layer)
        layer = layer.backing if isinstance(layer, Image) else None
    return found


def resolve(
    image: Image, offset: int = 0, length: int | None = None, *, holes: bool = True, depth_limit: int | None = None
) -> Iterator[ExtentTable]:
    """Map a range of a disk through all its layers.

    :param length: bytes; up to the end of the disk if None.
    :param holes: whether to look for holes of the file inside data where the format says there may be some; a hole
        found so is of kind zero, has a ``node_offset`` and keeps :attr:`Flag.SPARSE`.
    :param depth_limit: how many layers to look at, all if None.
    :returns: tables in order, without gaps. Absent remain only ranges that none of the layers has; their depth is that
        of the last layer looked at.
    """
    chain = layers(image)[:depth_limit]
    # One iterator per layer being looked into, the deepest on top: a stack of our own, as chains may be longer than
    # Python's.
    stack = [_layer_tables(chain[0], offset, image.size - offset if length is None else length, 0)]
    while stack:
        table = next(stack[-1], None)
        if table is None:
            stack.pop()
            continue
        depth = len(stack)
        if depth < len(chain) and (table.rows["kind"] == Kind.ABSENT).any():
            stack.append(_underlaid(table, chain[depth], depth))
            continue
        if holes:
            table = _with_holes(table)
        yield table.coalesced()


def _layer_tables(layer: Node, offset: int, length: int, depth: int) -> Iterator[ExtentTable]:
    """One layer's own map of a range that may go beyond its end: there it is zero, and nothing lower shows through."""
    inside = min(length, max(0, layer.size - offset))
    if inside:
        for table in tabulate(layer.extents(offset, inside)):
            table.rows["depth"] = depth
            yield table
    if inside < length:
        yield from tabulate([Extent(offset + inside, length - inside, Kind.ZERO, depth=depth)])


def _underlaid(upper: ExtentTable, lower: Node, depth: int) -> Iterator[ExtentTable]:
    """The upper table again, with the lower layer's map where the upper one is absent."""
    position = upper.start
    for start, end in _absent_spans(upper):
        if start > position:
            yield upper.clipped(position, start)
        for table in _layer_tables(lower, start, end - start, depth):
            yield _overlay(upper.clipped(table.start, table.end), table, lower.size)
        position = end
    if position < upper.end:
        yield upper.clipped(position, upper.end)


def _absent_spans(table: ExtentTable) -> list[tuple[int, int]]:
    """Ranges that hold all absent rows."""
    rows = table.rows[table.rows["kind"] == Kind.ABSENT]
    return _spans(rows["offset"], rows["offset"] + rows["length"])


def _overlay(upper: ExtentTable, lower: ExtentTable, lower_size: int) -> ExtentTable:
    """Two maps of the same range as one: the lower one's rows stand where the upper one's are absent.

    :param lower_size: where the lower layer ends, bytes: behind that, the upper one may have space for the zeros.
    """
    offsets = row_starts(upper, lower)
    rows, below = upper.rows[upper.rows_at(offsets)], lower.rows[lower.rows_at(offsets)]
    absent = rows["kind"] == Kind.ABSENT
    below["node"] += len(upper.nodes)
    beyond = absent & (offsets >= lower_size)
    for column in ("kind", "flags", "depth"):
        rows[column][beyond] = below[column][beyond]
    rows[absent & ~beyond] = below[absent & ~beyond]
    _restart(rows, offsets, upper.end)
    return ExtentTable(rows, upper.nodes + lower.nodes).coalesced()


def _restart(rows: Column, offsets: Column, end: int) -> None:
    """Let each row start at a new offset inside it and end where the next one starts."""
    import numpy as np

    placed = rows["node_offset"] != NO_OFFSET
    rows["node_offset"][placed] += (offsets - rows["offset"])[placed]
    rows["offset"] = offsets
    rows["length"] = np.diff(offsets, append=end)


def _with_holes(table: ExtentTable) -> ExtentTable:
    """The table with sparse data cut up into data and holes, as the nodes that hold the data know them."""
    import numpy as np

    sparse = table.stored & (table.rows["flags"] & Flag.SPARSE != 0) & (table.rows["node_offset"] != NO_OFFSET)
    parts = [table.rows[~sparse]]
    for index in distinct(table.rows["node"][sparse]).tolist():
        node, rows = table.nodes[index], table.rows[sparse & (table.rows["node"] == index)]
        parts.append(rows if node is None else _cut_at_holes(rows, node))
    if len(parts) == 1:
        return table
    rows = np.concatenate(parts)
    return ExtentTable(rows[np.argsort(rows["offset"], kind="stable")], table.nodes)


def _cut_at_holes(rows: Column, node: Node) -> Column:
    """Rows of data in one node, cut where holes of it begin and end; those in holes are zeros."""
    import numpy as np

    starts, ends = rows["node_offset"], rows["node_offset"] + rows["length"]
    spans = _spans(np.sort(starts), np.sort(ends))
    inner = np.concatenate([t.rows for start, end in spans for t in _layer_tables(node, start, end - start, 0)])
    first = np.searchsorted(inner["offset"], starts, side="right") - 1
    counts = np.searchsorted(inner["offset"], ends, side="left") - first
    row = np.repeat(np.arange(len(rows)), counts)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
    begin = np.maximum(inner["offset"][piece], starts[row])
    end = np.minimum((inner["offset"] + inner["length"])[piece], ends[row])
    cut = rows[row]
    cut["offset"] += begin - starts[row]
    cut["node_offset"] = begin
    cut["length"] = end - begin
    cut["kind"][inner["kind"][piece] == Kind.ZERO] = Kind.ZERO
    return cut


def _spans(starts: Column, ends: Column) -> list[tuple[int, int]]:
    """Ranges that hold all of some sorted ones; those near each other share a range with what is between them."""
    begins, stops = merged(starts, ends, FAR + 1)
    return list(zip(begins.tolist(), stops.tolist(), strict=True))


def side_by_side(*maps: Iterator[ExtentTable]) -> Iterator[tuple[ExtentTable, ...]]:
    """Several maps of the same range, a part at a time: the tables of a tuple cover the same part."""
    tables = [table for table in (next(each, None) for each in maps) if table is not None]
    while len(tables) == len(maps):
        start, end = max(table.start for table in tables), min(table.end for table in tables)
        yield tuple(table.clipped(start, end) for table in tables)
        following = [next(each, None) if table.end == end else table for each, table in zip(maps, tables, strict=True)]
        tables = [table for table in following if table is not None]


def data_ranges(sources: Sequence[Image]) -> Iterator[tuple[int, int]]:
    """Where the disks of the sources, one behind the other, hold data: (offset, length) in bytes, in order."""
    base = 0
    for source in sources:
        for table in resolve(source):
            rows = table.rows[table.stored]
            yield from zip((rows["offset"] + base).tolist(), rows["length"].tolist(), strict=True)
        base += source.size


def read_extents(chain: list[Node], extents: Sequence[Extent], buffer: memoryview) -> None:
    """Fill a buffer with the guest bytes of some extents without gaps between them.

    :param chain: the disk's :func:`layers`.
    :param buffer: exactly as long as they are.
    """
    start = extents[0].offset
    for extent in extents:
        read_extent(chain[extent.depth], extent, buffer[extent.offset - start : extent.end - start])
