"""Several openers of one LUKS image, this program and QEMU: they share the payload, but not changes of its keys."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diskwright.context import Context
from diskwright.engine.amend import AmendRequest, amend
from diskwright.engine.copy import no_progress
from diskwright.engine.creation import CreateRequest, create
from diskwright.errors import LockConflict
from diskwright.testing import qemu_img
from diskwright.trees import OptionString

SECRETS = ["--object", "secret,id=s0,data=abc", "--object", "secret,id=s1,data=def"]
ACTIVE = "state=active,new-secret=s1,iter-time=1"
ALONE = 'Failed to get shared "consistent read" lock'


@pytest.fixture
def path(context: Context, tmp_path: Path) -> Path:
    """A new image."""
    path = tmp_path / "x.luks"
    create(context, CreateRequest(str(path), "luks", 1 << 20, {"key-secret": "s0", "iter-time": 0}))
    return path


def named(path: Path) -> OptionString:
    return OptionString(f"driver=luks,key-secret=s0,file.filename={path}")


@contextmanager
def qemu_has_it_open(path: Path, *, writable: bool) -> Iterator[None]:
    """A process of QEMU's with the image open."""
    chosen = os.environ.get("DISKWRIGHT_QEMU_IMG")
    program = shutil.which(str(Path(chosen).with_name("qemu-io")) if chosen else "qemu-io")
    if program is None:
        pytest.skip("qemu-io is not installed")
    mode = [] if writable else ["-r"]
    command = [program, *SECRETS[:2], *mode, "--image-opts", named(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("length\n")
        process.stdin.flush()
        while "MiB" not in process.stdout.readline():
            assert process.poll() is None
        yield
        process.stdin.close()


@contextmanager
def locks_of(path: Path) -> Iterator[list[int]]:
    """The lock bytes that are held on a file; the system joins neighbours to ranges."""
    inode = path.stat().st_ino
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
    yield sorted({byte for row in rows if "OFDLCK" in row for byte in range(int(row[-2]), int(row[-1]) + 1)})


@pytest.mark.parametrize("writable", [False, True])
def test_bytes_are_those_of_qemu(context: Context, path: Path, writable: bool) -> None:
    with qemu_has_it_open(path, writable=writable), locks_of(path) as theirs:
        assert theirs
    with context.open(named(path), writable=writable), locks_of(path) as ours:
        assert ours == theirs == ([100, 101] if writable else [100])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_openers_share_the_image(context: Context, path: Path, first: bool, second: bool) -> None:
    with context.open(named(path), writable=first) as one, context.open(named(path), writable=second) as other:
        assert one.read_at(0, 512) == other.read_at(0, 512)
    with qemu_has_it_open(path, writable=first), context.open(named(path), writable=second) as other:
        assert len(other.read_at(0, 512)) == 512


@pytest.mark.parametrize("writable", [False, True])
def test_keys_are_changed_alone(context: Context, path: Path, writable: bool) -> None:
    before = path.read_bytes()
    with context.open(named(path), writable=writable):
        with pytest.raises(LockConflict, match=f"^{ALONE}$") as caught:
            amend(context, AmendRequest(named(path), [ACTIVE]))
        assert caught.value.hint == f"Is another process using the image [{path}]?"
        done = qemu_img("amend", *SECRETS, "--image-opts", "-o", ACTIVE, named(path), check=False)
        assert (done.returncode, ALONE in done.stderr) == (1, True)
    with qemu_has_it_open(path, writable=writable), pytest.raises(LockConflict, match=ALONE):
        amend(context, AmendRequest(named(path), [ACTIVE]))
    assert path.read_bytes() == before
    amend(context, AmendRequest(named(path), [ACTIVE]))
    with context.open(OptionString(named(path).replace("s0", "s1"))) as image:
        assert image.size == 1 << 20


def test_nobody_opens_it_while_keys_are_changed(context: Context, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def derive(*_: object) -> bytes:
        with pytest.raises(LockConflict, match='Failed to get "consistent read" lock'):
            context.open(named(path)).close()
        done = qemu_img("map", *SECRETS, "--image-opts", named(path), check=False)
        assert 'Failed to get "consistent read" lock' in done.stderr
        raise KeyError("seen")

    with context.open(named(path), writable=True) as image:
        monkeypatch.setattr("diskwright_luks.volume.derive", derive)
        values = {"state": "active", "new-secret": "s1"}
        with pytest.raises(KeyError, match="seen"):
            context.formats.call("amend", "luks", image=image, values=values, force=False, progress=no_progress)
        monkeypatch.undo()
        with context.open(named(path)) as other:  # and everybody after it has failed
            assert other.size == 1 << 20


def test_describing_takes_no_lock(context: Context, path: Path) -> None:
    with context.open(str(path), describe_only=True), locks_of(path) as held:
        assert held == []


def test_a_detached_header_is_locked_as_the_payload(context: Context, tmp_path: Path) -> None:
    header, payload = tmp_path / "h", tmp_path / "p"
    values = {"key-secret": "s0", "iter-time": 0, "detached-header": True}
    create(context, CreateRequest(str(header), "luks", values=values))
    payload.write_bytes(bytes(1 << 20))
    name = OptionString(f"driver=luks,key-secret=s0,file.filename={payload},header.filename={header}")
    with context.open(name, writable=True):
        for path in (header, payload):
            with locks_of(path) as held:
                assert held == [100, 101]
        with pytest.raises(LockConflict, match=ALONE):
            amend(context, AmendRequest(name, [ACTIVE]))


def test_convert_lets_nobody_write_meanwhile(context: Context, path: Path) -> None:
    with context.open(named(path), exclusive=True), locks_of(path) as held:
        assert held == [100, 201, 203]
