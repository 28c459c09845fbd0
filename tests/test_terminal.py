"""Names from strangers on a terminal: nothing that a terminal would obey, in no output and no message."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "diskwright"]
NAMES = {
    "escape": b"a\x1b]0;title\x07\x1b[2J",
    "newline": b"a\nqemu-img: all is well",
    "bytes": b"\xff\xfe\x9b31m",
    "direction": "a\u202eb\u2066".encode(),
    "backspace": b"secret\b\b\b\b\b\b\r",
}
COMMANDS = [
    ["info", "--", "NAME"],
    ["info", "--output=json", "--", "NAME"],
    ["info", "--backing-chain", "--", "NAME"],
    ["info", "--untrusted", "--", "NAME"],
    ["info", "--untrusted", "--output=json", "--", "NAME"],
    ["map", "--", "NAME"],
    ["map", "--output=picture", "--", "NAME"],
    ["map", "--output=svg", "--", "NAME"],
    ["check", "--", "NAME"],
    ["check", "--output=json", "--", "NAME"],
    ["snapshot", "-l", "--", "NAME"],
    ["compare", "--", "NAME", "NAME.nope"],
    ["convert", "-O", "raw", "--", "NAME", "nosuch/NAME"],
    ["convert", "-O", "NAME", "--", "NAME", "out"],
    ["create", "-f", "qcow2", "-u", "-b", "NAME", "-F", "raw", "NAME.new", "1M"],
    ["create", "-f", "qcow2", "-o", "NAME=1", "NAME.new", "1M"],
    ["resize", "--", "NAME", "NAME"],
    ["rebase", "-b", "NAME", "-F", "NAME", "--", "NAME"],
    ["commit", "-b", "NAME", "--", "NAME"],
    ["amend", "-o", "NAME=x", "--", "NAME"],
    ["bitmap", "--add", "--", "NAME", "NAME"],
    ["bitmap", "--remove", "--", "NAME", "NAMEx"],
    ["snapshot", "-d", "NAME", "--", "NAME"],
    ["dd", "if=NAME", "of=nosuch/NAME"],
    ["measure", "-O", "raw", "--", "NAME"],
    ["checksum", "--", "NAME"],
    ["info", "-f", "NAME", "--", "NAME"],
    ["info", "--NAME"],
    ["info", "--image-opts", "driver=qcow2,file.filename=NAME,NAME=1"],
    ["info", 'json:{"driver":"NAME"}'],
    ["info", "--object", "secret,id=NAME,NAME=1", "--", "NAME"],
    ["info", "--policy", "NAME=1", "--", "NAME"],
    ["-T", "NAME", "info", "--", "NAME"],
    ["NAME"],
]
OWN_COLOURS = re.compile("\x1b\\[[0-9]*m")


RUN_ALL = """
import json, os, sys
from diskwright.cli import main
for arguments in json.load(open(0)):
    main(arguments, program="diskwright")
    os.write(1, b"<next>")
"""


def on_terminal(folder: Path, commands: list[list[str]]) -> list[str]:
    """What each command prints; all in one process, for speed."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", RUN_ALL],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", "COLUMNS": "60"},
    )
    os.close(slave)
    assert child.stdin is not None
    child.stdin.write(json.dumps(commands).encode())
    child.stdin.close()
    parts = []
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:
            break
        parts.append(part)
    os.close(master)
    assert child.wait(60) == 0, b"".join(parts)
    return b"".join(parts).decode("utf-8", "surrogateescape").split("<next>")[:-1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each name, an image of that name, on a backing file of that name, with a snapshot and a bitmap of it."""
    made = {}
    for kind, name in NAMES.items():
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        target = os.fsencode(folder) + b"/" + name
        run = [os.fsencode(word) for word in PROGRAM]
        options = [b"-q", b"-u", b"-f", b"qcow2", b"-b", b"./no" + name, b"-F", b"raw", target, b"1M"]
        subprocess.run([*run, b"create", *options], check=True)
        (Path(os.fsdecode(os.fsencode(folder) + b"/no" + name))).write_bytes(bytes(1 << 20))
        subprocess.run([*run, b"snapshot", b"-c", name, target], check=True)
        if name.isascii():
            subprocess.run([*run, b"bitmap", b"--add", target, name], check=True)
    return made


@pytest.mark.parametrize("kind", NAMES)
def test_no_command_lets_names_through(kind: str, folders: dict[str, Path]) -> None:
    name = os.fsdecode(NAMES[kind])
    commands = [[word.replace("NAME", name) for word in command] for command in COMMANDS]
    printed = on_terminal(folders[kind], commands)
    assert len(printed) == len(commands)
    for command, text in zip(COMMANDS, printed, strict=True):
        lines = OWN_COLOURS.sub("", text).split("\r\n")
        assert all(line.isprintable() for line in lines), (command, text)
        assert not any(line.startswith("qemu-img: all is well") for line in lines), command
        assert "Traceback" not in text, (command, text)
