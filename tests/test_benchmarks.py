"""The benchmark itself: on tiny files it measures, compares and reports what it is to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from benchmarks import __main__ as command_line
from benchmarks import filesystem, fragmented, inprocess, limits, operations, paths, plot, report, runner, scale, stats
from benchmarks import process as processes
from benchmarks.results import Inside, Row
from benchmarks.workloads import WORKLOADS, NoSpace, Sizes, Workshop, make_chain

KIB, MIB = 1 << 10, 1 << 20
OURS = str(Path(sys.executable).with_name("diskwright"))
ROOT = Path(command_line.__file__).parent.parent
TINY = Sizes(4 * MIB, 64 * MIB, 300, 3)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[processes.Launcher]:
    with processes.Launcher(tmp_path / "launcher") as made:
        yield made


@pytest.fixture(scope="session")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workloads")


@pytest.fixture
def setting(launcher: processes.Launcher, workloads: Path, tmp_path: Path) -> runner.Setting:
    """Ours beside ours, so that it works without qemu-img."""
    shop = Workshop(workloads, TINY, OURS, lambda _: None)
    return runner.Setting(launcher, shop, tmp_path, {"ours": OURS, "theirs": OURS}, runs=1, limit_runs=1)


def quietly(_: str) -> None:
    pass


def operation(name: str) -> operations.Operation:
    return next(item for item in operations.OPERATIONS if item.name == name)


def wrapper(tmp_path: Path, script: str) -> str:
    """A program that runs ours with the same arguments and then does something to the output, ``$out``."""
    program = tmp_path / "other"
    program.write_text(f'#!/bin/sh\n"{OURS}" "$@" || exit\nfor out; do :; done\ncase $out in /*) {script};; esac\n')
    program.chmod(0o755)
    return str(program)


class TestStats:
    def test_median_and_extremes(self) -> None:
        assert stats.spread([3, 1, 2, 9]) == stats.Spread(2.5, 1, 9)

    def test_ratios_are_taken_pair_by_pair(self) -> None:
        assert stats.ratios([1.0, 10.0, 3.0], [2.0, 20.0, 1.0]) == stats.Spread(0.5, 0.5, 3.0)

    def test_what_no_clock_tells_is_a_tick(self) -> None:
        assert stats.ratios([0.0], [0.0]).median == 1

    @pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0])
    def test_growth_over_a_fixed_cost(self, exponent: float) -> None:
        sizes = [10, 100, 1000, 10_000]
        fit = stats.growth(sizes, [0.1 + 0.002 * size**exponent for size in sizes])
        assert fit.exponent == pytest.approx(exponent, abs=0.06)
        assert fit.fixed == pytest.approx(0.1, rel=0.2)
        assert fit.at(1000) == pytest.approx(0.1 + 0.002 * 1000**exponent, rel=0.05)

    def test_noise_is_no_growth(self) -> None:
        assert stats.growth([1, 10, 100], [0.20, 0.22, 0.19]).exponent == 0

    def test_verdict_on_growth(self) -> None:
        sizes = [10, 100, 1000, 10_000]
        linear = scale.Curve("n", "x", "ours", sizes, [0.001 * n for n in sizes], [], [1e6] * 4)
        square = scale.Curve("n", "x", "ours", sizes, [0.001 * n**2 for n in sizes], [], [100.0 * n**2 for n in sizes])
        assert scale.verdict(linear) == "linear or better"
        assert scale.verdict(square) == "MORE THAN LINEAR: time, memory"


class TestLauncher:
    def test_times_and_memory_are_those_of_the_program(self, launcher: processes.Launcher) -> None:
        ballast = bytearray(200 * MIB)  # ours, which is not to be counted
        nothing = launcher.run(["true"])
        code = (
            "x = bytearray(60 << 20); import time; t = time.process_time()\nwhile time.process_time() < t + 0.2: pass"
        )
        busy = launcher.run([sys.executable, "-c", code])
        assert nothing.peak < 30 * MIB < len(ballast)
        assert busy.peak > nothing.peak + 50 * MIB
        assert busy.cpu > nothing.cpu + 0.15
        assert busy.wall > 0.15

    def test_output_and_exit_codes(self, launcher: processes.Launcher) -> None:
        launcher.run(["echo", "hello"])
        assert launcher.output() == "hello\n"
        launcher.run(["sh", "-c", "exit 3"], codes=(3,))
        with pytest.raises(processes.RunFailed, match=r"(?s)exit code 4.*no luck"):
            launcher.run(["sh", "-c", "echo no luck >&2; exit 4"])
        with pytest.raises(processes.RunFailed, match="there-is-no-such-program"):
            launcher.run(["there-is-no-such-program"])

    def test_what_takes_too_long_is_ended(self, launcher: processes.Launcher) -> None:
        with pytest.raises(processes.RunFailed, match="exit code -9"):
            launcher.run(["sleep", "60"], timeout=1)
        launcher.run(["true"])

    def test_address_space(self, tmp_path: Path) -> None:
        with processes.Launcher(tmp_path, 512 * MIB) as small:
            small.run([sys.executable, "-c", "bytearray(1 << 20)"])
            with pytest.raises(processes.RunFailed, match="MemoryError"):
                small.run([sys.executable, "-c", "bytearray(1 << 30)"])


class TestWorkloads:
    @pytest.mark.parametrize("cluster_size", [512, 4 * KIB, 64 * KIB])
    def test_fragmented_image_is_valid_and_reads_as_told(self, tmp_path: Path, cluster_size: int) -> None:
        import diskwright

        image = tmp_path / "image.qcow2"
        guests = np.array(sorted(random.Random(1).sample(range(4000), 1500)), dtype=np.int64)
        fragmented.write(image, 4000 * cluster_size, cluster_size, guests)
        found = diskwright.check(image, "qcow2")
        assert (found.corruptions, found.leaks) == (0, 0)
        with diskwright.open(image, "qcow2") as disk:
            for guest in (int(guests[0]), int(guests[700]), int(guests[-1])):
                expected = (guest + 1).to_bytes(8, "little") * (cluster_size // 8)
                assert disk.read_at(guest * cluster_size, cluster_size) == expected
            lacking = next(number for number in range(4000) if number not in guests)
            assert disk.read_at(lacking * cluster_size, cluster_size) == bytes(cluster_size)

    def test_qemu_agrees(self, tmp_path: Path, qemu_img) -> None:
        shop = Workshop(tmp_path, TINY, OURS, quietly)
        for name in ("fragmented", "frag_base", "frag_other", "chain"):
            qemu_img("check", "-f", "qcow2", shop.path(name))
        qemu_img("compare", "-f", "qcow2", "-F", "raw", shop.path("fragmented"), shop.path("fragmented_raw"))

    def test_chain(self, tmp_path: Path) -> None:
        import diskwright

        make_chain(tmp_path / "top.qcow2", 16 * MIB, 5, "layer")
        depth = 0
        with diskwright.open(tmp_path / "top.qcow2") as image:
            layer = image
            while layer is not None:
                depth, layer = depth + 1, layer.backing
        assert depth == 5

    @pytest.mark.parametrize("mke2fs", [True, False])
    def test_file_system_has_data_zeros_and_holes(
        self, tmp_path: Path, mke2fs: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not mke2fs:
            monkeypatch.setattr(filesystem.shutil, "which", lambda *_, **__: None)
        image = tmp_path / "image.raw"
        filesystem.make(image, 16 * MIB)
        assert image.stat().st_size == 16 * MIB
        with image.open("rb") as file:
            parts = [os.pread(file.fileno(), last - first, first) for first, last in paths.data_ranges(file.fileno())]
        blocks = [part[start : start + 4096] for part in parts for start in range(0, len(part), 4096)]
        zeros = sum(not any(block) for block in blocks)
        assert len(blocks) - zeros > 1000
        assert zeros > 100
        assert len(blocks) < 16 * MIB // 4096 - 200

    def test_copy_keeps_content_and_holes(self, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        with source.open("wb") as file:
            file.truncate(64 * MIB)
            os.pwrite(file.fileno(), b"x" * 5000, 10 * MIB + 3)
        paths.copy(source, target)
        assert target.read_bytes() == source.read_bytes()
        assert paths.allocated(target) < MIB

    def test_a_full_disk_is_seen_before(self, tmp_path: Path) -> None:
        shop = Workshop(tmp_path, Sizes(1 << 60), OURS, quietly)
        with pytest.raises(NoSpace, match="--directory"):
            shop.require_space(["real_luks"], 0)

    def test_all_that_operations_name_exists(self) -> None:
        named = {name for item in operations.OPERATIONS for name in item.workloads}
        assert named <= set(WORKLOADS)
        assert len({item.name for item in operations.OPERATIONS}) == len(operations.OPERATIONS)

    def test_chosen_names(self) -> None:
        names = ["raw -> qcow2", "raw -> qcow2 -c zlib", "check, fragmented"]
        assert operations.chosen([], names) == names
        assert operations.chosen(["raw -> qcow2"], names) == names[:1]
        assert operations.chosen(["check*", "-c "], names) == names[1:]
        assert operations.chosen(["nothing"], names) == []


# All kinds of commands: with an output, encrypted, compressed, with changed copies of several files, and printing ones.
@pytest.mark.parametrize(
    "name",
    [
        "raw -> qcow2",
        "raw -> qcow2 -c zstd",
        "raw -> luks",
        "luks -> raw",
        "snapshot -d, preallocated",
        "commit, fragmented",
        "rebase, fragmented",
        "map, fragmented",
        "compare raw/raw",
        "info, small",
    ],
)
def test_operation(setting: runner.Setting, name: str) -> None:
    row = runner.measure(setting, operation(name), quietly)
    assert row.error == ""
    assert len(row.ours) == len(row.theirs) == 1
    assert row.wall is not None
    assert row.wall.median > 0.05
    assert all(seconds >= 0 for seconds in row.limits.values())
    assert len(row.limits) == len(operation(name).limits)
    assert not list(setting.scratch.glob("ours/*"))


def test_different_output_is_reported(setting: runner.Setting, tmp_path: Path) -> None:
    setting.programs["theirs"] = wrapper(tmp_path, 'printf x | dd of="$out" bs=1 seek=70000 conv=notrunc status=none')
    row = runner.measure(setting, operation("raw -> raw"), quietly)
    assert "compare" in row.error
    assert report.verdict(row).startswith("ERROR: ")


def test_different_text_is_reported(setting: runner.Setting, tmp_path: Path) -> None:
    setting.programs["theirs"] = wrapper(tmp_path, "echo something else")
    row = runner.measure(setting, operation("check, fragmented"), quietly)
    assert "the outputs differ" in row.error


def test_unsound_output_is_reported(setting: runner.Setting, tmp_path: Path) -> None:
    # The first refcounts become 0, which no reader of the content notices.
    setting.programs["ours"] = wrapper(
        tmp_path, 'dd if=/dev/zero of="$out" bs=1 seek=131072 count=2 conv=notrunc status=none'
    )
    setting.programs["theirs"] = OURS
    row = runner.measure(setting, operation("sparse raw -> qcow2"), quietly)
    assert "check of" in row.error


def some_rows() -> list[Row]:
    def taken(wall: float) -> processes.Run:
        return processes.Run(wall, wall * 0.7, wall * 0.2, int(wall * 100) * MIB)

    goals = operations.Goals(1.0, 1.1, 150 * MIB, size=1.04)
    good = Row("good <&>", "convert", goals, [taken(0.5), taken(0.6)], [taken(1.0), taken(1.2)], {"cp": 0.1}, (10, 10))
    bad = Row("bad", "convert", goals, [taken(2.0)], [taken(1.0)], {}, (11, 10))
    alone = Row("alone", "info", operations.Goals(over_python=0.04), [taken(0.1)], python=[0.02])
    return [good, bad, alone, Row("broken", "check", goals, error="contents differ")]


class TestReport:
    def test_table(self) -> None:
        lines = report.table(some_rows()).splitlines()
        assert len(lines) == 6
        assert "0.50 (0.50-0.50)" in lines[2]
        assert "cp 5.5" in lines[2]
        assert lines[2].endswith("met; output x 1.000 (goal 1.04)")
        assert "MISSED wall, cpu, peak, size" in lines[3]
        assert "MISSED over_python; python + 70 ms CPU (goal 40)" in lines[4]
        assert lines[5].endswith("ERROR: contents differ")

    def test_json(self, tmp_path: Path) -> None:
        report.write_json(tmp_path / "x.json", {"operations": [row.as_json() for row in some_rows()]})
        good, bad, alone, broken = json.loads((tmp_path / "x.json").read_text())["operations"]
        assert good["ratios"]["wall"] == {"median": 0.5, "low": 0.5, "high": 0.5}
        assert good["met"] == {"wall": True, "cpu": True, "peak": True, "size": True}
        assert [run["wall"] for run in good["runs"]["ours"]] == [0.5, 0.6]
        assert bad["met"] == {"wall": False, "cpu": False, "peak": False, "size": False}
        assert alone["ratios"] == {}
        assert broken["error"] == "contents differ"

    def test_plots_are_svg(self) -> None:
        inside = Inside("open", stats.Spread(1, 1, 2), stats.Spread(20, 19, 21), 0.05, "qemu-img info")
        assert (inside.ratio, inside.met) == (0.05, True)
        drawn = ElementTree.fromstring(plot.ratios(some_rows(), [inside], "a machine"))
        texts = [item.text for item in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert {"good <&>", "bad", "open", "a machine"} <= set(texts)
        curve = scale.Curve("layers", "map", "ours", [1, 10, 100], [0.1, 0.2, 1.2], [], [1e7, 1e7, 2e7])
        drawn = ElementTree.fromstring(plot.curves([curve], "a machine"))
        assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == 6  # times and memory


def test_limits(setting: runner.Setting, tmp_path: Path) -> None:
    disk = setting.shop.path("real_raw")
    for kind in ("cp", "read", "deflate", "inflate", "zstd", "unzstd", "xts"):
        assert limits.measure(setting.launcher, f"{kind} {disk}", tmp_path) > 0


def test_in_process(setting: runner.Setting) -> None:
    small, disk = str(setting.shop.path("small")), str(setting.shop.path("real_qcow2"))
    assert 0 < inprocess.open_and_describe(small, 3) < 1
    assert 0 < inprocess.random_reads(disk, 20, inprocess.far_step(TINY.disk)) < 1
    layers = setting.shop.path("fragmented")
    assert inprocess.extents_in_tables(str(layers))[1] == inprocess.extents_one_by_one(str(layers))[1] >= 300


def test_far_steps_visit_all_the_disk() -> None:
    size = 4 * MIB
    visited = inprocess.offsets(size, size // 4096, inprocess.far_step(size))
    assert len(set(visited)) == size // 4096
    assert all(offset % 4096 == 0 and offset < size for offset in visited)
    assert all(0 <= offset <= size - 4096 for offset in inprocess.offsets(size, 100, 0))


def test_scale(setting: runner.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scale.SERIES["snapshots"]
    tiny = scale.Series("snapshots", [1], [1, 2, 3], whole.make, {"snapshot -d": whole.commands["snapshot -d"]})
    monkeypatch.setitem(scale.SERIES, "snapshots", tiny)
    curves = scale.measure(setting, "snapshots", True, quietly)
    assert [curve.side for curve in curves] == ["ours", "theirs"]
    assert all(len(curve.cpu) == len(curve.peak) == 3 and not curve.error for curve in curves)
    assert "snapshot -d" in scale.table(curves)
    assert curves[0].as_json()["time_growth"] is not None


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def _place(self, workloads: Path) -> None:
        self.directory = workloads / "command-line"

    def run(self, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        places = ["--directory", str(self.directory), "--output", str(tmp_path / "results")]
        command = [sys.executable, "-m", "benchmarks", *places, "--size", "4M", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    def test_without_qemu_img(self, tmp_path: Path) -> None:
        done = self.run(
            tmp_path, "--theirs", "none", "--runs", "1", "--only", "raw -> raw", "--only", "open and describe"
        )
        assert done.returncode == 0, done
        assert "qemu-img is not installed" in done.stderr
        results = tmp_path / "results"
        content = json.loads((results / "bench.json").read_text())
        assert list(content["machine"]["programs"]) == ["ours"]
        assert content["options"]["sizes"]["disk"] == 4 * MIB
        assert [row["name"] for row in content["operations"]] == ["raw -> raw"]
        assert [row["name"] for row in content["in_process"]] == ["open and describe"]
        ElementTree.parse(results / "bench.svg")
        assert not list(self.directory.glob("scratch-*"))

    def test_goals_missed_are_no_failure_but_differences_are(self, tmp_path: Path) -> None:
        options = ("--runs", "1", "--no-limits", "--only", "raw -> raw", "--theirs")
        assert self.run(tmp_path, *options, OURS).returncode == 0
        done = self.run(tmp_path, *options, wrapper(tmp_path, 'printf x >>"$out"; truncate -s 8M "$out"'))
        assert done.returncode == 1
        assert "raw -> raw: compare of" in done.stderr

    def test_names(self, tmp_path: Path) -> None:
        assert "random 4 KiB reads" in self.run(tmp_path, "--list").stdout
        assert "snapshots" in self.run(tmp_path, "--scale", "--list").stdout
        assert self.run(tmp_path, "--only", "nothing").returncode == 2

    def test_interrupt_ends_all(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        slow = wrapper(tmp_path, f'echo $$ >"{marker}"; exec sleep 300')
        command = [sys.executable, "-m", "benchmarks", "--directory", str(self.directory), "--size", "4M"]
        running = subprocess.Popen(
            [*command, "--theirs", slow, "--ours", slow, "--only", "raw -> raw"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 60
        while not marker.exists() or not marker.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
        assert running.returncode == 130, err
        for _ in range(100):
            if not Path(f"/proc/{marker.read_text().strip()}").exists():
                break
            time.sleep(0.05)
        else:
            pytest.fail("what was measured still runs")
        assert not list(self.directory.glob("scratch-*"))
