"""Keys that are wrong, missing or damaged: one clear line from each command, and never a word of the secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskwright.cli import TRACEBACK_VARIABLE
from diskwright.context import Context
from diskwright.engine.creation import CreateRequest, create

RIGHT, WRONG = "Correct-Horse-Battery", "Staple-Tr0ub4dor"
OBJECTS = ["--object", f"secret,id=right,data={RIGHT}", "--object", f"secret,id=wrong,data={WRONG}"]

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Run a command with both secrets: its exit code and all that it says. No secret must be in that, or in a file."""
    from diskwright.cli import main

    seen: list[str] = []

    def call(command: str, *arguments: str) -> tuple[int, str]:
        code = main([command, *OBJECTS, *arguments], program="qemu-img")
        seen.append("".join(capsys.readouterr()))
        return code, seen[-1]

    yield call
    assert seen
    for secret in (RIGHT, WRONG):
        assert not [text for text in seen if secret in text]
        assert not [path for path in tmp_path.iterdir() if secret.encode() in path.read_bytes()]


@pytest.fixture(params=["luks", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, str]:
    """An encrypted image: format, file, and what the names of its options begin with."""
    format, prefix = request.param, {"luks": "", "qcow2": "encrypt."}[request.param]
    path = tmp_path / "x"
    context = Context()
    context.objects.add(f"secret,id=right,data={RIGHT}")
    values = {f"{prefix}key-secret": "right", f"{prefix}iter-time": 0}
    if format == "qcow2":
        values["encrypt.format"] = "luks"
    create(context, CreateRequest(str(path), format, 1 << 20, values))
    return format, path, prefix


def volume_of(path: Path) -> int:
    """Where in a file the LUKS header is."""
    return path.read_bytes().index(b"LUKS\xba\xbe")


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


COMMANDS = [
    "map IMAGE",
    "convert IMAGE -O raw OUT",
    "compare IMAGE IMAGE",
    "resize IMAGE 2M",
    "amend -o Pstate=active,Pnew-secret=wrong IMAGE",
    "measure IMAGE",
    "check IMAGE",
    "snapshot -c a IMAGE",
    "bitmap --add IMAGE b",
    "commit IMAGE",
]
"""They read or write the data, or something that only the key's owner is to change. ``P`` is for the prefix."""


def words(command: str, name: str, prefix: str, out: Path) -> list[str]:
    first, *rest = command.split()
    exchange = {"IMAGE": name, "OUT": str(out)}
    return [first, "--image-opts", *(exchange.get(w, w.replace("P", prefix) if "=" in w else w) for w in rest)]


def spoil_slot(path: Path) -> None:
    """Damage the key material of the only keyslot."""
    overwrite(path, volume_of(path) + 4096 + 77, bytes(64))


def spoil_cipher(path: Path) -> None:
    overwrite(path, volume_of(path) + 8, b"serpent\0")


def spoil_iterations(path: Path) -> None:
    overwrite(path, volume_of(path) + 212, b"\xff" * 4)


def leave(path: Path) -> None:
    pass


CASES = {
    "wrong": (leave, "PREFIXkey-secret=wrong", "Invalid password, cannot unlock any keyslot"),
    "missing": (leave, None, "Parameter 'PREFIXkey-secret' is required for cipher"),
    "undefined": (leave, "PREFIXkey-secret=nope", "No secret with id 'nope'"),
    "damaged": (spoil_slot, "PREFIXkey-secret=right", "Invalid password, cannot unlock any keyslot"),
    "cipher": (spoil_cipher, "PREFIXkey-secret=right", "Algorithm 'serpent-256' not supported"),
    "iterations": (
        spoil_iterations,
        "PREFIXkey-secret=right",
        "Keyslot 0 asks for 4294967295 iterations of PBKDF2, more than the limit of 70000000",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", CASES)
def test_one_line_from_each_command(
    run: Run, image: tuple[str, Path, str], tmp_path: Path, case: str, command: str
) -> None:
    format, path, prefix = image
    spoil, option, reason = CASES[case]
    spoil(path)
    before = path.read_bytes()
    name = ",".join([f"driver={format}", *([option] if option else []), f"file.filename={path}"])
    name = name.replace("PREFIX", prefix)
    code, said = run(*words(command, name, prefix, tmp_path / "out"))
    line, *hints = said.splitlines()
    assert code == (2 if command.startswith("compare") else 1)
    assert line == f"qemu-img: Could not open '{name}': {reason.replace('PREFIX', prefix)}"
    assert hints == (["The option max-iterations sets another limit."] if case == "iterations" else [])
    assert path.read_bytes() == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoil", [leave, spoil_slot, spoil_cipher, spoil_iterations])
def test_describing_needs_no_key(run: Run, image: tuple[str, Path, str], spoil: Callable[[Path], None]) -> None:
    format, path, _ = image
    spoil(path)
    code, said = run("info", str(path))
    assert code == 0
    assert f"file format: {format}" in said
    assert f"cipher alg: {'serpent' if spoil is spoil_cipher else 'aes'}-256" in said
    assert run("snapshot", "-l", str(path))[0] == 0


def test_an_overlay_needs_no_key(run: Run, image: tuple[str, Path, str], tmp_path: Path) -> None:
    """The backing file is looked at when an overlay is created, but not read."""
    format, path, _ = image
    overlay = tmp_path / "overlay"
    assert run("create", "-q", "-f", "qcow2", "-b", str(path), "-F", format, str(overlay)) == (0, "")
    code, said = run("info", str(overlay))
    assert code == 0
    assert "virtual size: 1 MiB" in said
    assert f"backing file format: {format}" in said


@pytest.mark.parametrize("case", CASES)
def test_tracebacks_tell_no_secrets(
    image: tuple[str, Path, str], tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show what the code is, not what it works on."""
    format, path, prefix = image
    spoil, option, _ = CASES[case]
    spoil(path)
    name = ",".join([f"driver={format}", *([option] if option else []), f"file.filename={path}"])
    first, *rest = words(COMMANDS[4], name.replace("PREFIX", prefix), prefix, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "diskwright", first, *OBJECTS, *rest],
        env={**os.environ, TRACEBACK_VARIABLE: "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    for secret in (RIGHT, WRONG):
        assert secret not in done.stdout + done.stderr
