"""What the program says of itself, and its advice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diskwright import __version__
from diskwright.cli import main
from diskwright.discovery import GROUPS, entry_points
from diskwright.parsers import COMMANDS


def say(capsys: pytest.CaptureFixture[str], *arguments: str, program: str = "qemu-img") -> tuple[int, str, str]:
    code = main(list(arguments), program=program)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert say(capsys, option, program="diskwright") == (0, f"diskwright {__version__}\n", "")
    code, out, err = say(capsys, option)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert re.fullmatch(rf"qemu-img version 10\.\d+\.\d+ \(diskwright {re.escape(__version__)}\)", first)
    assert second.startswith("Copyright")


def test_help_lists_commands_and_formats(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = say(capsys, "-h")
    assert (code, err) == (0, "")
    for name, text in COMMANDS.items():
        assert f"  {name} - {text}\n" in out
    _, _, formats = out.partition("Supported image formats:\n\n")
    assert all(len(line) <= 75 and line.startswith("  ") for line in formats.splitlines())
    assert formats.split() == sorted(formats.split())
    # Drivers of all kinds, where they are installed.
    for group in GROUPS:
        assert {point.name for point in entry_points(group)} <= set(formats.split())
    assert out == say(capsys, "--help")[1]


def test_help_loads_no_driver() -> None:
    check = (
        "import sys; from diskwright.cli import main; main(['--help']); main(['--version'])\n"
        "assert not [name for name in sys.modules if name.startswith('diskwright_')], sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = say(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: qemu-img {command} ")
    assert "Examples:" in out


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ([], ["qemu-img: Not enough arguments", "Try 'qemu-img --help' for more info"]),
        (["--foo"], ["qemu-img: unrecognized option '--foo'", "Try 'qemu-img --help' for more info"]),
        (["-x"], ["qemu-img: invalid option -- 'x'", "Try 'qemu-img --help' for more info"]),
        (["zzz"], ["qemu-img: Command not found: zzz", "Try 'qemu-img --help' for more info"]),
        (["cnvert"], ["qemu-img: Command not found: cnvert", "Try 'qemu-img --help' for more info"]),
        (
            ["info", "--fromat", "raw"],
            ["qemu-img info: unrecognized option '--fromat'", "Try 'qemu-img info --help' for more info"],
        ),
        (["info"], ["qemu-img: Expecting one image file name", "Try 'qemu-img info --help' for more info"]),
    ],
)
def test_advice(capsys: pytest.CaptureFixture[str], arguments: list[str], lines: list[str]) -> None:
    """By the name of qemu-img no more is said than by the real one: programs compare it."""
    assert say(capsys, *arguments) == (1, "", "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(("arguments", "meant"), [(["cnvert"], "convert"), (["info", "--fromat", "raw"], "--format")])
def test_further_advice(world: Any, arguments: list[str], meant: str) -> None:
    code, out, err = world.run(*arguments, program="diskwright")
    assert (code, out) == (1, "")
    assert err.splitlines()[1:] == [
        f"Did you mean '{meant}'?",
        f"Try '{' '.join(['diskwright', *arguments[:-2]])} --help' for more info",
    ]


def test_the_format_that_was_meant(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import diskwright.registry as registry
    from diskwright.discovery import EntryPoint

    points = [EntryPoint(name, "nowhere:Driver") for name in ("brick", "stone")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    world.add("x")
    assert world.run("info", "-f", "brik", "x", program="diskwright")[2].splitlines()[1:] == ["Did you mean 'brick'?"]
    assert world.run("convert", "-O", "stome", "x", "y", program="diskwright")[2] == (
        "diskwright: Unknown file format 'stome'\nDid you mean 'stone'?\n"
    )
    assert world.run("info", "-f", "qqqq", "x", program="diskwright")[2].count("\n") == 1
    for tree in ("driver=brik,file.filename=x", "driver=toy,file.driver=brik,file.filename=x"):
        assert world.run("info", "--image-opts", tree, program="diskwright")[2].endswith(
            ": Unknown driver 'brik'\nDid you mean 'brick'?\n"
        )
    assert world.run("info", "stome:x", program="diskwright")[2] == (
        "diskwright: Could not open 'stome:x': Unknown protocol 'stome'\nDid you mean 'stone'?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["create", "-f", "layer", "-o", "grian=4k", "x", "1M"], "grain"),
        (["amend", "-f", "layer", "-o", "lable=4k", "x"], "label"),
        (["info", "--object", "secert,id=x,data=y", "x"], "secret"),
        (["info", "--image-opts", "driver=throttle,throttle-gruop=x,file.filename=x"], "throttle-group"),
    ],
)
def test_the_name_that_was_meant(layer_world: Any, arguments: list[str], meant: str) -> None:
    layer_world.layer("x", "1")
    code, out, err = layer_world.run(*arguments, program="diskwright")
    assert (code, out) == (1, "")
    assert err.splitlines()[1:] == [f"Did you mean '{meant}'?"]
    assert layer_world.run(*arguments)[2].splitlines()[1:] == []


def test_traces_are_not_known(world: Any, tmp_path: Path) -> None:
    code, _, err = world.run("-T", "bdrv_open", "--trace=x", "info", str(tmp_path / "nothing"))
    assert code == 1
    assert err.splitlines()[:2] == [
        "qemu-img: warning: trace event 'bdrv_open' does not exist",
        "qemu-img: warning: trace event 'x' does not exist",
    ]


@pytest.mark.parametrize("format", ["bochs", "cloop", "dmg", "vvfat"])
def test_formats_that_nobody_creates_or_amends(world: Any, format: str) -> None:
    world.add("x")
    message = f"Format driver '{format}' does not support"
    assert world.run("create", "-f", format, "y", "1M") == (1, "", f"qemu-img: y: {message} image creation\n")
    assert world.run("convert", "-O", format, "x", "y") == (1, "", f"qemu-img: {message} image creation\n")
    assert world.run("amend", "-f", format, "-o", "help") == (1, "", f"qemu-img: {message} option amendment\n")
