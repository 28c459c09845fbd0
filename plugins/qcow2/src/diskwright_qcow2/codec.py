"""Compression of clusters: raw deflate or zstd, each cluster a stream of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from diskwright.errors import InvalidImage
from diskwright.node import Bytes

from .layout import CompressionType

READ_WINDOW_BITS = -15
"""Raw deflate with any window: other writers than QEMU use more than 4 KiB."""
WRITE_WINDOW_BITS = -12
"""Raw deflate with a 4 KiB window: some readers allow no more."""
DEFLATE_LEVEL = 6
DEFLATE_MEMORY_LEVEL = 9
SAMPLE = 4096
"""Bytes of a cluster, spread over it, by which those that deflate cannot make smaller are told from others."""
UNEVEN = 400
"""Chi-square of the sample's byte values, of 256, above which a cluster is worth a try. What is compressed or encrypted
has 255 and a little more. With 400, two thousandths of the size are lost."""
PROBE = 8192
"""Bytes that are compressed to see whether they repeat each other."""
ZSTD_LEVEL = 3
ZSTD_MAX_WINDOW_BITS = 23
"""What any decoder is to support (RFC 8878); more would be memory that the stream asks for and no cluster needs."""

_per_thread = threading.local()


def decompress(codec: CompressionType, data: Bytes, cluster_size: int) -> bytes | bytearray:
    """One cluster from its compressed data, which may be followed by anything.

    :param cluster_size: bytes that the cluster must have; no more are ever produced.
    :raises InvalidImage: the data is damaged or ends early; the message is the reason only.
    """
    cluster = _DECOMPRESS[codec](data, cluster_size)
    if len(cluster) != cluster_size:
        raise InvalidImage(f"it holds {len(cluster)} of {cluster_size} bytes")
    return cluster


def compress(codec: CompressionType, data: Bytes, cluster_size: int) -> bytes | None:
    """One cluster compressed; ``None`` if that does not make it smaller. Threads may call this in parallel.

    :param data: at most a cluster; it is filled up with zeros.
    """
    if len(data) < cluster_size:
        data = bytes(data).ljust(cluster_size, b"\0")
    compressed = _COMPRESS[codec](data)
    return compressed if compressed is not None and len(compressed) < cluster_size else None


def _inflate(data: Bytes, cluster_size: int) -> bytes | bytearray:
    from deflate import DeflateError, deflate_decompress

    try:
        # Half the time of what works as a stream, as it knows how much there is to come.
        return deflate_decompress(data, cluster_size)
    except DeflateError:
        return _inflate_stream(data, cluster_size)


def _inflate_stream(data: Bytes, cluster_size: int) -> bytes:
    """What readers have always put up with: a stream that goes on behind the cluster, or breaks off there."""
    from zlib_ng import zlib_ng

    library: Any = zlib_ng  # its type stubs take the exception class for an instance
    try:
        return bytes(library.decompressobj(READ_WINDOW_BITS).decompress(data, cluster_size))
    except library.error as error:
        raise InvalidImage(str(error)) from None


def _deflate(data: Bytes) -> bytes | None:
    if len(data) <= 1 << -WRITE_WINDOW_BITS:
        # Nothing is out of the window's reach: the faster library will do, which knows none but large windows.
        from deflate import deflate_compress

        return bytes(deflate_compress(data, DEFLATE_LEVEL))
    return None if _is_noise(memoryview(data)) else _deflated(data, DEFLATE_LEVEL)


def _deflated(data: Bytes, level: int) -> bytes:
    from zlib_ng import zlib_ng

    compressor = zlib_ng.compressobj(level, zlib_ng.DEFLATED, WRITE_WINDOW_BITS, DEFLATE_MEMORY_LEVEL)
    head = compressor.compress(data)
    return bytes(head + compressor.flush())


def _is_noise(data: memoryview) -> bool:
    """Whether deflate would take its longest time over a cluster for nothing: all bytes are equally frequent, and none
    repeat each other within its small window.

    :param data: more than :data:`SAMPLE` bytes.
    """
    import numpy as np

    step = len(data) // SAMPLE
    counts = np.bincount(np.frombuffer(data, np.uint8)[::step], minlength=256)
    number = len(data) // step
    if int(np.dot(counts, counts)) * 256 / number - number > UNEVEN:
        return False
    middle = (len(data) - PROBE) // 2 if len(data) > PROBE else 0
    probe = data[middle : middle + PROBE]
    return len(_deflated(probe, 1)) >= len(probe)


def _unzstd(data: Bytes, cluster_size: int) -> bytes:
    zstd = _zstd_library()
    limits = {zstd.DecompressionParameter.window_log_max: ZSTD_MAX_WINDOW_BITS}
    try:
        return bytes(zstd.ZstdDecompressor(options=limits).decompress(data, cluster_size))
    except zstd.ZstdError as error:
        raise InvalidImage(str(error)) from None


def _zstd(data: Bytes) -> bytes:
    # A compressor is expensive to make and may be used again after each frame, by one thread at a time.
    compressor = getattr(_per_thread, "zstd", None)
    if compressor is None:
        compressor = _per_thread.zstd = _zstd_library().ZstdCompressor(level=ZSTD_LEVEL)
    compressor.set_pledged_input_size(len(data))
    return bytes(compressor.compress(data, compressor.FLUSH_FRAME))


@cache
def _zstd_library() -> Any:
    """The module ``compression.zstd``, or its backport to Python before 3.14."""
    from importlib import import_module

    return import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


_DECOMPRESS: dict[CompressionType, Callable[[Any, int], bytes | bytearray]] = {
    CompressionType.ZLIB: _inflate,
    CompressionType.ZSTD: _unzstd,
}
_COMPRESS: dict[CompressionType, Callable[[Any], bytes | None]] = {
    CompressionType.ZLIB: _deflate,
    CompressionType.ZSTD: _zstd,
}
