"""What a command must not take for granted: that bytes need not be read, that a file is always the same disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.node import WritableImage

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, inside: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("data.raw").write_bytes(bytes(range(256)) * 4096)
    return tmp_path


def test_offloading_does_not_go_around_a_filter_that_watches_reads(folder: Path, inside: Run) -> None:
    Path("rules").write_text('[inject-error]\nevent = "read_aio"\nerrno = "5"\n')
    failing = "driver=raw,file.driver=blkdebug,file.config=rules,file.image.driver=file,file.image.filename=data.raw"
    for offload in ([], ["-C"]):
        failed = inside("convert", *offload, "--image-opts", "-O", "raw", failing, "out.raw", code=1)
        assert "error while reading at byte 0: Input/output error" in failed.err
    inside("convert", "-C", "-O", "raw", "data.raw", "copy.raw", code=0)
    assert Path("copy.raw").read_bytes() == Path("data.raw").read_bytes()


def test_a_rebase_to_the_same_file_as_another_format_keeps_the_content(folder: Path, inside: Run) -> None:
    inside("convert", "-O", "qcow2", "data.raw", "base.qcow2", code=0)
    inside("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", code=0)
    inside("rebase", "-b", "base.qcow2", "-F", "raw", "top.qcow2", code=0)
    inside("compare", "-q", "-F", "raw", "top.qcow2", "data.raw", code=0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("new", ["new.raw", ""])
def test_a_compressed_rebase_keeps_the_subclusters_that_the_overlay_has(
    folder: Path, inside: Run, seed: int, new: str
) -> None:
    chance, size, subcluster = random.Random(seed), 256 << 10, 2048
    for name in ("old.raw", "new.raw"):
        parts = (chance.choice((bytes(subcluster), bytes([chance.randrange(256)]) * subcluster)) for _ in range(128))
        Path(name).write_bytes(b"".join(parts))
    inside(
        *("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k"),
        *("-b", "old.raw", "-F", "raw", "top.qcow2"),
        code=0,
    )
    expected = bytearray(Path("old.raw").read_bytes())
    with diskwright.open("top.qcow2", writable=True) as top:
        assert isinstance(top, WritableImage)
        for _ in range(12):
            offset, length = chance.randrange(size - 5000), chance.randrange(1, 5000)
            data = chance.choice((bytes(length), chance.randbytes(length)))
            top.write_at(offset, data)
            expected[offset : offset + length] = data
    inside("rebase", "-c", "-b", new, *(("-F", "raw") if new else ()), "top.qcow2", code=0)
    inside("check", "-q", "top.qcow2", code=0)
    with diskwright.open("top.qcow2") as top:
        assert top.backing_file == (new or None)
        assert top.read_at(0, size) == expected


@pytest.mark.parametrize("options", [[], ["-c"], ["-W"]])
@pytest.mark.parametrize("format", ["qcow2", "vdi"])
def test_a_copy_that_fails_leaves_an_existing_image_in_order(
    folder: Path, inside: Run, format: str, options: list[str]
) -> None:
    if format == "vdi" and "-c" in options:
        pytest.skip("VDI does not compress")
    content = random.Random(1).randbytes(64 << 20)
    Path("source.raw").write_bytes(content)
    Path("rules").write_text('[inject-error]\nevent = "read_aio"\nerrno = "5"\nsector = "90000"\n')
    failing = "driver=raw,file.driver=blkdebug,file.config=rules,file.image.driver=file,file.image.filename=source.raw"
    inside("create", "-q", "-f", format, "target", str(len(content)), code=0)
    target = f"driver={format},file.driver=file,file.filename=target"
    failed = inside("convert", "-n", *options, "--image-opts", "--target-image-opts", failing, target, code=1)
    assert "Input/output error" in failed.err
    inside("check", "-q", "-f", format, "target", code=0)
    with diskwright.open("target", format) as image:
        for offset in range(0, len(content), 64 << 10):
            got = image.read_at(offset, 64 << 10)
            assert got == content[offset : offset + len(got)] or not any(got)


DETECTING = "driver=qcow2,detect-zeroes={},file.driver=file,file.filename=top.qcow2"


@pytest.mark.parametrize("detect", ["on", "unmap,discard=unmap"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_zeros_over_a_part_of_a_cluster_are_found(folder: Path, inside: Run, detect: str, compat: str) -> None:
    inside("convert", "-O", "qcow2", "-o", f"compat={compat}", "data.raw", "top.qcow2", code=0)
    with open("zeros.raw", "wb") as file:
        file.truncate(100 << 10)
    inside("convert", "-n", "-f", "raw", "--target-image-opts", "zeros.raw", DETECTING.format(detect), code=0)
    expected = bytes(100 << 10) + Path("data.raw").read_bytes()[100 << 10 :]
    with diskwright.open("top.qcow2") as top:
        assert top.read_at(0, len(expected)) == expected


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_rebase_does_not_leave_out_zeros_that_are_found(folder: Path, inside: Run, compat: str) -> None:
    options = ["-o", f"compat={compat}"]
    Path("zeros.raw").write_bytes(bytes(1 << 20))
    inside("create", "-q", "-f", "qcow2", *options, "-b", "zeros.raw", "-F", "raw", "top.qcow2", code=0)
    inside("rebase", "-b", "data.raw", "-F", "raw", "--image-opts", DETECTING.format("on"), code=0)
    inside("compare", "-q", "-f", "qcow2", "-F", "raw", "top.qcow2", "zeros.raw", code=0)


@pytest.mark.parametrize("offset", [0, 1024])
def test_a_map_of_raw_above_an_overlay_has_the_places_of_all_layers(folder: Path, inside: Run, offset: int) -> None:
    inside("convert", "-O", "qcow2", "data.raw", "base.qcow2", code=0)
    inside("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", code=0)
    expected = bytearray(Path("data.raw").read_bytes())
    with diskwright.open("top.qcow2", writable=True) as top:
        assert isinstance(top, WritableImage)
        for place, content in ((100 << 10, b"top" * 10000), (600 << 10, bytes(200 << 10))):
            top.write_at(place, content)
            expected[place : place + len(content)] = content
    name = f"driver=raw,offset={offset},file.driver=qcow2,file.file.filename=top.qcow2"
    lines = inside("map", "--image-opts", name, code=0).out.splitlines()[1:]
    assert len({line.split()[3] for line in lines}) == 2
    for start, length, place, file in (line.split() for line in lines):
        found = Path(file).read_bytes()[int(place, 16) :][: int(length, 16)]
        assert found == expected[offset + int(start, 16) :][: int(length, 16)]
    inside("convert", "-O", "raw", "--image-opts", name, "out.raw", code=0)
    assert Path("out.raw").read_bytes() == expected[offset:]


@pytest.mark.parametrize("backing", ["mid.qcow2", "./base.qcow2", "link.qcow2"])
def test_no_image_takes_the_place_of_a_layer_that_it_stands_on(folder: Path, inside: Run, backing: str) -> None:
    inside("convert", "-O", "qcow2", "data.raw", "base.qcow2", code=0)
    inside("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2", code=0)
    Path("link.qcow2").symlink_to("base.qcow2")
    before = Path("base.qcow2").read_bytes()
    failed = inside("create", "-f", "qcow2", "-b", backing, "-F", "qcow2", "base.qcow2", code=1)
    assert 'Failed to get "write" lock' in failed.err
    failed = inside("convert", "-O", "qcow2", "-B", backing, "-F", "qcow2", "data.raw", "base.qcow2", code=1)
    assert 'Failed to get "write" lock' in failed.err
    assert Path("base.qcow2").read_bytes() == before


def test_a_missing_layer_does_not_hide_those_above_it(folder: Path, inside: Run) -> None:
    inside("convert", "-O", "qcow2", "data.raw", "base.qcow2", code=0)
    for name, below in (("mid.qcow2", "base.qcow2"), ("top.qcow2", "mid.qcow2")):
        inside("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", name, code=0)
    before = Path("mid.qcow2").read_bytes()
    Path("base.qcow2").unlink()
    failed = inside("create", "-f", "qcow2", "-u", "-b", "top.qcow2", "-F", "qcow2", "mid.qcow2", "1M", code=1)
    assert 'Failed to get "write" lock' in failed.err
    assert Path("mid.qcow2").read_bytes() == before


TOP = "driver=qcow2,file.filename=top.qcow2"


@pytest.fixture
def disguised(folder: Path, inside: Run) -> bytes:
    """A raw backing layer that begins like an image, and its overlay; the content of the overlay."""
    inside("create", "-q", "-f", "qcow2", "inner.qcow2", "1M", code=0)
    inside("create", "-q", "-f", "qcow2", "-b", "inner.qcow2", "-F", "raw", "top.qcow2", "192k", code=0)
    Path("other").write_bytes(Path("inner.qcow2").read_bytes())
    return Path("inner.qcow2").read_bytes()[: 192 << 10].ljust(192 << 10, b"\0")


@pytest.mark.parametrize(
    "options",
    [
        "backing.file.filename=other",
        "backing.file.driver=file,backing.file.filename=other",
        "backing.cache.direct=off",
        "backing.node-name=below",
        "backing.file.locking=off",
        "backing.driver=raw,backing.force-share=on",
    ],
)
def test_what_options_do_not_say_of_a_backing_layer_the_image_does(disguised: bytes, inside: Run, options: str) -> None:
    inside("convert", "--image-opts", "-O", "raw", f"{TOP},{options}", "out.raw", code=0)
    assert Path("out.raw").read_bytes() == disguised


def test_a_commit_writes_the_layer_that_is_meant_in_a_tree_of_layers(folder: Path, inside: Run) -> None:
    """Not one above or below it, in whatever way they are named."""
    inside("convert", "-O", "qcow2", "data.raw", "base", code=0)
    for name, below in (("mid", "base"), ("top", "mid")):
        inside("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", name, code=0)
    with diskwright.open("top", writable=True) as top:
        assert isinstance(top, WritableImage)
        top.write_at(5000, b"top")
    tree = {"driver": "qcow2", "file": {"driver": "file", "filename": "base"}}
    for name in ("mid", "top"):
        tree = {"driver": "qcow2", "file": {"driver": "file", "filename": name}, "backing": tree}
    with diskwright.open("base"):  # which is read by somebody meanwhile, and so must not be opened for writing
        inside("commit", "-d", f"json:{json.dumps(tree)}", code=0)
    with diskwright.open("mid") as mid, diskwright.open("base") as base:
        assert mid.read_at(5000, 3) == b"top" != base.read_at(5000, 3)
    inside("commit", "-b", "base", f"json:{json.dumps(tree)}", code=0)
    with diskwright.open("base") as base:
        assert base.read_at(5000, 3) == b"top"


def test_a_layer_that_only_options_name_does_not_show_where_zeros_are(folder: Path, inside: Run) -> None:
    """Nor behind the end of a disk that has grown."""
    half = 1 << 19
    inside("create", "-q", "-f", "qcow2", "top.qcow2", str(half), code=0)
    named = f"{TOP},backing.driver=raw,backing.file.filename=data.raw"
    inside("resize", "-q", "--image-opts", named, str(2 * half), code=0)
    inside("convert", "--image-opts", "-O", "raw", named, "out.raw", code=0)
    assert Path("out.raw").read_bytes() == Path("data.raw").read_bytes()[:half] + bytes(half)
    inside("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "top.qcow2", str(half), code=0)
    with diskwright.open("top.qcow2", writable=True) as top:
        assert isinstance(top, WritableImage)
        top.write_at(0, b"\1" * half)
    with open("zeros.raw", "wb") as file:
        file.truncate(half)
    inside("convert", "-n", "-f", "raw", "--target-image-opts", "zeros.raw", named, code=0)
    inside("convert", "--image-opts", "-O", "raw", named, "out.raw", code=0)
    assert Path("out.raw").read_bytes() == bytes(half)


@pytest.mark.parametrize("options", [["-B", "data.raw", "-F", "raw"], ["-o", "backing_file=data.raw,backing_fmt=raw"]])
def test_concatenated_disks_have_no_backing_file(folder: Path, inside: Run, options: list[str]) -> None:
    for name in ("a", "b"):
        inside("create", "-q", "-f", "qcow2", "-b", "data.raw", "-F", "raw", name, code=0)
    failed = inside("convert", "-O", "qcow2", *options, "a", "b", "out.qcow2", code=1)
    assert "makes no sense when concatenating multiple input images" in failed.err
    assert not Path("out.qcow2").exists()
