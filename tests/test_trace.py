"""``-T``: what is told, to whom, and that nothing is told or paid for otherwise."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diskwright import tracing
from diskwright.context import Context
from diskwright.engine.convert import ConvertRequest, convert

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk: a MiB of data, a MiB of zeros that are written, a hole of two."""
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(MIB) + bytes(MIB))
    os.truncate(path, 4 * MIB)
    return path


@pytest.fixture
def silence() -> Iterator[None]:
    """Nothing is traced after a test."""
    yield
    tracing.stop()


def lines(text: str, name: str) -> list[dict[str, str]]:
    """The values of all events of a name."""
    found = [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return [dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)) for line in found]


class TestOption:
    """Syntax and messages, as the real program has them."""

    def test_nothing_is_told_by_default(self, cli: Callable[..., Any], disk: Path) -> None:
        assert cli("info", disk, code=0).err == ""

    @pytest.mark.parametrize("spec", ["node_open", "enable=node_open", "node_op*", "node_o?en"])
    def test_ways_to_name_an_event(self, cli: Callable[..., Any], disk: Path, spec: str) -> None:
        result = cli("-T", spec, "info", disk, code=0)
        opened = lines(result.err, "node_open")
        assert [(o["driver"], o["filename"], o["writable"]) for o in opened] == [
            ('"file"', f'"{disk}"', "off"),
            ('"raw"', f'"{disk}"', "off"),
        ]
        assert result.err.count("\n") == 2
        assert "file format: raw" in result.out

    def test_a_minus_sign_turns_off(self, cli: Callable[..., Any], disk: Path) -> None:
        everything = cli("-T", "node_*", "info", disk, code=0).err
        some = cli("-T", "node_*", "-T", "-node_read", "--trace=-node_step", "info", disk, code=0).err
        assert lines(everything, "node_read")
        assert some.splitlines() == [
            line for line in everything.splitlines() if not line.startswith(("node_read ", "node_step "))
        ]

    def test_files(self, cli: Callable[..., Any], disk: Path, tmp_path: Path) -> None:
        wanted, log = tmp_path / "wanted", tmp_path / "log"
        wanted.write_text("# what is wanted\nnode_*\n\n-node_step\nnosuch\n")
        result = cli("-T", f"events={wanted},file={log}", "info", disk, code=0)
        assert result.err == f"diskwright:{wanted}:5: warning: trace event 'nosuch' does not exist\n"
        assert lines(log.read_text(), "node_open")
        assert not lines(log.read_text(), "node_step")

    def test_the_process_in_the_name_of_the_log(self, cli: Callable[..., Any], disk: Path, tmp_path: Path) -> None:
        cli("-T", f"node_open,file={tmp_path}/log-%d", "info", disk, code=0)
        (log,) = tmp_path.glob("log-*")
        assert log.name.removeprefix("log-").isdecimal()

    @pytest.mark.parametrize(
        "spec",
        [
            "nosuch",
            "-nosuch",
            "nosuch*",
            "enable=",
            "foo=bar",
            "nosuch,foo=bar",
            "events=no/such/file",
            "nosuch,file=no/such/log",
            "nosuch,file=log%s",
            "",
        ],
    )
    def test_messages(
        self, cli: Callable[..., Any], qemu_img: Callable[..., Any], disk: Path, tmp_path: Path, spec: str
    ) -> None:
        ours = cli("-T", spec, "info", disk, cwd=tmp_path)
        real = qemu_img("-T", spec, "info", disk, code=None)
        assert ours.err.replace("diskwright", "qemu-img") == real.err
        assert ours.code == real.code

    def test_list(self, cli: Callable[..., Any]) -> None:
        names = [line.split(" ")[0] for line in cli("-T", "help", code=0).out.splitlines()]
        assert names == sorted(names)
        assert {"node_open", "copy_cell", "policy_refuse", "qcow2_l2_load"} <= set(names)
        assert cli("-T", "?", "info", "nosuch", code=0).out == cli("--trace", "enable=help", code=0).out

    def test_control_characters_stay_inside_their_line(self, cli: Callable[..., Any], tmp_path: Path) -> None:
        path = tmp_path / 'a\n"b"\x1b'
        path.write_bytes(bytes(512))
        (opened,) = lines(
            cli("-T", "node_open", "info", "--image-opts", f"driver=file,filename={path}").err, "node_open"
        )[:1]
        assert opened["filename"] == f'"{tmp_path}/a\\x0a\\"b\\"\\x1b"'


class TestEvents:
    """What is told is what happens."""

    def test_copy(self, cli: Callable[..., Any], disk: Path, tmp_path: Path) -> None:
        told = cli("-T", "*", "convert", "-O", "qcow2", disk, tmp_path / "out.qcow2", code=0).err
        assert [(c["offset"], c["data"]) for c in lines(told, "copy_cell")] == [("0", str(MIB))]
        opened = {o["node"]: o for o in lines(told, "node_open")}
        target = next(n for n, o in opened.items() if o["driver"] == '"qcow2"')
        file = next(c["child"] for c in lines(told, "graph_child") if c["node"] == target)
        written = [int(w["length"]) for w in lines(told, "node_write") if w["node"] == file]
        assert max(written) == MIB
        assert lines(told, "image_allocate") == [{"node": target, "offset": "0", "length": str(MIB)}]
        steps = [f["step"] for f in lines(told, "qcow2_flush")]
        assert steps[:5] == ['"data"', '"refcounts"', '"L2 tables"', '"L1 table"', '"free clusters"']
        assert {c["node"] for c in lines(told, "node_close")} == set(opened)
        assert [p["format"] for p in lines(told, "probe_format")] == ['"raw"']

    def test_graph_and_policy(self, cli: Callable[..., Any], disk: Path, tmp_path: Path) -> None:
        overlay = tmp_path / "overlay.qcow2"
        cli("create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay, code=0)
        told = cli("-T", "graph_*", "-T", "policy_*", "map", overlay, code=0).err
        assert [b["depth"] for b in lines(told, "graph_backing")] == ["1"]
        assert {"what": '"backing"', "name": f'"{disk}"'} in lines(told, "policy_allow")
        told = cli("-T", "policy_refuse", "map", "--policy", "backing=off", overlay, code=1).err
        assert [r["what"] for r in lines(told, "policy_refuse")] == ['"backing"']

    def test_passwords_are_not_told(self, cli: Callable[..., Any], disk: Path, tmp_path: Path) -> None:
        told = cli(
            *("-T", "*", "convert", "--object", "secret,id=s0,data=hunter2hunter2", "-O", "luks"),
            *("-o", "key-secret=s0,iter-time=10", disk, tmp_path / "out.luks"),
            code=0,
        ).err
        assert lines(told, "object_add") == [{"type": '"secret"', "id": '"s0"'}]
        assert "hunter2" not in told

    @pytest.mark.usefixtures("silence")
    def test_library(self, disk: Path, tmp_path: Path) -> None:
        told: list[str] = []
        tracing.start(["copy_*", "-copy_zeros"], told.append)
        convert(Context(), ConvertRequest([str(disk)], str(tmp_path / "out"), source_format="raw", format="raw"))
        assert {line.split()[0] for line in told} == {"copy_begin", "copy_cell"}


class TestCost:
    """Without ``-T``, nothing of a node is watched."""

    def test_nodes_are_as_they_were(self, disk: Path) -> None:
        with Context().open(str(disk), "raw") as image:
            assert "read_into" not in vars(image)
            assert "read_into" not in vars(image.file)

    def test_plugins_declare_events_when_they_are_needed(self) -> None:
        program = "import sys, diskwright_qcow2.plugin; sys.exit('diskwright_qcow2.events' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
