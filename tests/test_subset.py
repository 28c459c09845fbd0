"""Distributors ship subsets: core, file, raw and qcow2 alone are a whole product."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SUBSET = {"core", "plugins/protocols/file", "plugins/raw", "plugins/qcow2"}


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run diskwright where only the subset is installed.

    The packages are built and installed by pip into a folder of their own, without a network; what they depend on is
    taken from this environment, by links, so that none of this environment's own diskwright packages comes along.
    """
    folder = tmp_path_factory.mktemp("subset")
    installed = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(installed), *sorted(str(REPOSITORY / part) for part in SUBSET)]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "diskwright" not in path.name and path.suffix != ".pth":
            (dependencies / path.name).symlink_to(path)

    def run(*args: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": f"{installed}{os.pathsep}{dependencies}",
            "XDG_CACHE_HOME": str(folder),
        }
        # -S keeps this environment's site-packages, with all plugins, out.
        command = [sys.executable, "-S", "-m", "diskwright", *map(os.fspath, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)

    return run


def test_smoke(subset: Callable[..., Any], tmp_path: Path) -> None:
    """Create, convert, info, map, check, compare."""
    source, image, back = (tmp_path / name for name in ("source.raw", "image.qcow2", "back.raw"))
    source.write_bytes(b"data" * 300_000)
    for args in (
        ("convert", "-f", "raw", "-O", "qcow2", source, image),
        ("info", image),
        ("check", image),
        ("map", image),
        ("compare", source, image),
        ("convert", image, back),
        ("create", "-f", "qcow2", tmp_path / "new.qcow2", "1G"),
    ):
        done = subset(*args)
        assert done.returncode == 0, (args, done.stderr)
    assert source.read_bytes().ljust(back.stat().st_size, b"\0") == back.read_bytes()


@pytest.mark.parametrize(
    "args",
    [
        ["info", "-f", "vdi", "disk.vdi"],
        ["convert", "-O", "vdi", "disk.vdi", "target.vdi"],
        ["create", "-f", "vdi", "target.vdi", "1M"],
    ],
    ids=lambda args: args[0],
)
def test_a_missing_driver_names_its_package(
    args: list[str], subset: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    monkeypatch.chdir(tmp_path)
    Path("disk.vdi").write_bytes(bytes(4096))
    done = subset(*args)
    assert done.returncode == 1
    assert done.stderr.startswith("diskwright: "), done.stderr
    assert "vdi" in done.stderr.splitlines()[0]
    assert "diskwright-vdi" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("target.vdi").exists()


def test_a_driver_that_nobody_has(subset: Callable[..., Any], tmp_path: Path) -> None:
    """No advice where there is none to give."""
    (tmp_path / "x").write_bytes(bytes(512))
    done = subset("info", "-f", "nosuch", tmp_path / "x")
    assert (done.returncode, "pip install" in done.stderr) == (1, False)
    assert "nosuch" in done.stderr
