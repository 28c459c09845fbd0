"""Completion in the shells themselves: what is offered when a key is pressed behind the start of a command line."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from diskwright.parsers import COMMANDS

PROGRAM = "qemu-img"
"""The name that the world calls the program by: that of the link."""

_BASH = r"""
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
function=$(complete -p qemu-img | sed 's/.* -F \([^ ]*\) .*/\1/')
$function
printf '%s\n' "${COMPREPLY[@]}"
"""

_ZSH = r"""
PS1= PS2= RPS1=
fpath=($FUNCTIONS $fpath)
autoload -Uz compinit; compinit -u -D
compadd() {
  if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)* ]]; then
    local -a found
    builtin compadd -O found "$@"
    (( $#found )) && print -rl -- $found >> $OUT
  fi
  builtin compadd "$@"
}
finish() { print -r -- END >> $OUT; BUFFER=; }
zle -N finish
bindkey '^X' finish
bindkey '^I' complete-word
print END >> $OUT
"""

Complete = Callable[[str], set[str]]


def require(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


def bash_words(line: str) -> list[str]:
    """The words of a line as bash cuts them for completion: equals signs are words of their own."""
    words = [part for word in line.split(" ") for part in (re.split("(=)", word) if "=" in word else [word])]
    return words[:-1] if len(words) > 1 and words[-1] == "" and words[-2] == "=" else words


def in_bash(script: Path, folder: Path, undo: ExitStack) -> Complete:
    bash = require("bash")

    def complete(line: str) -> set[str]:
        command = [bash, "--norc", "-c", _BASH, "bash", str(script), *bash_words(line)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert not done.stderr
        # Of a word with an equals sign, bash replaces what is behind it.
        before = re.sub("[^ =]*$", "", line).rpartition(" ")[2]
        return {before + text for text in done.stdout.splitlines() if text}

    return complete


def in_fish(script: Path, folder: Path, undo: ExitStack) -> Complete:
    fish = require("fish")

    def complete(line: str) -> set[str]:
        command = [fish, "--no-config", "-c", f"source {script}; complete -C '{line}'"]
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder / ".data"), "XDG_CONFIG_HOME": str(folder / ".config")}
        environment = {**os.environ, **home}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return {text.partition("\t")[0] for text in done.stdout.splitlines()}

    return complete


def in_zsh(script: Path, folder: Path, undo: ExitStack) -> Complete:
    zsh = require("zsh")
    out = script.parent / "out"
    out.write_text("")
    setup = script.parent / "setup"
    setup.write_text(_ZSH)
    shutil.copy(script, script.parent / f"_{PROGRAM}")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OUT": str(out), "FUNCTIONS": str(script.parent), "TERM": "dumb"}
    command = [zsh, "-f", "-i"]
    shell = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    undo.callback(os.close, ours)
    undo.callback(shell.wait)
    undo.callback(shell.kill)
    os.write(ours, f"source {setup}\n".encode())

    def complete(line: str) -> set[str]:
        _wait(ours, out)
        out.write_text("")
        os.write(ours, f"{line}\t\x18".encode())
        _wait(ours, out)
        found = out.read_text().replace("\\ ", " ").splitlines()[:-1]
        # zsh tells the part of a word that it has not taken off before.
        before = re.sub("[^ =]*$", "", line).rpartition(" ")[2]
        return {before + text for text in found}

    return complete


def _wait(terminal: int, out: Path) -> None:
    end = time.monotonic() + 30
    while not out.read_text().endswith("END\n"):
        assert time.monotonic() < end, out.read_text()
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 65536)


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request: pytest.FixtureRequest, layer_world: Any, tmp_path: Path) -> Iterator[Complete]:
    """What the shell offers behind a line, in a folder with two files."""
    code, text, err = layer_world.run("completion", request.param)
    assert (code, err) == (0, "")
    script = tmp_path / "scripts" / "script"
    script.parent.mkdir()
    script.write_text(text)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("disk.qcow2", "my disk.img"):
        (folder / name).touch()
    with ExitStack() as undo:
        yield {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[request.param](script, folder, undo)


def test_what_is_offered(complete: Complete) -> None:
    assert complete("qemu-img ") == set(COMMANDS)
    assert complete("qemu-img con") == {"convert"}
    assert complete("qemu-img --ver") == {"--version"}
    assert complete("qemu-img info --outp") == {"--output"}
    assert complete("qemu-img info --output ") == {"human", "json"}
    assert complete("qemu-img info --output=j") == {"--output=json"}
    assert complete("qemu-img info -f to") == {"toy"}
    assert complete("qemu-img convert disk.qcow2 -O to") == {"toy"}
    assert complete("qemu-img convert -T dir") == {"directsync"}
    assert complete("qemu-img checksum -a sha5") == {"sha512"}
    assert complete("qemu-img completion z") == {"zsh"}


def test_files(complete: Complete) -> None:
    assert complete("qemu-img info d") == {"disk.qcow2"}
    assert complete("qemu-img convert -p disk.qcow2 m") == {"my disk.img"}
    assert complete("qemu-img create -b d") == {"disk.qcow2"}
    assert complete("qemu-img dd if=disk.qcow2 o") == {"of="}
    assert complete("qemu-img dd if=d") == {"if=disk.qcow2"}


def test_what_bash_types(layer_world: Any, tmp_path: Path) -> None:
    """Names are quoted as the shell needs it, and where more is to be typed no space follows."""
    bash = require("bash")
    (tmp_path / "script").write_text(layer_world.run("completion", "bash")[1])
    (tmp_path / "my disk.img").touch()
    out = tmp_path / "out"
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull, "HISTFILE": ""}
    command = [bash, "--norc", "-i"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as shell:
        os.close(theirs)
        # What stands in the line when the second key is pressed goes to a file.
        setup = "source ./script; finish() { printf '%s|END\\n' \"$READLINE_LINE\" >> out; READLINE_LINE=; }"
        os.write(ours, f"{setup}; bind -x '\"\\C-x\": finish'; echo END > out\n".encode())
        out.touch()
        typed = {}
        for line in ("qemu-img info m", "qemu-img dd if=m", "qemu-img dd i", "qemu-img amend -o lab", "qemu-img conv"):
            _wait(ours, out)
            out.write_text("")
            os.write(ours, f"{line}\t\x18".encode())
            _wait(ours, out)
            typed[line] = out.read_text().partition("|")[0]
        shell.kill()
    os.close(ours)
    assert typed == {
        "qemu-img info m": "qemu-img info my\\ disk.img ",
        "qemu-img dd if=m": "qemu-img dd if=my\\ disk.img ",
        "qemu-img dd i": "qemu-img dd if=",
        "qemu-img amend -o lab": "qemu-img amend -o label=",
        "qemu-img conv": "qemu-img convert ",
    }


def test_names_of_options_of_formats(complete: Complete) -> None:
    assert complete("qemu-img create -f layer -o gra") == {"grain="}
    assert complete("qemu-img amend -o lab") == {"label="}


def test_installed_formats_only(layer_world: Any) -> None:
    script = layer_world.run("completion", "fish")[1]
    assert " toy" in script
    assert "brick" not in script
    layer_world.context.formats.register("brick", object())
    assert "brick" in layer_world.run("completion", "fish")[1]


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ([], "Expecting the name of a shell: bash, zsh or fish"),
        (["bash", "zsh"], "Expecting the name of a shell: bash, zsh or fish"),
        (["tcsh"], "No completion for the shell 'tcsh': there are bash, zsh and fish"),
    ],
)
def test_no_such_shell(layer_world: Any, operands: list[str], message: str) -> None:
    hint = "Try 'qemu-img completion --help' for more info"
    assert layer_world.run("completion", *operands) == (1, "", f"qemu-img: {message}\n{hint}\n")


def test_without_shtab(layer_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert layer_world.run("completion", "bash") == (
        1,
        "",
        "qemu-img: The package shtab is needed to make completion scripts\npip install 'diskwright-core[completion]'\n",
    )
