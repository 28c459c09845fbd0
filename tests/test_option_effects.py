"""What each option of each command does: with it the result is another than without, and as the real qemu-img's.

In the lines below the option stands in braces: it is taken out to see what is without it, and written in its other ways
to see that they are the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.parsers import COMMANDS, command_parser
from diskwright.testing.oracle import find_qemu_io
from diskwright.testing.sidebyside import Ended, Pair, real, sampled

LINES = """
amend {-f raw} -o compat=0.10 a.qcow2
amend {--image-opts} -o compat=1.1 driver=qcow2,file.filename=v2.qcow2
amend {-o compat=1.1} v2.qcow2
amend {-p} -o compat=1.1 v2.qcow2
amend -p {-q} -o compat=1.1 v2.qcow2
bench {-f raw} -c 1 -o 900k -s 512 a.qcow2
bench {--image-opts} -c 1 driver=qcow2,file.filename=a.qcow2
bench -f raw {-c 3} a.raw
bench -f raw -c 1 {-d 3} a.raw
bench -f raw -w -c 1 {-o 4k} a.raw
bench -f raw -w -c 1 {-s 8k} a.raw
bench -f raw -w -c 2 {-S 64k} a.raw
bench -f raw {-w} -c 1 a.raw
bench -f raw -w -c 1 {--pattern 7} a.raw
bench -f raw -c 1 {-t nonsense} a.raw
bench -f raw -c 1 {-i nonsense} a.raw
bench -f raw -c 1 {-n} a.raw
bench -f raw -w -c 4 -d 2 {--flush-interval 2} a.raw
bench -f raw -w -c 4 -d 2 --flush-interval 2 {--no-drain} a.raw
bitmap {-f raw} --add a.qcow2 x
bitmap {--image-opts} --add driver=qcow2,file.filename=a.qcow2 x
bitmap {--add} a.qcow2 x
bitmap {--remove} bm.qcow2 b0
bitmap {--clear} bm.qcow2 b0
bitmap {--enable} bm.qcow2 b1
bitmap {--disable} bm.qcow2 b0
bitmap {--merge b0} bm.qcow2 b1
bitmap --add {-g 4k} a.qcow2 x
bitmap --merge b0 {-b bm.qcow2} -F qcow2 bm.qcow2 b1
bitmap --merge b0 -b bm.qcow2 {-F raw} bm.qcow2 b1
check {-f raw} a.qcow2
check {--image-opts} driver=qcow2,file.filename=a.qcow2
check {--output json} a.qcow2
check {-r leaks} leak.qcow2
check {-T nonsense} a.qcow2
check {-q} a.qcow2
commit {-f raw} b.qcow2
commit {--image-opts} driver=qcow2,file.filename=b.qcow2
commit {-b a.qcow2} o.qcow2
commit {-d} b.qcow2
commit {-t nonsense} b.qcow2
commit {-r 1X} b.qcow2
commit {-p} b.qcow2
commit {-q} b.qcow2
compare {-f raw} a.qcow2 c.qcow2
compare {-F raw} a.qcow2 a.qcow2
compare {--image-opts} driver=raw,file.filename=a.raw driver=raw,file.filename=a.raw
compare {-s} c.qcow2 short.raw
compare {-T nonsense} a.qcow2 a.qcow2
compare {-p} a.qcow2 a.qcow2
compare {-q} a.qcow2 a.qcow2
convert {-f raw} a.qcow2 x
convert {--image-opts} driver=raw,file.filename=a.qcow2 x
convert {-l s1} s.qcow2 x
convert {--bitmaps} -O qcow2 bm.qcow2 x
convert {--salvage} -C a.raw x
convert {-O qcow2} a.raw x
convert -n {--target-image-opts} a.raw driver=qcow2,file.filename=c.qcow2
convert -O qcow2 {-o compat=0.10} a.raw x
convert -O qcow2 {-B a.qcow2} -F qcow2 b.qcow2 x
convert -O qcow2 -B a.qcow2 {-F qcow2} b.qcow2 x
convert -O qcow2 {-c} a.raw x
convert {-n} -O qcow2 a.raw v2.qcow2
convert {-C} -c -O qcow2 a.raw x
convert {-r 1X} a.raw x
convert -O qcow2 {-S 0} a.raw x
convert {-m 17} a.raw x
convert {-W} a.raw x
convert {-t nonsense} a.raw x
convert {-T nonsense} a.raw x
convert {-p} a.raw x
convert -p {-q} a.raw x
create {-f qcow2} x 1M
create -f qcow2 {-o cluster_size=4k} x 1M
create -f qcow2 {-b a.qcow2} -F qcow2 x 2M
create -f qcow2 -b a.qcow2 {-F qcow2} x 2M
create -f qcow2 -b nosuch -F qcow2 {-u} x 2M
create -f qcow2 {-q} x 2M
dd {-f raw} if=a.qcow2 of=x
dd {--image-opts} if=driver=raw,file.filename=a.qcow2 of=x
dd {-O qcow2} if=a.raw of=x
info {-f raw} a.qcow2
info {--image-opts} driver=qcow2,file.filename=a.qcow2
info {--output json} a.qcow2
info {--backing-chain} o.qcow2
map {-f raw} a.qcow2
map {--image-opts} driver=qcow2,file.filename=a.qcow2
map {--output json} a.qcow2
map {-s 512k} a.qcow2
map {-l 64k} a.qcow2
measure {-f raw} -O qcow2 a.qcow2
measure {--image-opts} -O qcow2 driver=qcow2,file.filename=a.qcow2
measure {-l s1} -O qcow2 s.qcow2
measure {-O qcow2} a.raw
measure -O qcow2 {-o cluster_size=2M} a.raw
measure {--size 5M} -O qcow2
measure {--output json} a.raw
rebase {-f raw} -u -b c.qcow2 -F qcow2 b.qcow2
rebase {--image-opts} -u -b c.qcow2 -F qcow2 driver=qcow2,file.filename=b.qcow2
rebase {-b c.qcow2} -F qcow2 b.qcow2
rebase -u -b c.qcow2 {-F qcow2} b.qcow2
rebase {-u} -b nosuch -F qcow2 b.qcow2
rebase {-c} -b c.qcow2 -F qcow2 b.qcow2
rebase {-t nonsense} -b c.qcow2 -F qcow2 b.qcow2
rebase {-T nonsense} -b c.qcow2 -F qcow2 b.qcow2
rebase {-p} -b c.qcow2 -F qcow2 b.qcow2
rebase -p {-q} -b c.qcow2 -F qcow2 b.qcow2
resize {-f raw} c.qcow2 2M
resize {--image-opts} driver=qcow2,file.filename=c.qcow2 2M
resize {--shrink} c.qcow2 512k
resize {--preallocation metadata} c.qcow2 2M
resize {-q} c.qcow2 2M
snapshot {-f raw} -l s.qcow2
snapshot {--image-opts} -l driver=qcow2,file.filename=s.qcow2
snapshot -l {-q} s.qcow2
snapshot {-l} s.qcow2
snapshot {-c new} a.qcow2
snapshot {-a s1} s.qcow2
snapshot {-d s1} s.qcow2
""".strip().splitlines()

WITHOUT_EFFECT = {
    "bench -f raw -w -c 4 -d 2 --flush-interval 2 {--no-drain} a.raw",
    "convert {-W} a.raw x",
    "snapshot -l {-q} s.qcow2",
    "snapshot {-l} s.qcow2",
}
"""Lines in which the option changes nothing that is printed or stored."""


def option_of(line: str) -> str:
    """The option in braces, without its value."""
    return line[line.index("{") + 1 : line.index("}")].split(maxsplit=1)[0]


def told(ended: Ended) -> tuple[int, str, str]:
    """What is printed, without times, what the file system says and names that only one of them has."""
    out = re.sub(r'(disk size: .*|"actual-size": \d+)', "S", ended.out)
    out = re.sub(r"(?<=completed in )[\d.]+", "T", re.sub(r"\s*\(\d+\.\d\d/100%\)\r?", "", out) + _progress(out))
    return ended.code, out, re.sub(r"#block\d+|(?<=persistent bitmaps to )[\w.]+", "N", ended.err)


def _progress(out: str) -> str:
    """Whether progress is shown to its end; the steps are up to the program."""
    return " (100.00/100%)" if "(100.00/100%)" in out else ""


def stored(pair: Pair, folder: Path) -> dict[str, Any]:
    """What the images are that a run has changed or made: description, map and content, by name."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        state = path.stat()
        if pair.expected.get(path.name) == (state.st_size, state.st_mtime_ns):
            continue
        described = real(["info", "-U", "--output=json", path.name], folder)
        facts = json.loads(described.out) if described.code == 0 else {}
        for name in ("actual-size", "children"):
            facts.pop(name, None)
        for snapshot in facts.get("snapshots", ()):
            del snapshot["date-sec"], snapshot["date-nsec"]
        mapped = real(["map", "-U", "--output=json", path.name], folder)
        content = real(["convert", "-U", "-O", "raw", path.name, "content.tmp"], folder)
        digest = hashlib.blake2b((folder / "content.tmp").read_bytes()).hexdigest() if content.code == 0 else ""
        (folder / "content.tmp").unlink(missing_ok=True)
        found[path.name] = facts, _areas(mapped.out), digest
    return found


def _areas(text: str) -> list[tuple[Any, ...]]:
    """A map without the places in the file, neighbours of the same kind joined."""
    areas: list[tuple[Any, ...]] = []
    for row in json.loads(text) if text else ():
        kind = tuple(row.get(name) for name in ("depth", "present", "zero", "data", "compressed"))
        if areas and areas[-1][1] == kind:
            areas.pop()
        areas.append((row["start"] + row["length"], kind))
    return areas


def alike(left: dict[str, Any]) -> dict[str, Any]:
    """What both programs must have left: which zeros are stored is up to them."""
    return {name: (facts, digest) for name, (facts, _, digest) in left.items()}


@pytest.mark.parametrize("line", sampled(LINES))
def test_effect(line: str, pair: Pair) -> None:
    """It is another than without the option, and the same as the real program's."""
    theirs, with_it = pair.run(re.sub(r"[{}]", "", line))
    assert "Traceback" not in with_it.err
    assert told(with_it) == told(theirs)
    left = stored(pair, pair.folders[1])
    if theirs.code == 0:
        assert alike(left) == alike(stored(pair, pair.folders[0]))
    pair.restore(pair.folders[1])
    without = pair.runner(re.sub(r"\{.*?\}", "", line), pair.folders[1])
    changes = told(without) != told(with_it) or stored(pair, pair.folders[1]) != left
    assert changes is (line not in WITHOUT_EFFECT)


def spellings() -> Iterator[tuple[str, str]]:
    """Each line with each other way to write its option."""
    seen = set()
    for line in LINES:
        command, option = line.split()[0], option_of(line)
        for action in command_parser(command, "qemu-img").declared():
            for other in action.option_strings:
                if option in action.option_strings and other != option and (command, other) not in seen:
                    seen.add((command, other))
                    yield re.sub(r"[{}]", "", line), re.sub(r"[{}]", "", line.replace("{" + option, "{" + other))


@pytest.mark.parametrize(("short", "long"), list(spellings()))
def test_other_names(short: str, long: str, pair: Pair) -> None:
    """The names that other versions and distributors have for an option are the same option."""
    results = []
    for line in (short, long):
        folder = pair.folders[1]
        pair.restore(folder)
        ended = pair.runner(line, folder)
        results.append((told(ended), stored(pair, folder)))
    assert results[0] == results[1]


OWN_LINES = """
checksum {-f raw} a.qcow2
checksum {--image-opts} driver=qcow2,file.filename=a.qcow2
checksum {-l s1} s.qcow2
checksum {-p} a.qcow2
""".strip().splitlines()
"""Commands that the real program does not have."""


@pytest.mark.parametrize("line", OWN_LINES)
def test_effect_of_own_commands(line: str, pair: Pair) -> None:
    for folder in pair.folders:
        pair.restore(folder)
    with_it, without = (pair.runner(re.sub(pattern, "", line), pair.folders[1]) for pattern in (r"[{}]", r"\{.*?\}"))
    assert with_it.code == 0
    assert told(with_it) != told(without)


SHARED_LINES = """
bench {-U} -c 1 a.qcow2
check {-U} a.qcow2
checksum {-U} a.qcow2
compare {-U} a.qcow2 c.qcow2
convert {-U} a.qcow2 x
dd {-U} if=a.qcow2 of=x
info {-U} a.qcow2
map {-U} --output=json a.qcow2
measure {-U} -O qcow2 a.qcow2
rebase {-U} -b a.qcow2 -F qcow2 c.qcow2
snapshot {-U} -l a.qcow2
""".strip().splitlines()
IN_USE = re.compile(r'Failed to get (shared )?"write" lock\nIs another process using the image \[a.qcow2\]\?\n$')


class TestInUse:
    """An image that another program is writing to is left alone, unless the user knows better."""

    @pytest.fixture(params=["by the real program", "by ours"])
    def held(self, request: pytest.FixtureRequest, pair: Pair) -> Iterator[list[Path]]:
        """Folders, in both of which ``a.qcow2`` is open for writing: by QEMU's code, or by ours."""
        for folder in pair.folders:
            pair.restore(folder)
        paths = [folder / "a.qcow2" for folder in pair.folders]
        with ExitStack() as undo:
            for path in paths:
                undo.enter_context(_by_ours(path) if request.param == "by ours" else _by_qemu(path))
            yield pair.folders

    def test_kept_out(self, held: list[Path], pair: Pair) -> None:
        for line in SHARED_LINES:
            theirs, mine = (
                run(re.sub(r"\{.*?\}", "", line), folder) for run, folder in zip((real, pair.runner), held, strict=True)
            )
            assert mine.code == (2 if line.startswith("compare") else 1), line
            assert IN_USE.search(mine.err), mine
            if not line.startswith("checksum"):
                assert told(mine) == told(theirs)

    def test_let_in(self, held: list[Path], pair: Pair) -> None:
        """Where nothing is written to it."""
        for line in SHARED_LINES:
            theirs, mine = (
                run(re.sub(r"[{}]", "", line), folder) for run, folder in zip((real, pair.runner), held, strict=True)
            )
            if not line.startswith("checksum"):
                assert told(mine) == told(theirs), line
            assert not IN_USE.search(mine.err)
            assert mine.code == (1 if line.startswith("compare") else 0), (line, mine)


@contextmanager
def _by_qemu(path: Path) -> Iterator[None]:
    """Have the real qemu-io keep an image open for writing."""
    program = find_qemu_io()
    with subprocess.Popen([program, "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"length\n")
        process.stdin.flush()
        process.stdout.readline()  # it answers when the image is open
        yield
        process.stdin.close()
        process.stdout.read()


@contextmanager
def _by_ours(path: Path) -> Iterator[None]:
    with Context().open(str(path), "qcow2", writable=True):
        yield


ELSEWHERE = {
    "-h": "core/tests/test_help.py",
    "--policy": "core/tests/test_policy.py",
    "--object": "core/tests/test_objects.py",
    "amend -t": "tests/test_node_options.py",
    "amend --force": "core/tests/test_cmd_amend.py",
    "bench -q": "core/tests/test_bench.py",
    "capabilities --output": "core/tests/test_capabilities.py",
    "checksum -a": "core/tests/test_checksum.py",
    "checksum -c": "core/tests/test_checksum.py",
    "checksum --output": "core/tests/test_checksum.py",
    "checksum -q": "core/tests/test_checksum.py",
    "convert --target-is-zero": "core/tests/test_cmd_convert.py",
    "convert --skip-broken-bitmaps": "core/tests/test_cmd_convert.py",
    "info --limits": "core/tests/test_cmd_info.py",
    "info -t": "core/tests/test_cmd_info.py",
    "info --untrusted": "tests/test_untrusted.py",
}
"""Options whose effect another module shows."""


def test_no_option_is_left_out() -> None:
    shown = {(line.split()[0], option_of(line)) for line in LINES}
    shown |= {(line.split()[0], option_of(line)) for line in (*OWN_LINES, *SHARED_LINES)}
    shown |= {tuple(name.split()) for name in ELSEWHERE if " " in name}
    missing = []
    for command in COMMANDS:
        for action in command_parser(command, "qemu-img").declared():
            names = action.option_strings
            if names and not any(name in ELSEWHERE or (command, name) in shown for name in names):
                missing.append(f"{command} {names[0]}")
    assert missing == []
