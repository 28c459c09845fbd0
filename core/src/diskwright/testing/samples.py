"""Small images of all kinds, made by the real tools, for tests that run command lines on them."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from .oracle import find_qemu_io, qemu_img
from .secret import SECRET

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 64 * KIB

_IMAGES = (
    ("a.qcow2", "", "write -P 1 0 100k", "write -z 200k 64k", "write -c -P 7 512k 64k"),
    ("c.qcow2", "", "write -P 1 0 100k", "write -P 3 600k 4k"),
    ("b.qcow2", "-b a.qcow2 -F qcow2", "write -P 2 64k 64k"),
    ("o.qcow2", "-b b.qcow2 -F qcow2", "write -P 4 700k 10k"),
    ("v2.qcow2", "-o compat=0.10", "write -P 1 0 10k"),
    ("s.qcow2", "", "write -P 1 0 100k"),
    ("bm.qcow2", ""),
    ("leak.qcow2", "", "write -P 1 0 100k"),
    ("m.qcow2", "-u -b gone.raw -F raw"),
    ("e.qcow2", f"--object {SECRET} -o encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10"),
)
"""Names of qcow2 images, how they are created, and what is written to them."""


def make_samples(folder: Path) -> None:
    """Fill a new folder; the calling test is skipped where the real tools are missing.

    Besides qcow2 images there are ``a.raw`` with data and holes, ``d.vdi``, ``l.luks``, damaged headers, and what is no
    image. Relative names of backing files are those of the folder.
    """
    folder.mkdir(parents=True)
    rng = random.Random(5)
    ends = rng.randbytes(100 * KIB), rng.randbytes(50 * KIB)
    (folder / "a.raw").write_bytes((ends[0] + bytes(200 * KIB) + ends[1]).ljust(MIB, b"\0"))
    (folder / "short.raw").write_bytes(b"x" * 1000)
    (folder / "text.txt").write_bytes(b"hello\n")
    (folder / "empty").write_bytes(b"")
    (folder / "dir").mkdir()
    for name, options, *writes in _IMAGES:
        size = "1536k" if name == "o.qcow2" else "1M"
        qemu_img("create", "-q", "-f", "qcow2", *options.split(), folder / name, size)
        if writes:
            _io(folder / name, "qcow2", *writes)
    for snapshot in ("s1", "s2"):
        qemu_img("snapshot", "-c", snapshot, folder / "s.qcow2")
        _io(folder / "s.qcow2", "qcow2", "write -P 9 64k 100k")
    qemu_img("bitmap", "--add", folder / "bm.qcow2", "b0")
    qemu_img("bitmap", "--add", "--disable", "-g", "32k", folder / "bm.qcow2", "b1")
    _io(folder / "bm.qcow2", "qcow2", "write -P 1 0 100k")
    qemu_img("create", "-q", "-f", "vdi", folder / "d.vdi", "1M")
    _io(folder / "d.vdi", "vdi", "write -P 1 0 100k")
    options = "key-secret=s0,iter-time=10"
    qemu_img("create", "-q", "--object", SECRET, "-f", "luks", "-o", options, folder / "l.luks", "1M")
    _damage(folder)


def _io(image: Path, format: str, *commands: str) -> None:
    parts = [part for command in commands for part in ("-c", command)]
    subprocess.run(
        [find_qemu_io(), "-f", format, *parts, image], check=True, stdin=subprocess.DEVNULL, capture_output=True
    )


def _damage(folder: Path) -> None:
    """Derive broken images from whole ones."""
    whole = (folder / "a.qcow2").read_bytes()
    for name, position, value in (("corrupt", 79, 2), ("feature", 79, 0x20), ("version", 7, 9)):
        broken = bytearray(whole)
        broken[position] = value
        (folder / f"{name}.qcow2").write_bytes(broken)
    (folder / "cut.qcow2").write_bytes(whole[:50])
    (folder / "broken.qcow2").write_bytes(_with_refcount(whole, 5, 0))
    leaking = (folder / "leak.qcow2").read_bytes()
    leaking = leaking.ljust(-(-len(leaking) // CLUSTER) * CLUSTER, b"\0") + bytes(CLUSTER)
    (folder / "leak.qcow2").write_bytes(_with_refcount(leaking, len(leaking) // CLUSTER - 1, 1))


def _with_refcount(image: bytes, cluster: int, count: int) -> bytes:
    changed = bytearray(image)
    table = int.from_bytes(changed[48:56], "big")
    block = int.from_bytes(changed[table : table + 8], "big")
    changed[block + 2 * cluster : block + 2 * cluster + 2] = count.to_bytes(2, "big")
    return bytes(changed)
