"""quorum: several nodes vote on what is read."""

from __future__ import annotations

import errno
import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

from diskwright.engine.chain import resolve
from diskwright.engine.ranges import joined
from diskwright.errors import ImageError, InvalidOption, NodeIOError, io_error
from diskwright.extent import Extent, Kind, tabulate
from diskwright.hookspecs import FilterOptions
from diskwright.node import Buffer, Bytes, Image, Lockable, Node, Permission, Placement, WritableImage
from diskwright.options import parse_number
from diskwright.passing import Passing

from .blkverify import first_difference

PATTERNS = ("quorum", "fifo")


class Quorum(WritableImage):
    """A disk whose bytes are what enough of its children say; writes go to all of them.

    :raises InvalidOption: options do not fit each other or the number of children.
    """

    def __init__(self, nodes: Sequence[Node], options: FilterOptions) -> None:
        super().__init__()
        self.read_only = not options.writable
        self._voters = [Passing(node, writable=options.writable) for node in nodes]
        values = options.values
        self._threshold = _threshold(str(values.get("vote-threshold", "0")), len(nodes))
        self._pattern = values.get("read-pattern", "quorum")
        if self._pattern not in PATTERNS:
            raise InvalidOption(f"invalid parameter value: {self._pattern}")
        asks_all = self._pattern == "quorum"
        self._verify = asks_all and bool(values.get("blkverify"))
        if self._verify and not len(nodes) == self._threshold == 2:
            raise InvalidOption("blkverify=on can only be set if there are exactly two files and vote-threshold is 2")
        self._rewrite = asks_all and bool(values.get("rewrite-corrupted"))
        if self._verify and self._rewrite:
            raise InvalidOption("rewrite-corrupted=on cannot be used with blkverify=on")
        if self._rewrite and self.read_only:
            raise InvalidOption("Block node is read-only")
        self.file = nodes[0]
        self.filename = self.file.filename
        if len({node.size for node in nodes}) > 1:
            raise io_error("Could not refresh total sector count", errno.EIO)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._voters[0].size

    def children(self) -> dict[str, Node]:
        """The last one first, as QEMU shows them."""
        return {f"children.{index}": voter.below for index, voter in reversed(list(enumerate(self._voters)))}

    def identity(self) -> Hashable | None:
        return None

    def set_permissions(self, used: Permission, shared: Permission) -> None:
        """All files are used in the same way."""
        for voter in self._voters:
            if isinstance(voter.below, Lockable):
                voter.set_permissions(used, shared)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Data where any child has some."""
        end = self.size if length is None else offset + length
        position = offset
        data = heapq.merge(*(_data(voter.below, offset, end - offset) for voter in self._voters))
        for start, stop in joined(data):
            if start > position:
                yield Extent(position, start - position, Kind.ZERO)
            yield Extent(start, stop - start, Kind.ENCODED)
            position = stop
        if position < end:
            yield Extent(position, end - position, Kind.ZERO)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """By vote."""
        self.read_into(offset, buffer)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """By vote, or from the first child that can.

        :raises NodeIOError: too few agree, or none can be read.
        """
        view = memoryview(buffer).cast("B")
        if self._pattern == "fifo":
            self._read_first(offset, view)
            return
        answers = self._ask(offset, len(view))
        present = [answer for answer in answers if answer is not None]
        if self._verify and len(present) == 2:
            self._require_same(offset, *present)
        votes = Counter(present).most_common(1)
        if not votes or votes[0][1] < self._threshold:
            raise io_error("", errno.EIO)
        winner = votes[0][0]
        if self._rewrite:
            for voter, answer in zip(self._voters, answers, strict=True):
                if answer is not None and answer != winner:
                    voter.write_at(offset, winner)
        view[:] = winner

    def _ask(self, offset: int, length: int) -> list[bytes | None]:
        """What each child says; ``None`` of one that cannot be read."""

        def answer(voter: Passing) -> bytes | None:
            try:
                return voter.read_at(offset, length)
            except (OSError, ImageError):
                return None

        return [answer(voter) for voter in self._voters]

    def _read_first(self, offset: int, view: memoryview) -> None:
        failure: Exception | None = None
        for voter in self._voters:
            try:
                voter.read_into(offset, view)
            except (OSError, ImageError) as error:
                failure = error
            else:
                return
        if failure is not None:
            raise failure

    def _require_same(self, offset: int, left: bytes, right: bytes) -> None:
        place = first_difference(memoryview(left), memoryview(right))
        if place < len(left):
            raise ImageError(f"quorum: offset={offset} bytes={len(left)} contents mismatch at offset {offset + place}")

    def write_at(self, offset: int, data: Bytes) -> None:
        """To all children."""
        self._all(lambda voter: voter.write_at(offset, data))

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Bytes are written to this node itself."""
        if offset + length > self.size:
            raise NodeIOError("", OSError(errno.ENOSPC, "No space left on device"))
        return [Placement(offset, length, self, offset)] if length else []

    def link(self, placements: Sequence[Placement]) -> None:
        """Nothing to do: the children have done it."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """In all children."""
        self._all(lambda voter: voter.write_zeroes(offset, length, unmap=unmap))

    def flush(self) -> None:
        """All children."""
        if not self.read_only:
            self._all(Passing.flush)

    def _all(self, act: Callable[[Passing], None]) -> None:
        """Do something to all children; enough of them must succeed."""
        failure: Exception | None = None
        succeeded = 0
        for voter in self._voters:
            try:
                act(voter)
            except (OSError, ImageError) as error:
                failure = failure or error
            else:
                succeeded += 1
        if failure is not None and succeeded < self._threshold:
            raise failure

    def release(self) -> None:
        """Close all, even if one cannot be closed properly."""
        failure: Exception | None = None
        for voter in self._voters:
            try:
                voter.release()
            except (OSError, ImageError) as error:
                failure = failure or error
        if failure is not None:
            raise failure


def _threshold(text: str, children: int) -> int:
    threshold = 0 if text.startswith("-") else parse_number("vote-threshold", text)
    if threshold < 1:
        raise InvalidOption("Parameter 'vote-threshold' expects a value >= 1")
    if not children:
        raise InvalidOption("Number of provided children must be 1 or more")
    if threshold > children:
        raise InvalidOption("threshold may not exceed children count")
    return threshold


def _data(node: Node, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Where a node has data, in all its layers: (start, end) in bytes."""
    tables = resolve(node, offset, length) if isinstance(node, Image) else tabulate(node.extents(offset, length))
    for table in tables:
        for extent in table:
            if extent.kind in (Kind.DATA, Kind.ENCODED):
                yield extent.offset, extent.end
