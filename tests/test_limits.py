"""What a run may cost: start-up, memory, address space, time for what is large but empty."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40

PLUGINS = ("diskwright_file", "diskwright_raw", "diskwright_qcow2", "diskwright_vdi")
HEAVY = ("numpy", "construct", "cryptography", "backports.zstd", "zlib_ng", "ctypes", "asyncio", "concurrent.futures")


def modules_after(*args: str) -> set[str]:
    """The modules that a run of the command line has imported when it ends."""
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('\\n'.join(['MODULES', *sys.modules]), file=sys.__stderr__))\n"
        "from diskwright.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done
    return set(done.stderr.partition("MODULES\n")[2].split())


class TestStartUp:
    """Nothing is loaded before it is needed."""

    @pytest.mark.parametrize("args", [["--version"], ["convert", "--help"], ["info", "--help"]])
    def test_help_loads_no_plugin(self, args: list[str]) -> None:
        """Neither drivers nor what finds them, nor any large library."""
        loaded = modules_after(*args)
        assert "diskwright" in loaded
        assert not loaded & {*PLUGINS, *HEAVY, "pluggy", "stevedore", "importlib.metadata"}

    def test_the_list_of_formats_loads_none_of_them(self) -> None:
        """The names of the installed drivers are all that is looked for; most times they are known already."""
        modules_after("--help")
        assert not modules_after("--help") & {*PLUGINS, *HEAVY, "pluggy", "stevedore", "importlib.metadata"}

    def test_import_of_the_library_is_light(self) -> None:
        """``import diskwright`` alone."""
        script = "import diskwright, sys; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
        assert not set(done.stdout.split()) & {*PLUGINS, *HEAVY, "pluggy", "stevedore", "argparse", "typing_extensions"}

    @pytest.mark.parametrize("format", ["raw", "qcow2", "vdi"])
    def test_info_loads_one_driver_and_no_numpy(self, format: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """With a format given, that driver alone; without one, the entry modules of all."""
        image = tmp_path / "image"
        cli("create", "-f", format, image, "10M", code=0)
        loaded = modules_after("info", "-f", format, str(image))
        assert "numpy" not in loaded
        others = {plugin for plugin in PLUGINS if plugin not in ("diskwright_file", f"diskwright_{format}")}
        assert not loaded & others
        assert format == "vdi" or "dataclasses" not in loaded  # construct needs it
        assert "numpy" not in modules_after("info", str(image))

    @pytest.mark.parametrize("format", ["raw", "qcow2", "vdi"])
    def test_a_conversion_loads_no_masked_arrays(self, format: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """A good deal of numpy comes with some of its functions only; it takes longer to load than all of ours."""
        (tmp_path / "image").write_bytes(b"x" * MIB)
        arguments = ["convert", "-f", "raw", "-O", format, str(tmp_path / "image"), str(tmp_path / "out")]
        assert "numpy.ma" not in modules_after(*arguments)

    @pytest.mark.parametrize("format", ["qcow2", "vdi"])
    def test_probing_loads_entry_modules_only(self, format: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """A raw image is told from others by entry modules, which import little."""
        (tmp_path / "image").write_bytes(bytes(MIB))
        loaded = modules_after("info", str(tmp_path / "image"))
        assert f"diskwright_{format}.plugin" in loaded
        assert f"diskwright_{format}.image" not in loaded
        assert not loaded & {"numpy", "construct"}


def peak_of(*args: str | os.PathLike[str], limit: int | None = None) -> tuple[int, float]:
    """Run the command line; its peak of resident memory in bytes, and its time in seconds."""
    script = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run([sys.executable, '-m', 'diskwright', *sys.argv[1:]], stdout=-3).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, *map(os.fspath, args)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        preexec_fn=restrict,
    )
    code, peak = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return peak, time.monotonic() - began


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk of 1 GiB, half of it data that is not alike."""
    path = tmp_path_factory.mktemp("large") / "gigabyte.raw"
    block = os.urandom(4 * MIB)
    with path.open("wb") as disk:
        disk.truncate(GIB)
        for n in range(0, 256, 2):
            disk.seek(n * 4 * MIB)
            disk.write(block[n:] + block[:n])
    return path


@pytest.mark.parametrize(
    "options", [["-O", "qcow2"], ["-O", "raw"], ["-O", "vdi"], ["-O", "qcow2", "-c"]], ids=" ".join
)
def test_memory_of_a_conversion(options: list[str], gigabyte: Path, tmp_path: Path) -> None:
    """It does not grow with the image: at most 160 MiB, interpreter and numpy included."""
    peak, _ = peak_of("convert", "-f", "raw", *options, gigabyte, tmp_path / "target")
    assert peak < 160 * MIB, f"{peak / MIB:.0f} MiB"


def test_under_a_limit_of_address_space(gigabyte: Path, tmp_path: Path) -> None:
    """Programs run image tools in 1 GiB of address space; all commands work there."""
    target, flat = tmp_path / "target.qcow2", tmp_path / "flat.raw"
    peak_of("convert", "-f", "raw", "-O", "qcow2", "-c", gigabyte, target, limit=GIB)
    peak_of("info", target, limit=GIB)
    peak_of("check", target, limit=GIB)
    peak_of("map", "--output=json", target, limit=GIB)
    peak_of("convert", "-O", "raw", target, flat, limit=GIB)
    peak_of("compare", gigabyte, target, limit=GIB)


class TestLargeAndEmpty:
    """1 TiB and more with next to nothing in it."""

    @pytest.fixture
    def terabyte(self, tmp_path: Path) -> Path:
        """A raw disk of 1 TiB with data in three places."""
        path = tmp_path / "terabyte.raw"
        with path.open("wb") as disk:
            disk.truncate(TIB)
            for place in (0, TIB // 2 - 3 * 512, TIB - 4096):
                disk.seek(place)
                disk.write(b"here" * 1024)
        return path

    @pytest.mark.parametrize("format", ["qcow2", "raw", "vdi"])
    def test_convert_both_ways(
        self, format: str, terabyte: Path, tmp_path: Path, same_disk: Callable[[Path, Path], None]
    ) -> None:
        """In seconds, in little memory."""
        image, flat = tmp_path / "image", tmp_path / "flat.raw"
        for args in (
            ("convert", "-f", "raw", "-O", format, terabyte, image),
            ("info", image),
            ("map", "--output=json", "-f", format, image),
            ("compare", "-f", "raw", "-F", format, terabyte, image),
            ("convert", "-f", format, "-O", "raw", image, flat),
        ):
            peak, seconds = peak_of(*args)
            assert seconds < 15, args
            assert peak < 256 * MIB, (args, f"{peak / MIB:.0f} MiB")
        same_disk(terabyte, flat)
        assert flat.stat().st_blocks * 512 < MIB
        if format != "raw":
            assert image.stat().st_blocks * 512 < 48 * MIB

    def test_64_tib(self, tmp_path: Path, cli: Callable[..., Any]) -> None:
        """All commands on a new image of 64 TiB."""
        image = tmp_path / "huge.qcow2"
        cli("create", "-f", "qcow2", "-o", "cluster_size=2M", image, "64T", code=0)
        for args in (("info", image), ("check", image), ("map", image), ("compare", image, image)):
            peak, seconds = peak_of(*args)
            assert seconds < 15, args
            assert peak < 256 * MIB, (args, f"{peak / MIB:.0f} MiB")
