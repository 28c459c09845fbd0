"""``info``: its text and JSON, letter by letter, and its way along a backing chain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diskwright.engine.info import NodeInfo, inspect_chain
from diskwright.errors import RefusedByPolicy
from diskwright.extent import Kind
from diskwright.facts import Description, Snapshot
from diskwright.gate import Policy
from diskwright.render.info_text import info_lines, info_object, snapshot_lines
from diskwright.testing.oracle import qemu_img

SPECIFIC = {
    "compat": "1.1",
    "lazy-refcounts": False,
    "refcount-bits": 16,
    "bitmaps": [
        {"name": "b", "granularity": 65536, "flags": ["in-use", "auto"]},
        {"name": "c", "granularity": 512, "flags": []},
    ],
    "encrypt": {"format": "aes"},
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def describe(world: Any, **facts: Any) -> None:
    world.add("d/top", (Kind.ABSENT, 2 << 30), data=bytes(700), **facts)


def test_a_plain_image(world: Any) -> None:
    describe(world)
    assert world.run("info", "d/top") == (
        0,
        "image: d/top\nfile format: toy\nvirtual size: 2 GiB (2147483648 bytes)\ndisk size: 4 KiB\n"
        "cluster_size: 65536\nChild node '/file':\n    filename: d/top\n    protocol type: file\n"
        "    file length: 1 KiB (1024 bytes)\n    disk size: 4 KiB\n",
        "",
    )


def test_everything_there_is_to_say(world: Any) -> None:
    describe(
        world,
        backing_file="base",
        backing_format="raw",
        description=Description(SPECIFIC, dirty=True, cluster_size=512),
        snapshots=[Snapshot("1", "first", 1795350394, 421120000, 3_723_004_000_000, 5000, 0)],
    )
    code, out, err = world.run("info", "d/top")
    assert (code, err) == (0, "")
    assert out.partition("disk size: 4 KiB\n")[2].partition("Child")[0] == (
        "cluster_size: 512\ncleanly shut down: no\nbacking file: base (actual path: d/base)\nbacking file format: raw\n"
        "Snapshot list:\n"
        "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT\n"
        "1       first            4.88 KiB 2026-11-22 12:26:34  0001:02:03.004          0\n"
        "Format specific information:\n    compat: 1.1\n    lazy refcounts: false\n    bitmaps:\n        [0]:\n"
        "            flags:\n                [0]: in-use\n                [1]: auto\n            name: b\n"
        "            granularity: 65536\n        [1]:\n            flags:\n            name: c\n"
        "            granularity: 512\n    refcount bits: 16\n    encrypt:\n        format: aes\n"
    )


def test_json_letter_by_letter(world: Any) -> None:
    describe(
        world,
        backing_file="/base",
        backing_format="raw",
        description=Description({"compat": "1.1"}, cluster_size=512),
        snapshots=[Snapshot("1", "é", 1795350394, 421120000, 3_723_004_000_000, 0, 7)],
    )
    code, out, _ = world.run("info", "--output=json", "d/top")
    assert code == 0
    assert (
        out
        == """{
    "children": [
        {
            "name": "file",
            "info": {
                "children": [
                ],
                "virtual-size": 1024,
                "filename": "d/top",
                "format": "file",
                "actual-size": 4096,
                "format-specific": {
                    "type": "file",
                    "data": {
                    }
                },
                "dirty-flag": false
            }
        }
    ],
    "backing-filename-format": "raw",
    "snapshots": [
        {
            "icount": 7,
            "vm-clock-nsec": 4000000,
            "name": "\\u00E9",
            "date-sec": 1795350394,
            "date-nsec": 421120000,
            "vm-clock-sec": 3723,
            "id": "1",
            "vm-state-size": 0
        }
    ],
    "virtual-size": 2147483648,
    "filename": "d/top",
    "cluster-size": 512,
    "format": "toy",
    "actual-size": 4096,
    "format-specific": {
        "type": "toy",
        "data": {
            "compat": "1.1"
        }
    },
    "full-backing-filename": "/base",
    "backing-filename": "/base",
    "dirty-flag": false
}
"""
    )


def test_only_the_image_itself_is_opened(world: Any) -> None:
    describe(world, backing_file="missing")
    assert world.run("info", "d/top")[0] == 0
    assert world.protocol.opened == ["d/top"]


def test_a_chain(world: Any) -> None:
    describe(world, backing_file="mid", backing_format="toy")
    world.add("d/mid", (Kind.ABSENT, 512), backing_file="./base")
    world.add("d/./base", (Kind.ABSENT, 512))
    code, out, _ = world.run("info", "--backing-chain", "d/top")
    assert code == 0
    assert [part.splitlines()[0] for part in out.split("\n\n")] == ["image: d/top", "image: d/mid", "image: d/./base"]
    layers = json.loads(world.run("info", "-b", "--output", "json", "d/top")[1])
    assert [layer["filename"] for layer in layers] == ["d/top", "d/mid", "d/./base"]
    assert json.loads(world.run("info", "-b", "--output", "json", "d/./base")[1])[0]["filename"] == "d/./base"


def test_a_loop_ends_under_whatever_name(world: Any) -> None:
    describe(world, backing_file="mid")
    world.add("d/mid", (Kind.ABSENT, 512), backing_file="./top")
    world.toys["d/./top"] = world.toys["d/top"]
    code, out, err = world.run("info", "--backing-chain", "d/top")
    assert (code, out, err) == (1, "", "qemu-img: Backing file 'd/./top' creates an infinite loop.\n")


def test_a_broken_chain_prints_nothing_but_the_error(world: Any) -> None:
    describe(world, backing_file="gone")
    code, out, err = world.run("info", "--backing-chain", "d/top")
    assert (code, out) == (1, "")
    assert err == "qemu-img: Could not open 'd/gone': Could not open 'd/gone': No such file or directory\n"


def test_a_policy_keeps_to_the_named_image(world: Any) -> None:
    describe(world, backing_file="mid")
    world.add("d/mid", (Kind.ABSENT, 512))
    world.context.gate.policy = Policy(implicit=False)
    assert world.run("info", "d/top")[0] == 0
    with pytest.raises(RefusedByPolicy):
        inspect_chain(world.context, "d/top")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expecting one image file name"),
        (["a", "b"], "Expecting one image file name"),
        (["--output", "xml", "a"], "--output expects 'human' or 'json' not 'xml'"),
        (["nothing"], "Could not open 'nothing': Could not open 'nothing': No such file or directory"),
    ],
)
def test_mistakes(world: Any, arguments: list[str], message: str) -> None:
    code, out, err = world.run("info", *arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f"qemu-img: {message}"


def test_facts_that_are_not_known() -> None:
    info = NodeInfo("x", "toy", 512, None, encrypted=True, backing_file="b")
    assert list(info_lines(info)) == [
        "image: x",
        "file format: toy",
        "virtual size: 512 B (512 bytes)",
        "disk size: unavailable",
        "encrypted: yes",
        "backing file: b (cannot determine actual path)",
    ]
    assert info_object(info) == {
        "filename": "x",
        "format": "toy",
        "virtual-size": 512,
        "encrypted": True,
        "backing-filename": "b",
        "children": [],
    }


def test_a_format_on_a_format_is_described_inside() -> None:
    file = NodeInfo("f", "file", 512, 0)
    middle = NodeInfo("m", "toy", 512, 0, children={"file": file})
    lines = list(info_lines(NodeInfo("t", "toy", 512, 0, children={"file": middle})))
    assert lines[4:] == [
        "Child node '/file':",
        "    image: m",
        "    file format: toy",
        "    virtual size: 512 B (512 bytes)",
        "    disk size: 0 B",
        "    Child node '/file/file':",
        "        filename: f",
        "        protocol type: file",
        "        file length: 512 B (512 bytes)",
        "        disk size: 0 B",
    ]


def test_snapshot_columns_are_counted_in_bytes() -> None:
    *_, row = snapshot_lines([Snapshot("1", "é", 0, 0, 0, 0)])
    assert row == f"1       {'é':<15}      0 B 1970-01-01 00:00:00  0000:00:00.000         --"


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("format", ["raw", "qcow2", "vdi"])
def test_json_says_what_the_real_one_says(tmp_path: Path, format: str) -> None:
    pytest.importorskip(f"diskwright_{format}", reason=f"the package diskwright-{format} is not installed")
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", format, path, "3M")
    theirs = json.loads(qemu_img("info", "--output=json", "-f", format, path).stdout)
    done = subprocess.run(
        [sys.executable, "-m", "diskwright", "info", "--output=json", "-f", format, path],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = json.loads(done.stdout)
    if "children" not in theirs:  # before 8.0
        del ours["children"]
    assert ours == theirs


def test_describing_loads_no_numpy(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(512))
    code = (
        "import sys; from diskwright.cli import main; "
        f"assert main(['info', '-f', 'raw', {str(path)!r}]) == 0; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_limits(tmp_path: Path) -> None:
    """Only if asked for, of the image and of its file; past the page cache the file wants whole blocks."""
    image = tmp_path / "image.qcow2"
    subprocess.run([sys.executable, "-m", "diskwright", "create", "-q", "-f", "qcow2", image, "1M"], check=True)

    def info(*arguments: str) -> str:
        command = [sys.executable, "-m", "diskwright", "info", *arguments, str(image)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "Block limits" not in info()
    assert "Block limits:\n    write zeroes alignment: 65536\n    request alignment: 1\n" in info("--limits")
    facts = json.loads(info("--limits", "-t", "none", "--output=json"))
    assert facts["limits"]["discard-alignment"] == 65536
    below = facts["children"][0]["info"]["limits"]
    assert below.keys() == {"request-alignment", "max-iov", "min-mem-alignment", "opt-mem-alignment"}
    assert below["request-alignment"] in (512, 4096)
    assert json.loads(info("--limits", "--backing-chain", "--output=json"))[0]["limits"]["request-alignment"] == 1
