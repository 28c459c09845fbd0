"""Compressed clusters: both codecs, their limits and damage."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from threading import Thread

import pytest

from diskwright.errors import InvalidImage
from diskwright_qcow2 import layout
from diskwright_qcow2.codec import compress, decompress
from diskwright_qcow2.layout import CompressionType

TEXT = Path(layout.__file__).read_bytes() * 16
CODECS = pytest.mark.parametrize("codec", list(CompressionType))


@CODECS
@pytest.mark.parametrize("size", [512, 65536, 2 << 20])
def test_round_trip_with_padding_behind(codec: CompressionType, size: int) -> None:
    data = (TEXT * (size // len(TEXT) + 1))[:size]
    blob = compress(codec, memoryview(data), size)
    assert blob is not None
    assert len(blob) < size
    assert decompress(codec, blob + b"\xff" * 511, size) == data


@CODECS
def test_what_does_not_shrink_is_not_compressed(codec: CompressionType) -> None:
    assert compress(codec, random.Random(1).randbytes(4096), 4096) is None


@CODECS
def test_part_of_a_cluster_is_filled_up_with_zeros(codec: CompressionType) -> None:
    blob = compress(codec, b"end" * 100, 4096)
    assert blob is not None
    assert decompress(codec, blob, 4096) == (b"end" * 100).ljust(4096, b"\0")


@CODECS
@pytest.mark.parametrize("keep", [0, 1, 100])
def test_short_data_is_an_error(codec: CompressionType, keep: int) -> None:
    blob = compress(codec, TEXT[:16384], 16384)
    assert blob is not None
    with pytest.raises(InvalidImage):
        decompress(codec, blob[:keep], 16384)
    with pytest.raises(InvalidImage):
        decompress(codec, blob, 32768)


@CODECS
def test_garbage_is_an_error(codec: CompressionType) -> None:
    with pytest.raises(InvalidImage):
        decompress(codec, b"\xff\xfe\xfd" * 100, 512)


@CODECS
def test_output_never_exceeds_the_cluster(codec: CompressionType) -> None:
    bomb = compress(codec, bytes(1 << 20), 1 << 20)
    assert bomb is not None
    assert decompress(codec, bomb, 512) == bytes(512)


def test_window_of_a_deflate_stream() -> None:
    """Any window is read, but only 4 KiB are written, which is all that some readers take."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = TEXT[:20000] * 2
    wide = deflate.compress(data) + deflate.flush()
    assert decompress(CompressionType.ZLIB, wide, len(data)) == data
    narrow = compress(CompressionType.ZLIB, data, len(data))
    assert narrow is not None
    assert zlib.decompressobj(-12).decompress(narrow) == data


def test_huge_zstd_window_is_refused() -> None:
    # Frame header with a window descriptor of 2 GiB, no content size; then an empty last block.
    with pytest.raises(InvalidImage):
        decompress(CompressionType.ZSTD, bytes.fromhex("28b52ffd 00 a8 010000"), 65536)


@CODECS
def test_threads_do_not_share_a_compressor(codec: CompressionType) -> None:
    failures: list[object] = []

    def work(seed: int) -> None:
        data = (bytes([seed]) + TEXT)[:65536]
        for _ in range(20):
            blob = compress(codec, data, 65536)
            if blob is None or decompress(codec, blob, 65536) != data:
                failures.append(seed)

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_stream_may_go_on_behind_the_cluster_or_break_off_there() -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, -12)
    blob = stream.compress(TEXT[:70000]) + stream.flush()
    assert decompress(CompressionType.ZLIB, blob, 65536) == TEXT[:65536]
    stream = zlib.compressobj(6, zlib.DEFLATED, -12)
    blob = stream.compress(TEXT[:65536]) + stream.flush(zlib.Z_SYNC_FLUSH)
    assert decompress(CompressionType.ZLIB, blob, 65536) == TEXT[:65536]


@pytest.mark.parametrize("bits", [9, 16, 21])
def test_compressed_descriptor_round_trip(bits: int) -> None:
    for offset in (512, 513, 1023, 123_456_789):
        for length in (1, 511, 512, 513, (1 << bits) - 1):
            start, stored = layout.compressed_location(layout.compressed_descriptor(offset, length, bits), bits)
            assert start == offset
            assert length <= stored < length + 512
            assert (start + stored) % 512 == 0


@pytest.mark.parametrize("size", [4096, 65536, 2 << 20])
def test_noise_is_not_deflated_for_nothing(size: int) -> None:
    """What only looks like noise is: bytes of all values equally often, but in a pattern."""
    chance = random.Random(size)
    noise = chance.randbytes(size)
    assert compress(CompressionType.ZLIB, noise, size) is None
    for pattern in (
        chance.randbytes(1024) * (size // 1024),
        noise[: size // 2] + bytes(size // 2),
        bytes(range(256)) * (size // 256),
    ):
        blob = compress(CompressionType.ZLIB, pattern, size)
        assert blob is not None
        assert len(blob) < size * 0.6
        assert decompress(CompressionType.ZLIB, blob, size) == pattern
