"""What the figures were measured on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from .process import Launcher

LIBRARIES = (
    "diskwright-core",
    "numpy",
    "zlib-ng",
    "backports.zstd",
    "cryptography",
    "construct",
    "pluggy",
    "stevedore",
)


def facts(launcher: Launcher, programs: dict[str, str], directory: Path) -> dict[str, Any]:
    """Machine, versions and load, as plain values.

    :param programs: ours and theirs, as in :class:`benchmarks.runner.Setting`.
    :param directory: where the workloads are.
    :returns: among them ``peak_floor``, bytes: no peak of memory is seen to be lower, see :mod:`benchmarks.launch`.
    """
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "file_system": _file_system(directory),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "programs": {name: {"path": program, "version": _told(program)} for name, program in programs.items()},
        "peak_floor": launcher.run(["true"]).peak,
        "load": os.getloadavg()[0],
    }


def busy(load: float) -> bool:
    """Whether a load average, of all programs that want to run, is too much to trust wall times."""
    return load > 0.3 * len(os.sched_getaffinity(0))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(directory: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _told(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]
