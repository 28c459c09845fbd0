"""What distributions put onto a machine besides Python code."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

from diskwright.parsers import COMMANDS

ROOT = Path(__file__).parents[1]


def build(package: str, directory: Path) -> Path:
    """The wheel of a package."""
    if find_spec("hatchling") is None or find_spec("argparse_manpage") is None:
        pytest.skip("what builds packages is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT / package, check=True, capture_output=True)
    [wheel] = directory.glob("*.whl")
    return wheel


def test_the_core_brings_its_man_pages(tmp_path: Path) -> None:
    with ZipFile(build("core", tmp_path)) as wheel:
        names = [name.partition(".data/data/")[2] for name in wheel.namelist() if ".data/" in name]
        assert set(names) == {
            f"share/man/man1/{name}.1" for name in ("diskwright", *(f"diskwright-{command}" for command in COMMANDS))
        }
        page = next(name for name in wheel.namelist() if name.endswith("/diskwright-convert.1"))
        assert b".SH EXAMPLES\n" in wheel.read(page)
        assert "manpages.py" not in wheel.namelist()


def test_the_link(tmp_path: Path) -> None:
    """A program of another name is installed: it is diskwright, and answers by that name."""
    wheel = build("packages/qemu-img-link", tmp_path)
    prefix = tmp_path / "prefix"
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*install, "--prefix", str(prefix), str(wheel)], check=True)
    program = prefix / "bin" / "qemu-img"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    assert run("--version")[1].startswith("qemu-img version 10.")
    assert run("create", "-q", "-f", "raw", "disk", "1M") == (0, "", "")
    assert run("check", "disk")[2] == "qemu-img: This image format does not support checks\n"
    assert run("info", "--help")[1].startswith("Usage: qemu-img info ")
    assert "complete -o bashdefault -F _qemu_img_words qemu-img\n" in run("completion", "bash")[1]


def test_nothing_takes_the_name_by_itself() -> None:
    """The link is a package of its own, which no other one depends on."""
    found = [path for folder in ("core", "plugins", "packages") for path in (ROOT / folder).rglob("pyproject.toml")]
    assert len(found) > 5
    for path in (ROOT / "pyproject.toml", *found):
        if path.parent.name != "qemu-img-link":
            text = path.read_text()
            assert "diskwright-qemu-img" not in text
            assert 'qemu-img = "' not in text
