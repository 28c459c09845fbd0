"""Help, man pages and completion tell of every option, since they come from the parsers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diskwright.commands.common import CACHE_MODES
from diskwright.parsers import COMMANDS, EXIT_CODES, command_parser, program_parser
from diskwright.testing.oracle import qemu_img

LONG_NAMES = {
    "amend": "options format image-opts cache force progress quiet",
    "bench": "count depth format flush-interval aio native no-drain offset pattern quiet buffer-size step-size cache"
    " write",
    "bitmap": "add remove clear enable disable merge source-file source-format granularity format image-opts",
    "check": "format image-opts output repair cache force-share quiet",
    "commit": "format image-opts cache base drop rate-limit rate progress quiet",
    "compare": "a-format b-format left-format right-format image-opts strict cache force-share progress quiet",
    "convert": "source-format image-opts source-image-opts source-cache snapshot source-snapshot bitmaps"
    " skip-broken-bitmaps salvage target-format output-format target-image-opts target-format-options target-options"
    " options target-cache output-cache backing backing-format sparse-size no-create target-is-zero compress"
    " force-share rate-limit rate parallel oob-writes copy-range-offloading progress quiet",
    "create": "format options backing backing-format backing-unsafe quiet",
    "dd": "format image-opts output-format force-share",
    "info": "format image-opts backing-chain output force-share",
    "map": "format image-opts output start-offset max-length force-share",
    "measure": "format source-format image-opts source-image-opts snapshot target-format options target-format-options"
    " size force-share output",
    "rebase": "backing backing-format backing-unsafe format cache backing-cache compress force-share progress quiet"
    " image-opts",
    "resize": "format image-opts preallocation shrink quiet",
    "snapshot": "list create apply delete format image-opts force-share quiet",
}
"""The long names of options by which some version of qemu-img, or a distributor's, knows them."""


def options(command: str) -> list[str]:
    """All names of the options of a command."""
    return [name for action in command_parser(command, "qemu-img").declared() for name in action.option_strings]


@pytest.fixture(scope="module")
def manpages() -> ModuleType:
    """The module that makes the man pages; it is part of the source only."""
    path = Path(__file__).parents[1] / "manpages.py"
    spec = util.spec_from_file_location("manpages", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules["manpages"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(manpages: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man") / "man1"
    manpages.write(directory)
    return directory


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_of_every_option(world: Any, command: str) -> None:
    code, out, err = world.run(command, "--help")
    assert (code, err) == (0, "")
    _, _, listed = out.partition("\noptions:\n")
    told = set(re.findall(r"(?:^  |, )(--?[\w-]+)", listed, re.MULTILINE))
    assert told == set(options(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_man_page_tells_of_every_option(pages: Path, command: str) -> None:
    text = (pages / f"diskwright-{command}.1").read_text()
    _, _, rest = text.partition("\n.SH OPTIONS\n")
    listed, _, _ = rest.partition("\n.SH ")
    terms = "\n".join(re.findall(r"^\.TP\n(.*)", listed, re.MULTILINE)).replace("\\-", "-")
    assert set(re.findall(r"\\fB(--?[\w-]+)\\fR", terms)) == set(options(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_man_page_has_all_sections(pages: Path, command: str) -> None:
    text = (pages / f"diskwright-{command}.1").read_text().replace("\\-", "-")
    sections = re.findall(r"^\.SH (.*)", text, re.MULTILINE)
    expected = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"]
    assert sections == expected
    parser = command_parser(command, "diskwright")
    for example in parser.examples:
        assert example in text
    for code, meaning in parser.exit_codes.items():
        assert f".B {code}\n{meaning}\n" in text


def test_the_page_of_the_program(pages: Path) -> None:
    text = (pages / "diskwright.1").read_text().replace("\\-", "-")
    for action in program_parser("diskwright").declared():
        assert all(f"\\fB{name}\\fR" in text for name in action.option_strings)
    for command, summary in COMMANDS.items():
        assert f".BR diskwright-{command} (1)\n{summary}\n" in text
    assert {path.name for path in pages.iterdir()} == {"diskwright.1", *(f"diskwright-{name}.1" for name in COMMANDS)}


@pytest.mark.parametrize("command", [["mandoc", "-Tlint", "-Wwarning"], ["groff", "-man", "-Tutf8", "-ww", "-z"]])
def test_formatters_find_nothing_wrong_with_the_pages(pages: Path, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    for page in sorted(pages.iterdir()):
        done = subprocess.run([*command, str(page)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_option(world: Any, shell: str) -> None:
    script = world.run("completion", shell)[1]
    for command in COMMANDS:
        assert completed_options(script, shell, command) == set(options(command))


def completed_options(script: str, shell: str, command: str) -> set[str]:
    """The options of a command that a script knows."""
    if shell == "fish":
        lines = [line for line in script.splitlines() if f"_using {command}'" in line]
        long = {f"--{name}" for line in lines for name in re.findall(r" -l ([\w-]+)", line)}
        return long | {f"-{name}" for line in lines for name in re.findall(r" -s (\w)(?= )", line)}
    name = "option_strings" if shell == "bash" else "options"
    start = script.index(f"_shtab_qemu_img_{command}_{name}=(")
    block = script[start : script.index(")\n", start) if shell == "bash" else script.index("\n)", start)]
    if shell == "bash":
        return set(block.partition("(")[2].split())
    heads = re.findall(r'^  (?:"[^"{[]*")?(?:\{([^}]*)\}|"\*?(-[^["]*)\[)', block, re.MULTILINE)
    return {option.rstrip("+=") for several, one in heads for option in (several or one).split(",")}


@pytest.mark.parametrize("command", LONG_NAMES)
def test_all_dialects_of_long_names(command: str) -> None:
    assert {f"--{name}" for name in LONG_NAMES[command].split()} <= set(options(command))


@pytest.mark.parametrize("command", LONG_NAMES)
def test_every_option_that_the_real_help_shows(command: str) -> None:
    done = qemu_img(command, "--help", check=False)
    if "\nArguments:\n" not in done.stdout:
        pytest.skip("this version of qemu-img has no help of its own for each command")
    shown = set(re.findall(r"^ +(?:(-\w), )?(--[\w-]+)", done.stdout, re.MULTILINE))
    ours = options(command)
    names = {name for pair in shown for name in pair if name}
    assert all(any(known.startswith(name) for known in ours) for name in names)
    assert ("-U" in ours) or ("--force-share" not in done.stdout)


@pytest.mark.parametrize("program", ["diskwright", "qemu-img"])
@pytest.mark.parametrize("command", COMMANDS)
def test_examples(command: str, program: str) -> None:
    """They start with the name that the program was called by, and use options that there are."""
    parser = command_parser(command, program)
    assert parser.examples
    for example in parser.examples:
        assert example.startswith(f"{program} {command} ") or example == f"{program} {command}"
        words = example.split(" > ")[0].split()[2:]
        used = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
        assert set(used) <= set(options(command))


def test_exit_codes() -> None:
    assert {command: tuple(command_parser(command, "x").exit_codes) for command in COMMANDS} == {
        **dict.fromkeys(COMMANDS, tuple(EXIT_CODES)),
        "check": (0, 1, 2, 3, 63),
        "compare": (0, 1, 2, 3, 4),
        "info": (0, 1, 3),
    }


def test_a_value_behind_an_equals_sign_only(world: Any, pages: Path) -> None:
    assert "  -p, --progress[=json]\n" in world.run("convert", "--help")[1]
    text = (pages / "diskwright-convert.1").read_text()
    assert "\n\\fB\\-p\\fR, \\fB\\-\\-progress\\fR[=\\fIjson\\fR]\n" in text


def test_operands_as_they_are_used(world: Any) -> None:
    usage, _, _ = world.run("create", "--help")[1].partition("\n\n")
    assert usage.endswith(" FILE [SIZE]")


def test_cache_modes_are_choices() -> None:
    actions = {action.dest: action for action in command_parser("convert", "x").declared()}
    assert set(actions["target_cache"].choices or ()) == set(actions["source_cache"].choices or ()) == set(CACHE_MODES)


def test_every_module_is_a_command() -> None:
    folder = Path(import_module("diskwright.commands").__file__ or "").parent
    found = {path.stem for path in folder.glob("*.py")} - {"__init__", "common"}
    assert found == set(COMMANDS)
