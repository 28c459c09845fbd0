"""The filters through the command line, next to the real tool."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diskwright.testing.oracle import qemu_img

GROUP = ("--object", "throttle-group,id=tg,x-iops-total=100000")
FILTERS = {
    "throttle": "driver=throttle,throttle-group=tg,",
    "copy-on-read": "driver=copy-on-read,",
    "preallocate": "driver=preallocate,",
    "compress": "driver=compress,",
}
BELOW = {
    "qcow2": "file.driver=qcow2,file.file.filename=top.qcow2",
    "raw": "file.driver=raw,file.file.filename=disk.raw",
    "file": "file.driver=file,file.filename=disk.raw",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overlay, its backing file with a hole between data, and a raw disk."""
    version = re.search(r"version (\d+)", qemu_img("--version").stdout)
    if version is None or int(version[1]) < 8:
        pytest.skip("this qemu-img does not describe child nodes")
    folder = tmp_path_factory.mktemp("made")
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.write(b"\1" * (1 << 20))
        file.seek(2 << 20)
        file.write(b"\2" * (1 << 16))
        file.truncate(4 << 20)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, folder / "base.qcow2")
    overlay = folder / "overlay.raw"
    overlay.write_bytes(disk.read_bytes()[: 1 << 20] + b"\3" * (1 << 16) + disk.read_bytes()[(1 << 20) + (1 << 16) :])
    top = folder / "top.qcow2"
    qemu_img("convert", "-O", "qcow2", "-B", folder / "base.qcow2", "-F", "qcow2", overlay, top)
    qemu_img("rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", top)
    qemu_img("snapshot", "-c", "s1", top)
    return folder


class Pair:
    """Two folders with the same images, one for each tool."""

    def __init__(self, made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders = [folder / "real", folder / "ours"]
        self.chdir = monkeypatch.chdir
        for place in self.folders:
            shutil.copytree(made, place)

    def run(self, *arguments: str) -> str:
        """Run both tools; what they said and how they ended, which has to be the same."""
        shown = []
        for folder in self.folders:
            self.chdir(folder)
            if folder.name == "real":
                done = qemu_img(*arguments, check=False)
            else:
                command = [sys.executable, "-m", "diskwright", *arguments]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            error = re.sub(r"^(qemu-img|diskwright|__main__\.py): ", "", done.stderr, flags=re.MULTILINE)
            text = f"{done.stdout}{error}-> {done.returncode}"
            # How much of a file its file system stores is not ours to say.
            text = re.sub(r"(disk size: ).*|(\"actual-size\": )\d+", r"\1\2...", text)
            shown.append(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|(\"date-n?sec\": )\d+", r"\1...", text))
        assert shown[1] == shown[0]
        return shown[0]


@pytest.fixture
def pair(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(made, tmp_path, monkeypatch)


CASES = [(a, b) for a in FILTERS for b in BELOW if a != "compress" or b == "qcow2"]


@pytest.mark.parametrize(("name", "below"), CASES)
class TestCommands:
    """Each command on each filter."""

    def test_looking(self, pair: Pair, name: str, below: str) -> None:
        tree = FILTERS[name] + BELOW[below]
        for command in (
            ("info",),
            ("info", "--output=json"),
            ("info", "--backing-chain", "--output=json"),
            ("map",),
            ("map", "--output=json"),
            ("measure", "-O", "qcow2"),
            ("check",),
            ("check", "-r", "all"),
            ("snapshot", "-l"),
            ("compare", "--image-opts", "driver=raw,file.filename=disk.raw"),
            ("convert", "-l", "s1", "-O", "raw"),
        ):
            operands = [tree, "out.raw"] if command[0] == "convert" else [tree]
            shown = pair.run(*command, *GROUP, "--image-opts", *operands)
            if name == "copy-on-read" and command[-1] != "all":
                assert "Block node is read-only" in shown

    def test_changing(self, pair: Pair, name: str, below: str) -> None:
        tree = FILTERS[name] + BELOW[below]
        for command in (
            ("amend", "-o", "compat=0.10", "--image-opts", tree),
            ("snapshot", "-c", "s2", "--image-opts", tree),
            ("snapshot", "-a", "s1", "--image-opts", tree),
            ("snapshot", "-d", "s1", "--image-opts", tree),
            ("snapshot", "-d", "s2", "--image-opts", tree),
            ("resize", "--image-opts", tree, "8M"),
            ("resize", "--image-opts", tree, "2M"),
            ("resize", "--shrink", "--image-opts", tree, "3M"),
            ("resize", "--preallocation=falloc", "--image-opts", tree, "+1M"),
            ("rebase", "-b", "", "--image-opts", tree),
        ):
            pair.run(command[0], *GROUP, *command[1:])
        pair.run("info", "--output=json", "disk.raw")
        left, right = (folder / "top.qcow2" for folder in pair.folders)
        qemu_img("compare", left, right)
        qemu_img("check", right)
        assert (
            '"virtual-size": 4194304'
            in qemu_img("info", "--output=json", right if below == "qcow2" else "disk.raw").stdout
        )


@pytest.mark.parametrize(
    "tree",
    [
        "driver=throttle,file.driver=file,file.filename=disk.raw",
        "driver=throttle,throttle-group=nope,file.driver=file,file.filename=disk.raw",
        "driver=throttle,throttle-group=tg",
        "driver=throttle,throttle-group=tg,foo=1,file.driver=file,file.filename=disk.raw",
        "driver=compress,file.driver=file,file.filename=disk.raw",
        "driver=compress,file.driver=raw,file.file.filename=disk.raw",
        "driver=compress,foo=1,file.driver=qcow2,file.file.filename=top.qcow2",
        "driver=raw,file.driver=copy-on-read,file.file.driver=file,file.file.filename=disk.raw",
        "driver=preallocate,prealloc-align=100,file.driver=file,file.filename=disk.raw",
        "driver=preallocate,prealloc-align=0,prealloc-size=0,file.driver=file,file.filename=disk.raw",
        "driver=preallocate,foo=1,file.driver=file,file.filename=disk.raw",
        "driver=qcow2,file.driver=preallocate,file.file.filename=top.qcow2",
        "driver=qcow2,file.driver=throttle,file.throttle-group=tg,file.file.driver=file,file.file.filename=top.qcow2",
        "driver=throttle,throttle-group=tg,file.driver=preallocate,file.file.driver=qcow2,file.file.file.filename=top.qcow2",
    ],
)
def test_names_and_refusals(pair: Pair, tree: str) -> None:
    pair.run("info", *GROUP, "--image-opts", tree)
    pair.run("map", "--output=json", *GROUP, "--image-opts", tree)


@pytest.mark.parametrize("tree", ["driver=preallocate,", "driver=throttle,throttle-group=tg,"])
def test_a_file_name_alone_is_no_image(pair: Pair, tree: str) -> None:
    assert "protocol type: file" in pair.run("info", *GROUP, "--image-opts", f"{tree}file.filename=top.qcow2")


@pytest.mark.parametrize(
    "tree",
    [
        "driver=copy-on-read,bottom=x,file.driver=raw,file.file.filename=disk.raw",
        "driver=copy-on-read,read-only=on,file.driver=raw,file.file.filename=disk.raw",
        "driver=copy-on-read,bottom=f,file.driver=preallocate,file.node-name=f,file.file.driver=raw,"
        "file.file.file.filename=disk.raw",
    ],
)
def test_refused_for_writing(pair: Pair, tree: str) -> None:
    assert "-> 1" in pair.run("resize", "--image-opts", tree, "+1M")


def test_a_missing_backing_file_below_a_filter(pair: Pair) -> None:
    for folder in pair.folders:
        (folder / "base.qcow2").unlink()
    assert "-> 1" in pair.run("info", "--image-opts", FILTERS["preallocate"] + BELOW["qcow2"])


def test_relative_names_do_not_go_by_a_tree(pair: Pair) -> None:
    tree = FILTERS["preallocate"] + BELOW["qcow2"]
    assert "-> 1" in pair.run("rebase", "-b", "x.qcow2", "-F", "qcow2", "--image-opts", tree)


@pytest.mark.parametrize("name", ["preallocate", "copy-on-read"])
def test_committing_through_a_filter(pair: Pair, name: str) -> None:
    pair.run("commit", "--image-opts", FILTERS[name] + BELOW["qcow2"])
    qemu_img("compare", *(folder / "base.qcow2" for folder in pair.folders))
    pair.run("map", "--output=json", "top.qcow2")


@pytest.mark.parametrize("options", [(), ("-m", "8"), ("-m", "16", "-W"), ("-S", "0"), ("-c",), ("--target-is-zero",)])
def test_converting_to_compressed(pair: Pair, options: tuple[str, ...]) -> None:
    for folder in pair.folders:
        qemu_img("create", "-q", "-f", "qcow2", folder / "new.qcow2", "4M")
    source, target = (
        "driver=raw,file.filename=disk.raw",
        "driver=compress,file.driver=qcow2,file.file.filename=new.qcow2",
    )
    shown = pair.run("convert", "-n", *options, "--image-opts", "--target-image-opts", source, target)
    assert shown.endswith(f"-> {int(options == ('-c',))}")
    tables = [qemu_img("map", "--output=json", folder / "new.qcow2").stdout for folder in pair.folders]
    # Where zeros have been written and where nothing is there reads the same.
    plain = [re.sub(r'"present": (true|false), "zero": true', '"zero": true', table) for table in tables]
    assert plain[1] == plain[0]
    qemu_img("check", pair.folders[1] / "new.qcow2")


DEFINITIONS = (
    "x-bps-total=1,x-bps-read=1",
    "x-iops-total=1,x-iops-write=1",
    "x-bps-total=1,x-bps-total-max=2,x-bps-read-max=3",
    "x-bps-total-max=3",
    "x-iops-size=10",
    "x-iops-size=4096,x-bps-total=3",
    "x-bps-total=4M",
    "x-bps-total=-5",
    "x-bps-total=10,x-bps-total-max=5",
    "x-bps-total=100,x-bps-total-max-length=5",
    "x-bps-total=100,x-bps-total-max=200,x-bps-total-max-length=0",
    "x-bps-total=1000000000000000",
    "x-bps-total=1000000000000001",
    "x-bps-total=9223372036854775808",
    "x-bps-total=0x1000",
    "x-bps-total=010",
    "x-bps-total=1e6",
    "x-bps-total=",
    "x-bps-total",
    "x-bps-total=100000000,x-bps-total-max=200000000,x-bps-total-max-length=99999999999",
    "x-bps-total=100000000,x-bps-total-max=200000000000000,x-bps-total-max-length=99999999",
    "x-bps-total=5000000,x-bps-total-max-length=1",
    "x-iops-size=0",
    "x-foo=1",
    "limits=5",
    "limits.foo=1",
    "limits.bps-total=5",
    "limits.bps-total=1k",
    "limits.bps-total=-5",
    "limits.iops-size=5",
    "limits.iops-total=10,limits.iops-size=4096",
    "limits.bps-total-max-length=3",
    "limits.bps-total=100,limits.bps-total-max=200,limits.bps-total-max-length=99999999999",
)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_defining_groups(pair: Pair, definition: str) -> None:
    pair.run("info", "--object", f"throttle-group,id=tg,{definition}", "disk.raw")


@pytest.mark.parametrize(
    "values",
    [
        '"limits": {"bps-total": 5, "bps-read": 6}',
        '"limits": {"bps-total": "5"}',
        '"x-bps-total": true',
        '"x-bps-total": 5',
    ],
)
def test_defining_groups_in_json(pair: Pair, values: str) -> None:
    pair.run("info", "--object", f'{{"qom-type": "throttle-group", "id": "tg", {values}}}', "disk.raw")
