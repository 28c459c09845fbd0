"""Images from strangers: cut, flipped, self-contradicting. Every command ends in success or one error line, soon."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
SECONDS = 10
"""Longest that a command may take on a small file."""

QCOW2_HEADER = 112
VDI_HEADER = 512


def commands_on(image: Path, format: str) -> Iterator[list[str]]:
    """Every reading command on an image; ``-f`` so that a broken signature is not just called raw."""
    name = str(image)
    yield ["info", "-f", format, name]
    yield ["info", "-f", format, "--output=json", "--backing-chain", name]
    yield ["check", "-f", format, name]
    yield ["map", "-f", format, "--output=json", name]
    yield ["compare", "-f", format, "-F", format, name, name]


def assert_survives(inside: Callable[..., Any], image: Path, format: str, what: str) -> None:
    """All reading commands succeed or say in a few lines why not; anything else raised here is a defect."""
    for command in commands_on(image, format):
        began = time.monotonic()
        result = inside(*command)
        assert time.monotonic() - began < SECONDS, (what, command)
        allowed = {"check": (0, 1, 2, 3, 63), "compare": (0, 1, 2, 3, 4)}.get(command[0], (0, 1))
        assert result.code in allowed, (what, command, result)
        if result.code and command[0] != "check":
            assert result.err.startswith("diskwright: "), (what, command, result)
            assert len(result.err.splitlines()) <= 3, (what, command, result)


@pytest.fixture(scope="module")
def small_images(
    tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any], patterns: Callable[..., None]
) -> dict[str, bytes]:
    """Images with everything in them that these commands look at, a few dozen KiB each, by name."""
    folder = tmp_path_factory.mktemp("small")
    source = folder / "source.raw"
    patterns(source, 96 * 1024)
    made = {
        "qcow2": ["-O", "qcow2", "-o", "cluster_size=4K"],
        "qcow2-compressed": ["-O", "qcow2", "-c", "-o", "cluster_size=4K"],
        "qcow2-zstd": ["-O", "qcow2", "-c", "-o", "cluster_size=4K,compression_type=zstd"],
        "qcow2-v2": ["-O", "qcow2", "-o", "cluster_size=512,compat=0.10"],
        "qcow2-subclusters": ["-O", "qcow2", "-o", "cluster_size=16K,extended_l2=on"],
        "vdi": ["-O", "vdi"],
    }
    images = {}
    for name, options in made.items():
        cli("convert", "-f", "raw", *options, source, folder / name, code=0)
        images[name] = (folder / name).read_bytes()
    return images


NAMES = ["qcow2", "qcow2-compressed", "qcow2-zstd", "qcow2-v2", "qcow2-subclusters", "vdi"]


def format_of(name: str) -> str:
    """``qcow2-zstd`` is a ``qcow2``."""
    return name.partition("-")[0]


def places_to_cut(length: int) -> Iterable[int]:
    """Every sector at the start, where the structures are; then some of them, at most 150 in all."""
    yield from range(0, min(length, 16 * 1024), 512)
    yield from range(16 * 1024, length, max(512, (length - 16 * 1024) // 118 // 512 * 512))
    yield from (100, 103, 105, length - 1)


@pytest.mark.parametrize("name", NAMES)
def test_cut_anywhere(name: str, small_images: dict[str, bytes], tmp_path: Path, inside: Callable[..., Any]) -> None:
    """A file that ends early."""
    whole, image = small_images[name], tmp_path / "cut"
    image.write_bytes(whole)
    for length in sorted(set(places_to_cut(len(whole))), reverse=True):
        os.truncate(image, length)
        assert_survives(inside, image, format_of(name), f"cut at {length}")


@pytest.mark.parametrize("change", [b"\xff", b"\x00", b"\x01", b"\x80"], ids=["ff", "00", "01", "80"])
@pytest.mark.parametrize("name", NAMES)
def test_any_header_byte_changed(
    name: str, change: bytes, small_images: dict[str, bytes], tmp_path: Path, inside: Callable[..., Any]
) -> None:
    """One byte of the header is another."""
    whole, image = small_images[name], tmp_path / "changed"
    for offset in range(VDI_HEADER if name == "vdi" else QCOW2_HEADER):
        if name == "vdi" and not (64 <= offset < 84 or 324 <= offset < 412):
            continue
        if whole[offset : offset + 1] != change:
            image.write_bytes(whole[:offset] + change + whole[offset + 1 :])
            assert_survives(inside, image, format_of(name), f"byte {offset} = {change!r}")


@pytest.mark.parametrize("name", NAMES)
def test_tables_changed(name: str, small_images: dict[str, bytes], tmp_path: Path, inside: Callable[..., Any]) -> None:
    """Entries of all tables, one after the other, become hostile numbers."""
    whole, image = small_images[name], tmp_path / "changed"
    size = 4 if name == "vdi" else 8
    if name == "vdi":
        starts = [512]
    else:
        (l1,) = struct.unpack_from(">Q", whole, 40)
        (refcount_table,) = struct.unpack_from(">Q", whole, 48)
        (l2,) = struct.unpack_from(">Q", whole, l1)
        (block,) = struct.unpack_from(">Q", whole, refcount_table)
        starts = [l1, refcount_table, l2 & 0x00FFFFFFFFFFFE00, block]
    values = (b"\xff" * 8, b"\x00" * 8, struct.pack(">Q", 3 << 62 | 0x1FF), struct.pack(">Q", 1 << 63), b"\x7f" * 8)
    for start in starts:
        for entry, value in ((entry, value) for entry in range(4) for value in values):
            at = start + entry * size
            image.write_bytes(whole[:at] + value[:size] + whole[at + size :])
            assert_survives(inside, image, format_of(name), f"entry at {at} = {value!r}")


@pytest.mark.parametrize("codec", ["zlib", "zstd"])
def test_damaged_compressed_cluster(codec: str, tmp_path: Path, inside: Callable[..., Any]) -> None:
    """Compressed bytes that are noise end the conversion with an error, and no target stays."""
    source, image, target = (tmp_path / name for name in ("source.raw", "image.qcow2", "target.raw"))
    source.write_bytes(b"".join(b"line %d of a long text\n" % n for n in range(100_000)))
    options = f"compression_type={codec}"
    inside("convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, source, image, code=0)
    with image.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        for start in range(end - (32 << 10), end - 512, 512):
            file.seek(start)
            file.write(b"\xff" * 256)
    inside("convert", "-f", "qcow2", "-O", "raw", image, target).fails_with("error while reading")
    assert not target.exists()
    inside("compare", "-f", "raw", "-F", "qcow2", source, image, code=4)


def qcow2_header(**fields: int) -> bytes:
    """A version 3 header of an empty 1 MiB image, with some fields set to what a stranger likes."""
    values = {
        "version": 3,
        "backing_file_offset": 0,
        "backing_file_size": 0,
        "cluster_bits": 16,
        "size": MIB,
        "crypt_method": 0,
        "l1_size": 1,
        "l1_table_offset": 3 << 16,
        "refcount_table_offset": 1 << 16,
        "refcount_table_clusters": 1,
        "nb_snapshots": 0,
        "snapshots_offset": 0,
        "incompatible_features": 0,
        "compatible_features": 0,
        "autoclear_features": 0,
        "refcount_order": 4,
        "header_length": 104,
    }
    unknown = set(fields) - set(values)
    assert not unknown
    return struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", *(values | fields).values())


BOMBS = {
    "size 2^63": {"size": 1 << 63},
    "size 2^62, 2 MiB clusters": {"size": 1 << 62, "cluster_bits": 21, "l1_size": 1 << 22},
    "cluster_bits 0": {"cluster_bits": 0},
    "cluster_bits 63": {"cluster_bits": 63},
    "cluster_bits 2^32-1": {"cluster_bits": 0xFFFFFFFF},
    "L1 of 32 GiB": {"l1_size": 0xFFFFFFFF},
    "L1 of 32 MiB behind the end": {"l1_size": 1 << 22, "size": 1 << 50},
    "L1 unaligned": {"l1_table_offset": 1},
    "L1 at 2^63": {"l1_table_offset": 1 << 63},
    "refcount table of 2^32 clusters": {"refcount_table_clusters": 0xFFFFFFFF},
    "refcount table at the end of 64 bits": {"refcount_table_offset": (1 << 64) - (1 << 16)},
    "refcount_order 255": {"refcount_order": 255},
    "snapshots 2^32-1": {"nb_snapshots": 0xFFFFFFFF, "snapshots_offset": 1 << 16},
    "65536 snapshots in zeros": {"nb_snapshots": 65536, "snapshots_offset": 4 << 16},
    "backing name of 4 GiB": {"backing_file_offset": 200, "backing_file_size": 0xFFFFFFFF},
    "backing name behind the end": {"backing_file_offset": 1 << 40, "backing_file_size": 10},
    "header of 4 GiB": {"header_length": 0xFFFFFFF8},
    "header of 0 bytes": {"header_length": 0},
    "version 99": {"version": 99},
    "all features": {"incompatible_features": (1 << 64) - 1},
    "external data file, none named": {"incompatible_features": 4},
    "crypt method 77": {"crypt_method": 77},
}


def limit_memory() -> None:
    """For a child process: 768 MiB of address space on top of what an interpreter with its libraries reserves."""
    resource.setrlimit(resource.RLIMIT_AS, (1024 * MIB, 1024 * MIB))


@pytest.mark.parametrize("fields", BOMBS.values(), ids=BOMBS.keys())
def test_numbers_too_large(fields: dict[str, int], tmp_path: Path, inside: Callable[..., Any]) -> None:
    """Header fields far beyond the file; a file of 1 MiB, mostly a hole."""
    image = tmp_path / "bomb"
    image.write_bytes(qcow2_header(**fields))
    os.truncate(image, MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_survives(inside, image, "qcow2", str(fields))
    inside("convert", "-f", "qcow2", "-O", "raw", image, tmp_path / "target.raw")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024, f"{grown >> 10} MiB"


@pytest.mark.parametrize("command", ["info", "check", "map"])
def test_bombs_under_a_memory_limit(command: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """The same in processes of their own, in 1 GiB of address space."""
    for fields in (BOMBS["L1 of 32 MiB behind the end"], BOMBS["size 2^62, 2 MiB clusters"], BOMBS["snapshots 2^32-1"]):
        image = tmp_path / "bomb"
        image.write_bytes(qcow2_header(**fields))
        os.truncate(image, 40 * MIB)
        result = cli(command, "-f", "qcow2", image, timeout=60, preexec_fn=limit_memory)
        assert result.code in (0, 1, 2, 3), result
        assert "MemoryError" not in result.err
        # What check has found by then stands before the line that says why it ended.
        assert result.code in (0, 2, 3) or result.err.splitlines()[-1].startswith("diskwright: ")


def test_vdi_bombs(small_images: dict[str, bytes], tmp_path: Path, inside: Callable[..., Any]) -> None:
    """VDI's counts and offsets, each at its largest."""
    image = tmp_path / "bomb.vdi"
    for offset, width in (
        (0x154, 4),
        (0x158, 4),
        (0x168, 4),
        (0x170, 8),
        (0x178, 4),
        (0x17C, 4),
        (0x180, 4),
        (0x184, 4),
    ):
        for value in (b"\xff" * width, (1 << (8 * width - 2)).to_bytes(width, "little"), bytes(width)):
            whole = bytearray(small_images["vdi"])
            whole[offset : offset + width] = value
            image.write_bytes(whole)
            assert_survives(inside, image, "vdi", f"{offset:#x} = {value!r}")


def named_backing(path: Path, backing: str, format: str = "") -> None:
    """Write an empty qcow2 image that names a backing file."""
    name = os.fsencode(backing)
    extension = b""
    if format:
        text = format.encode()
        extension = struct.pack(">II", 0xE2792ACA, len(text)) + text.ljust((len(text) + 7) // 8 * 8, b"\0")
    extension += bytes(8)
    header = qcow2_header(backing_file_offset=104 + len(extension), backing_file_size=len(name))
    path.write_bytes(header + extension + name)
    os.truncate(path, 4 << 16)


class TestBackingChains:
    """What a name in an image leads to."""

    @pytest.mark.parametrize("command", ["info --backing-chain", "map", "check", "convert", "compare"])
    @pytest.mark.parametrize("way", ["itself", "file:", "symlink", "hardlink", "two", "absolute"])
    def test_loops_are_found(self, way: str, command: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """A chain that comes back to itself, under whatever name, is one clear error."""
        top = tmp_path / "top.qcow2"
        names = {"itself": "top.qcow2", "file:": f"file:{top}", "absolute": str(top), "two": "other.qcow2"}
        named_backing(top, names.get(way, "alias"), "qcow2")
        if way == "two":
            named_backing(tmp_path / "other.qcow2", "top.qcow2", "qcow2")
        if way == "symlink":
            (tmp_path / "alias").symlink_to("top.qcow2")
        if way == "hardlink":
            (tmp_path / "alias").hardlink_to(top)
        operands = {"convert": [top, tmp_path / "target.raw"], "compare": [top, top]}.get(command, [top])
        result = cli(*command.split(), *operands, timeout=20)
        assert result.code == (2 if command == "compare" else 1), result
        assert "infinite loop" in result.err, result
        assert len(result.err.splitlines()) == 1, result
        assert not (tmp_path / "target.raw").exists()

    def test_a_long_chain_works(self, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """200 layers."""
        (tmp_path / "layer0").write_bytes(b"bottom".ljust(MIB, b"\0"))
        for n in range(1, 201):
            named_backing(tmp_path / f"layer{n}", f"layer{n - 1}", "qcow2" if n > 1 else "raw")
        cli("convert", tmp_path / "layer200", tmp_path / "flat.raw", timeout=60, code=0)
        assert (tmp_path / "flat.raw").read_bytes()[:6] == b"bottom"

    def test_an_endless_chain_is_refused(self, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """3000 layers: works or is one line, whatever the limit on open files; never a traceback."""
        (tmp_path / "layer0").write_bytes(bytes(MIB))
        for n in range(1, 3001):
            named_backing(tmp_path / f"layer{n}", f"layer{n - 1}", "qcow2" if n > 1 else "raw")
        result = cli("map", tmp_path / "layer3000", timeout=60)
        assert result.code == 0 or len(result.err.splitlines()) == 1, result.err[:2000]
        assert len(result.err) < 10_000, "the line names every layer"

    def test_what_is_no_file_is_not_waited_for(self, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """A FIFO, a directory, a missing file, a name that is no UTF-8: one line each, at once."""
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "directory").mkdir()
        top = tmp_path / "top.qcow2"
        for name in ("fifo", "directory", "missing", "nbd://127.0.0.1:1/x", "\udcff\udcfe", "a\nb\x1b[31m"):
            named_backing(top, name, "raw")
            result = cli("convert", top, tmp_path / "target.raw", timeout=20, code=1)
            assert result.err.startswith(f"diskwright: Could not open '{top}': Could not open backing file"), result
            assert not (tmp_path / "target.raw").exists()
            cli("info", top, timeout=20, code=0)
            cli("info", "--output=json", top, timeout=20, code=0)

    def test_info_opens_the_named_file_only(self, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """A backing file that does not exist is no matter to info."""
        top = tmp_path / "top.qcow2"
        named_backing(top, "missing.raw", "raw")
        assert "backing file: missing.raw" in cli("info", top, code=0).out


class TestFileNames:
    """The names that users give."""

    @pytest.mark.parametrize("name", ["white space.qcow2", "new\nline", "\udcff.raw", "ünïcödé", "a,b=c"])
    def test_any_legal_name_works(self, name: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """All commands take any name that the system takes."""
        image = tmp_path / name
        cli("create", "-f", "qcow2", image, "1M", code=0)
        for command in ("info", "check", "map"):
            cli(command, image, code=0)
            cli(command, "--output=json", image, code=0)

    def test_a_name_with_a_dash_in_front(self, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """Two dashes end the options."""
        cli("create", "-f", "qcow2", "--", "-f", "1M", code=0, cwd=tmp_path)
        cli("info", "--", "-f", code=0, cwd=tmp_path)
        assert (tmp_path / "-f").exists()

    @pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "missing", "empty name"])
    def test_what_is_no_image(self, kind: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """What cannot be opened is refused at once."""
        import socket

        path = tmp_path / "thing"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        for command in ("info", "map", "check"):
            cli(command, "" if kind == "empty name" else path, timeout=20).fails_with("Could not open '")
