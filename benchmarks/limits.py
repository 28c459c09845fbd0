"""What the machine could do at best: copying a file, reading it once, and a codec alone on all processors."""

from __future__ import annotations

import json
import mmap
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from .paths import data_ranges, remove
from .process import Launcher, module_command

CLUSTER = 64 << 10
PORTION = 1 << 20
SAMPLE = 512 << 20
"""Most bytes that a codec works on; what all data would take follows from it."""
Codec = Callable[[Any], Any]


def measure(launcher: Launcher, limit: str, scratch: Path) -> float:
    """Seconds that something takes which no program could do without.

    :param limit: ``cp FILE``, ``read FILE``, or a codec (``deflate``, ``inflate``, ``zstd``, ``unzstd``, ``xts``) and
        a file.
    """
    kind, *files = shlex.split(limit)
    if kind == "cp":
        copy = scratch / "cp"
        remove(copy)
        taken = launcher.run(["cp", "--sparse=always", files[0], str(copy)]).wall
        remove(copy)
        return taken
    launcher.run([*module_command("benchmarks.limits"), kind, *files])
    return float(json.loads(launcher.output()))


def main(arguments: list[str]) -> None:
    """Print the seconds of one limit; called in a process of its own."""
    kind, name = arguments
    with open(name, "rb") as file:
        seconds = read(file.fileno()) if kind == "read" else code(file.fileno(), CODECS[kind]())
    print(json.dumps(seconds))


def read(descriptor: int) -> float:
    """Read all data of a file once."""
    buffer = mmap.mmap(-1, PORTION)
    view = memoryview(buffer)
    start = time.monotonic()
    for first, last in data_ranges(descriptor):
        for position in range(first, last, PORTION):
            os.preadv(descriptor, [view[: min(PORTION, last - position)]], position)
    return time.monotonic() - start


def code(descriptor: int, codec: tuple[int, Codec, Codec]) -> float:
    """Put the data of a file, or a sample of it, through a codec, on all processors.

    :param codec: bytes of a unit, what is done to it before the clock runs, and what is measured.
    """
    unit, before, codec_call = codec
    units = sum((last - first) // unit for first, last in data_ranges(descriptor))
    step = max(1, units * unit // SAMPLE)
    sample = [before(data) for data in _units(descriptor, unit, step)]
    if not sample:
        return 0.0
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(len, [b""] * workers))  # the threads are there before the clock runs
        start = time.monotonic()
        list(pool.map(lambda part: [codec_call(data) for data in part], [sample[n::64] for n in range(64)]))
        return (time.monotonic() - start) * step


def _units(descriptor: int, unit: int, step: int) -> Iterator[bytes]:
    zeros = bytes(unit)
    number = 0
    for first, last in data_ranges(descriptor):
        for position in range(first, last - unit + 1, unit):
            number += 1
            if number % step == 0 and (data := os.pread(descriptor, unit, position)) != zeros:
                yield data


def _same(data: bytes) -> bytes:
    return data


def _deflate(data: bytes) -> bytes:
    from zlib_ng import zlib_ng

    compressor = zlib_ng.compressobj(6, zlib_ng.DEFLATED, -12, 9)
    return bytes(compressor.compress(data) + compressor.flush())


def _inflate(data: bytes) -> bytes:
    from zlib_ng import zlib_ng

    return bytes(zlib_ng.decompressobj(-15).decompress(data, CLUSTER))


def _zstd_module() -> Any:
    return import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def _zstd() -> tuple[int, Codec, Codec]:
    compress = _zstd_module().compress
    return CLUSTER, _same, lambda data: compress(data, 3)


def _unzstd() -> tuple[int, Codec, Codec]:
    module = _zstd_module()
    return CLUSTER, lambda data: module.compress(data, 3), module.decompress


def _xts() -> tuple[int, Codec, Codec]:
    """AES-256-XTS in units of a mebibyte: as fast as the processor can, since it sets up no sector."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(bytes(range(64))), modes.XTS(bytes(16)))
    return PORTION, _same, lambda data: cipher.encryptor().update(data)


CODECS: dict[str, Callable[[], tuple[int, Codec, Codec]]] = {
    "deflate": lambda: (CLUSTER, _same, _deflate),
    "inflate": lambda: (CLUSTER, _deflate, _inflate),
    "zstd": _zstd,
    "unzstd": _unzstd,
    "xts": _xts,
}
"""The codecs by name; made when used, as their libraries are loaded then."""
