"""What programs that drive qemu-img rely on: forms of command lines, texts in messages, and quiet where all is well."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.testing.sidebyside import Pair, ours, real

GIB = 1 << 30


@pytest.mark.parametrize(
    "line",
    [
        "info a.qcow2 --output json",
        "create x 16384K -f qcow2",
        "create -f qcow2 -o cluster_size=4k -o lazy_refcounts=on x 1M",
        "create -f qcow2 -o size=16384K x",
        "resize a.qcow2 2M --shrink",
        "map a.qcow2 --output=json -U",
        "snapshot s.qcow2 -l",
        "convert a.qcow2 x -O raw -f qcow2",
        "check a.qcow2 --output=json -f qcow2",
        "info --force-share --output=json a.qcow2",  # OpenStack
        "convert -O raw -t none -f qcow2 a.qcow2 x",
        "convert -O qcow2 -t none -W -m 8 -f raw a.raw x",
        "convert -t writeback -p -O raw a.qcow2 x",  # KubeVirt
        "resize -f raw a.raw 2147483648",
        "measure --size 1048576 -O qcow2 --output=json",  # oVirt
        "convert -p -n -f qcow2 -O raw -T none a.qcow2 a.raw",
        "create -f qcow2 -o preallocation=metadata x 64M",  # Proxmox
        "create -f qcow2 -b a.qcow2 -F qcow2 -o size=2097152 x",  # Packer, Vagrant
        "convert -c -O qcow2 -o compat=1.1 a.raw x",
        "rebase -u -f qcow2 -F qcow2 -b c.qcow2 b.qcow2",
        "map -f file a.raw",
        "convert -f file -O qcow2 a.raw x",
    ],
)
def test_forms_of_command_lines(line: str, pair: Pair) -> None:
    """Options behind operands, repeated lists, sizes inside them; nothing is said on stderr."""
    theirs, mine = pair.run(line)
    assert theirs.code == mine.code == 0
    assert mine.err == theirs.err == ""
    if "info" not in line:  # which tells what the file system knows
        assert without_steps(mine.out) == without_steps(theirs.out)


def without_steps(text: str) -> str:
    """The progress shown is up to the program, its form and its end are not."""
    steps = re.findall(r"    \((\d?\d\.\d\d|100\.00)/100%\)\r", text)
    return re.sub(r" *\([\d.]+/100%\)\r", "", text) + (steps[-1] if steps else "")


def test_a_source_without_backing_hides_that_of_the_target(pair: Pair) -> None:
    """It reads as zeros where it has nothing: the target must not show its own backing file there."""
    pair.run("convert -O qcow2 -B a.qcow2 -F qcow2 s.qcow2 x")
    for folder in pair.folders:
        assert real("compare s.qcow2 x", folder).code == 0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("info -f qcow2 a.raw", "Image is not in qcow2 format"),
        ("info -f qcow2 empty", "Image is not in qcow2 format"),
        (
            "convert --object secret,id=s,data=no --image-opts driver=luks,file.filename=l.luks,key-secret=s x",
            "Invalid password",
        ),
        ("resize a.qcow2 512k", "--shrink"),
    ],
)
def test_texts(line: str, text: str, pair: Pair) -> None:
    """They are there, and all the rest is as the real one has it."""
    theirs, mine = pair.run(line)
    assert (theirs.code, theirs.err) == (mine.code, mine.err)
    assert text in mine.err


def test_a_mismatch_is_told_with_its_sector(pair: Pair) -> None:
    theirs, mine = pair.run("compare a.qcow2 c.qcow2")
    assert theirs.out == mine.out
    assert mine.out.startswith("Content mismatch at offset ")


def test_version_by_the_name_of_qemu_img(tmp_path: Path) -> None:
    with ours(tmp_path) as runner:
        first, _ = runner("--version", tmp_path).out.splitlines()
    assert first.startswith("qemu-img version 10.")


class TestUnderLimits:
    """1 GiB of address space and 30 seconds of processor time are enough for every command."""

    @pytest.fixture
    def limited(self, tmp_path: Path, cli: Callable[..., Any]) -> Callable[[str], Any]:
        """Run a command line, which must succeed."""

        def restrict() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
            resource.setrlimit(resource.RLIMIT_CPU, (30, 30))

        def run(line: str) -> Any:
            return cli(*line.split(), code=0, cwd=tmp_path, preexec_fn=restrict)

        return run

    def test_all_commands(self, limited: Callable[[str], Any], tmp_path: Path) -> None:
        """On images of 1 TiB with some data, with as many threads as can be asked for."""
        (tmp_path / "r.raw").write_bytes(os.urandom(1 << 20) * 4 + bytes(4 << 20))
        secret = "--object secret,id=s0,data=hush"
        for line in (
            "create -q -f qcow2 big.qcow2 1T",
            "create -q -f qcow2 -b big.qcow2 -F qcow2 o.qcow2",
            "bench -q -w -c 500 -d 64 -s 64k o.qcow2",
            "bench -t none -n -c 50 -f raw r.raw",
            "snapshot -c s1 o.qcow2",
            "snapshot -a s1 o.qcow2",
            "snapshot -d s1 o.qcow2",
            "bitmap --add o.qcow2 b0",
            "bitmap --remove o.qcow2 b0",
            "info --output=json --backing-chain o.qcow2",
            "map --output=json o.qcow2",
            "measure -O qcow2 o.qcow2",
            "check -r all o.qcow2",
            "compare o.qcow2 o.qcow2",
            "commit -q o.qcow2",
            "rebase -b big.qcow2 -F qcow2 o.qcow2",
            "amend -o refcount_bits=32 o.qcow2",
            "resize -q o.qcow2 2T",
            "dd -O qcow2 if=r.raw of=d.qcow2 bs=64k count=9",
            "convert -c -m 16 -W -O qcow2 r.raw z.qcow2",
            "convert -c -m 16 -O qcow2 -o compression_type=zstd,cluster_size=2M r.raw zs.qcow2",
            "convert -m 16 zs.qcow2 back.raw",
            f"convert {secret} -m 16 -O luks -o key-secret=s0,iter-time=10 r.raw l.luks",
            f"convert {secret} -m 16 --image-opts driver=luks,file.filename=l.luks,key-secret=s0 plain.raw",
        ):
            limited(line)
        for name in ("back.raw", "plain.raw"):
            assert (tmp_path / name).read_bytes() == (tmp_path / "r.raw").read_bytes()
