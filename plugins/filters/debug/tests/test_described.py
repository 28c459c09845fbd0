"""Filters as info and map show them, next to the real tool."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diskwright.testing.oracle import qemu_img

CHILDREN = ",".join(f"children.{i}.driver=raw,children.{i}.file.filename=r{i}" for i in range(3))
RAW, QCOW2 = '{"driver": "raw", "file.filename": "r0"}', '{"driver": "qcow2", "file.filename": "q"}'
NAMES = [
    ("blkdebug::q",),
    ("blkdebug:conf:q",),
    ("blkdebug:conf:file:q",),
    ("blkdebug::blkdebug:conf:q",),
    (f'json:{{"driver": "blkdebug", "image": {QCOW2}}}',),
    (f'json:{{"driver": "blkdebug", "image": {QCOW2}, "align": 4096, "inject-error": [{{"event": "l2_update"}}]}}',),
    (f'json:{{"driver": "blkdebug", "image": {RAW}, "set-state": [{{"event": "read_aio", "new_state": 42}}]}}',),
    ('json:{"driver": "qcow2", "file": {"driver": "blkdebug", "config": "conf", "image.filename": "q"}}',),
    ('json:{"driver": "qcow2", "file": {"driver": "blkdebug", "align": "4k", "image.filename": "q"}}',),
    ("--image-opts", "driver=blkdebug,image.driver=raw,image.file.filename=r0,inject-error.event=read_aio"),
    ("--image-opts", "driver=blkverify,raw.driver=raw,raw.file.filename=r0,test.driver=qcow2,test.file.filename=q"),
    ("--image-opts", f"driver=quorum,vote-threshold=2,{CHILDREN}"),
    ("--image-opts", f"driver=quorum,vote-threshold=1,read-pattern=fifo,{CHILDREN}"),
    ("--image-opts", "driver=blklogwrites,file.driver=raw,file.file.filename=r0,log.driver=file,log.filename=log"),
]
BLKDEBUG = "driver=blkdebug,image.driver=raw,image.file.filename=r0"
QUORUM = f"driver=quorum,{CHILDREN}"


def ours(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "diskwright", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def _images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        Path(f"r{index}").write_bytes(b"x" * 65536 + bytes(1 << 20))
    Path("log").write_bytes(bytes(4096))
    Path("conf").write_text('# comment\n[inject-error]\nevent = "write_aio"\nerrno = "28"\n', encoding="ascii")
    qemu_img("convert", "-O", "qcow2", "r0", "q")


def without_sizes(tree: Any) -> Any:
    """Space that files take changes on its own while a file system works."""
    if isinstance(tree, dict):
        return {key: without_sizes(value) for key, value in tree.items() if key != "actual-size"}
    return [without_sizes(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("name", NAMES)
def test_described_as_the_real_tool_does(name: tuple[str, ...]) -> None:
    expected = json.loads(qemu_img("info", "--output=json", *name).stdout)
    if "children" not in expected:
        pytest.skip("this qemu-img does not describe the nodes below (it is older than 8.0)")
    found = json.loads(ours("info", "--output=json", *name).stdout)
    assert without_sizes(found) == without_sizes(expected)


@pytest.mark.parametrize("name", [name for name in NAMES if "blklogwrites" not in name[-1]])
def test_mapped_as_by_the_real_tool(name: tuple[str, ...]) -> None:
    expected = json.loads(qemu_img("map", "--output=json", *name).stdout)
    found = json.loads(ours("map", "--output=json", *name).stdout)
    for row in found:
        if "compressed" not in expected[0]:  # older than 8.2
            del row["compressed"]
    assert found == expected


@pytest.mark.parametrize(
    "name",
    [
        f"{BLKDEBUG},{options}"
        for options in (
            "align=3",
            "align=2G",
            "align=1000",
            "max-transfer=4G",
            "max-transfer=512,align=4096",
            "max-write-zero=16M,opt-write-zero=15M",
            "opt-discard=4G",
            "opt-discard=4k,align=8k",
            "max-discard=15M,opt-discard=10M",
            "foo=1",
            "inject-error.0.event=foo",
            "inject-error.0.errno=5",
            "inject-error.0.event=read_aio,inject-error.0.iotype=foo",
            "inject-error.1.event=read_aio",
            "inject-error.0.event=read_aio,inject-error.0.once=maybe",
            "inject-error.0.event=read_aio,inject-error.0.errno=x",
            "set-state.0.event=foo",
            "set-state.0.new_state=3",
            "config=nothere",
        )
    ]
    + [
        f"{QUORUM},{options}"
        for options in (
            "vote-threshold=4",
            "vote-threshold=0",
            "vote-threshold=x",
            "read-pattern=fifo",
            "vote-threshold=2,blkverify=on",
            "vote-threshold=2,rewrite-corrupted=on",
        )
    ],
)
def test_refused_as_by_the_real_tool(name: str) -> None:
    expected = qemu_img("info", "--image-opts", name, check=False)
    found = ours("info", "--image-opts", name)
    assert (found.returncode, expected.returncode) == (1, 1)
    assert found.stderr.removeprefix("diskwright: ") == expected.stderr.removeprefix("qemu-img: ")


@pytest.mark.parametrize(
    "text",
    [
        "garbage\n",
        'event = "read_aio"\n',
        '[foo]\nevent = "read_aio"\n',
        '[inject-error]\nfoo = "1"\n',
        '[inject-error]\nevent="l2_load"\n',
        '[inject-error]\nerrno = "5"\n',
        "[inject-error]\nevent = read_aio\n",
        '[set-state]\nevent = "l1_update"\nnew_state = "x"\n',
        '[inject-error]\nevent = "none"\niotype = "bla"\n',
    ],
)
def test_files_of_rules_are_refused_as_by_the_real_tool(text: str) -> None:
    Path("conf").write_text(text, encoding="ascii")
    expected = qemu_img("info", "blkdebug:conf:q", check=False)
    found = ours("info", "blkdebug:conf:q")
    assert (found.returncode, expected.returncode) == (1, 1)
    assert found.stderr.removeprefix("diskwright: ") == expected.stderr.removeprefix("qemu-img: ")


@pytest.mark.parametrize(
    "name", ["blkdebug:q", "blkdebug:", "blkdebug::nothere", "blkverify:r0", "blkverify:r0:nothere"]
)
def test_names_are_refused_as_by_the_real_tool(name: str) -> None:
    expected = qemu_img("info", name, check=False)
    found = ours("info", name)
    assert found.stderr.removeprefix("diskwright: ") == expected.stderr.removeprefix("qemu-img: ")
