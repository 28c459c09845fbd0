"""A disk that compresses whatever is written to it."""

from __future__ import annotations

from diskwright.errors import UnsupportedOperation
from diskwright.node import Bytes, Compressing, WritableImage
from diskwright.passing import Passing


class Compress(Passing):
    """Writes whole clusters, compressed; around a smaller write stands what is there already.

    :param below: an image that is :class:`Compressing`.
    """

    def __init__(self, below: WritableImage, *, writable: bool) -> None:
        super().__init__(below, writable=writable)
        self.compressor = below
        # One lock for both: nobody may write to a cluster between reading what it holds and storing it again.
        self.lock = below.lock

    def write_at(self, offset: int, data: Bytes) -> None:
        """Store each cluster that the data touches; threads compress whole ones in parallel."""
        view = memoryview(data).cast("B")
        if self.store_zeros(offset, view):
            return
        cluster = self._cluster
        end = offset + len(view)
        position = offset
        while position < end:
            stop = min(end, (position // cluster + 1) * cluster)
            self._write_in_cluster(position, view[position - offset : stop - offset])
            position = stop

    @property
    def _cluster(self) -> int:
        if not self.cluster_size:
            raise UnsupportedOperation(f"Format driver '{self.below.driver}' has no clusters to compress")
        return self.cluster_size

    def _write_in_cluster(self, offset: int, part: memoryview) -> None:
        start = offset // self._cluster * self._cluster
        stop = min(self.size, start + self._cluster)
        if len(part) == stop - start:
            self._store(start, part)
            return
        with self.lock:
            whole = bytearray(stop - start)
            self.below.read_into(start, whole)
            whole[offset - start : offset - start + len(part)] = part
            self._store(start, memoryview(whole))

    def _store(self, start: int, data: memoryview) -> None:
        """Store one cluster; at the end of the disk it may be cut short."""
        image = self.compressor
        if not isinstance(image, Compressing):
            raise UnsupportedOperation(f"Compression is not supported for underlying format: {image.driver}")
        whole = data if len(data) == self._cluster else memoryview(bytes(data).ljust(self._cluster, b"\0"))
        blob = image.compress(whole)
        with self.lock:
            if blob is None:
                image.write_at(start, data)
            else:
                image.write_compressed([(start, blob)])

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Whole clusters become zeros by the means of the image; parts of one are written."""
        end = offset + length
        first = min(end, -(-offset // self._cluster) * self._cluster)
        last = end if end == self.size else max(first, end // self._cluster * self._cluster)
        with self.lock:
            if first > offset:
                self._write_in_cluster(offset, memoryview(bytes(first - offset)))
            if last > first:
                super().write_zeroes(first, last - first, unmap=unmap)
            if end > last:
                self._write_in_cluster(last, memoryview(bytes(end - last)))
