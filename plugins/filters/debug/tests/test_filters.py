"""What the filters do with reads and writes."""

import errno
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.errors import ImageError, NodeIOError
from diskwright.testing.oracle import find_qemu_img, qemu_img
from diskwright.trees import OptionString

SIZE = 1 << 20
CHILDREN = ",".join(f"children.{i}.driver=raw,children.{i}.file.filename=r{i}" for i in range(3))


def ours(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "diskwright", *arguments], capture_output=True, text=True, check=False)


def opened(name: str, *, writable: bool = False) -> Any:
    return Context().open(OptionString(name), writable=writable)


@pytest.fixture(autouse=True)
def _images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        Path(f"r{index}").write_bytes(bytes(range(256)) * (SIZE // 256))


def spoil(name: str, offset: int) -> None:
    with Path(name).open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff\0"[offset % 256 == 255 :][:1])


class TestBlkdebug:
    NAME = "driver=raw,file.driver=blkdebug,file.image.filename=r0"

    def failing(self, rule: str, *, writable: bool = False) -> Any:
        rules = ",".join(f"file.{part}" for part in rule.split(","))
        return opened(f"{self.NAME},{rules}", writable=writable)

    def test_only_the_sector_that_the_rule_names(self) -> None:
        with self.failing("inject-error.0.event=read_aio,inject-error.0.sector=8,inject-error.0.errno=6") as disk:
            assert disk.read_at(0, 4096)[:4] == bytes(range(4))
            for _ in range(2):
                with pytest.raises(NodeIOError) as caught:
                    disk.read_at(4000, 512)
                assert caught.value.errno == errno.ENXIO

    def test_only_once(self) -> None:
        with self.failing("inject-error.0.event=read_aio,inject-error.0.once=on") as disk:
            with pytest.raises(NodeIOError):
                disk.read_at(0, 512)
            # the event makes the rule active again
            with pytest.raises(NodeIOError):
                disk.read_at(0, 512)
        with self.failing(
            "inject-error.0.event=none,inject-error.0.once=on,inject-error.0.iotype=write", writable=True
        ) as disk:
            with pytest.raises(NodeIOError):
                disk.write_at(0, bytes(512))
            disk.write_at(0, bytes(512))

    def test_states(self) -> None:
        rules = (
            "set-state.0.event=read_aio,set-state.0.new_state=2,inject-error.0.event=read_aio,inject-error.0.state=2"
        )
        with self.failing(rules) as disk:
            disk.read_at(0, 512)
            with pytest.raises(NodeIOError):
                disk.read_at(0, 512)

    @pytest.mark.parametrize("kind", ["write", "write-zeroes", "discard", "flush"])
    def test_kinds_of_requests(self, kind: str) -> None:
        rule = f"inject-error.0.event=none,inject-error.0.iotype={kind}"
        acts = {
            "write": lambda: disk.write_at(0, b"x" * 512),
            "write-zeroes": lambda: disk.write_zeroes(0, 512, unmap=True),
            "discard": lambda: disk.discard(0, 512),
            "flush": lambda: disk.flush(),  # noqa: PLW0108 -- it is opened later
        }
        disk = self.failing(rule, writable=True)
        try:
            for name, act in acts.items():
                if name == kind:
                    with pytest.raises(NodeIOError):
                        act()
                else:
                    act()
        finally:
            disk.close()

    def test_the_map_ends_where_asking_for_it_fails(self) -> None:
        rule = "inject-error.0.event=none,inject-error.0.iotype=block-status,inject-error.0.sector=8"
        with opened(f"driver=blkdebug,image.driver=raw,image.file.filename=r0,{rule}") as disk:
            items = disk.extents()
            assert next(items).end == 4096
            with pytest.raises(NodeIOError):
                next(items)

    def test_long_requests_are_cut(self) -> None:
        options = "max-transfer=4k,inject-error.0.event=none,inject-error.0.sector=16"
        with self.failing(options) as disk:
            buffer = bytearray(16384)
            with pytest.raises(NodeIOError):
                disk.read_into(0, buffer)
            assert buffer[:8192] == bytes(range(256)) * 32
            assert not any(buffer[8192:])

    def test_metadata_is_not_guest_data(self) -> None:
        assert ours("create", "-f", "qcow2", "q", "1M").returncode == 0

        def name(event: str) -> str:
            rules = f'"inject-error": [{{"event": "{event}"}}]'
            return f'json:{{"driver": "qcow2", "file": {{"driver": "blkdebug", "image.filename": "q", {rules}}}}}'

        assert ours("check", name("read_aio")).returncode == 0
        assert ours("info", name("write_aio")).returncode == 0
        failed = ours("convert", "-n", "-f", "raw", "-O", "qcow2", "r0", name("write_aio"))
        assert failed.returncode == 1
        assert failed.stderr == "diskwright: error while writing at byte 0: Input/output error\n"
        assert ours("check", name("refblock_load")).returncode == 1

    def test_commit_tells_the_reason(self) -> None:
        ours("create", "-f", "qcow2", "base", "1M")
        rules = "'inject-error':[{'event':'write_aio','errno':28,'once':true}],'image.filename':'base'"
        base = f"json:{{'driver':'qcow2','file':{{'driver':'blkdebug',{rules}}}}}"
        assert ours("create", "-f", "qcow2", "-b", base, "-F", "qcow2", "top").returncode == 0
        assert ours("convert", "-n", "-f", "raw", "-O", "qcow2", "r0", "top").returncode == 0
        failed = ours("commit", "-f", "qcow2", "top")
        assert (failed.returncode, failed.stderr) == (1, "diskwright: Block job failed: No space left on device\n")
        assert ours("compare", "-f", "raw", "-F", "qcow2", "r0", "top").returncode == 0


class TestBlkverify:
    def test_the_same(self) -> None:
        assert ours("compare", "-f", "raw", "-F", "raw", "blkverify:r0:r1", "r2").returncode == 0

    @pytest.mark.parametrize("offset", [0, 5000, 300_000, SIZE - 1])
    def test_the_first_difference_is_told(self, offset: int) -> None:
        spoil("r1", offset)
        failed = ours("convert", "-f", "raw", "-O", "raw", "blkverify:r0:r1", "out")
        assert failed.returncode == 1
        assert f"contents mismatch at offset {offset}\n" in failed.stderr
        assert qemu_img("convert", "-f", "raw", "-O", "raw", "blkverify:r0:r1", "out", check=False).returncode == 1

    def test_writes_go_to_both(self) -> None:
        with opened(
            "driver=blkverify,raw.driver=raw,raw.file.filename=r0,test.driver=raw,test.file.filename=r1", writable=True
        ) as disk:
            disk.write_at(1000, b"new")
            disk.write_zeroes(4096, 4096, unmap=True)
            disk.flush()
        data = Path("r0").read_bytes()
        assert data == Path("r1").read_bytes()
        assert data[1000:1003] == b"new"
        assert not any(data[4096:8192])


class TestQuorum:
    def name(self, options: str) -> str:
        return f"driver=quorum,{options},{CHILDREN}"

    @pytest.mark.parametrize(
        "options", ["vote-threshold=2", "vote-threshold=3", "vote-threshold=1", "vote-threshold=2,read-pattern=fifo"]
    )
    @pytest.mark.parametrize("spoilt", [0, 1])
    def test_votes_as_the_real_tool(self, options: str, spoilt: int) -> None:
        spoil(f"r{spoilt}", 5000)
        arguments = ("compare", "--image-opts", self.name(options), "driver=raw,file.filename=r2")
        expected, found = qemu_img(*arguments, check=False), ours(*arguments)
        assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
        assert found.stderr.rpartition(": ")[2] == expected.stderr.rpartition(": ")[2]

    def test_the_outvoted_are_corrected(self) -> None:
        spoil("r1", 5000)
        with opened(self.name("vote-threshold=2,rewrite-corrupted=on"), writable=True) as disk:
            disk.read_at(4096, 4096)
        assert Path("r1").read_bytes() == Path("r0").read_bytes()

    def test_differences_end_it_where_that_is_asked_for(self) -> None:
        spoil("r1", 5000)
        two = ",".join(CHILDREN.split(",")[:4])
        message = "quorum: offset=4096 bytes=4096 contents mismatch at offset 5000"
        with (
            opened(f"driver=quorum,vote-threshold=2,blkverify=on,{two}") as disk,
            pytest.raises(ImageError, match=message),
        ):
            disk.read_at(4096, 4096)

    def test_writes_go_to_all(self) -> None:
        with opened(self.name("vote-threshold=2"), writable=True) as disk:
            disk.write_at(7, b"new")
            disk.write_zeroes(4096, 100, unmap=False)
        assert Path("r0").read_bytes() == Path("r1").read_bytes() == Path("r2").read_bytes()
        assert Path("r2").read_bytes()[5:12] == b"\5\6new\n\x0b"

    def test_children_of_different_size_are_refused(self) -> None:
        Path("r1").write_bytes(bytes(4096))
        with pytest.raises(ImageError):
            opened(self.name("vote-threshold=2"))


def entries(log: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """An independent reader of the log: (sector, number of sectors, flags, data) of each entry."""
    content = log.read_bytes()
    magic, version, count, sector = struct.unpack_from("<QQQI", content)
    assert (magic, version) == (0x6A736677736872, 1)
    position = sector
    for _ in range(count):
        start, number, flags, inline = struct.unpack_from("<QQQQ", content, position)
        assert inline == 0
        position += sector
        length = 0 if flags & 4 else number * sector
        yield start, number, flags, content[position : position + length]
        position += length
    assert position == len(content)


class TestBlklogwrites:
    NAME = "driver=blklogwrites,file.driver=raw,file.file.filename=r0,log.driver=file,log.filename=log"

    def write(self, options: str = "") -> None:
        with opened(self.NAME + options, writable=True) as disk:
            disk.write_at(512, b"a" * 1024)
            disk.flush()
            disk.write_at(4096, b"b" * 512)
            disk.flush()

    @pytest.mark.parametrize("sector", [512, 4096])
    def test_replaying_the_log_gives_the_disk(self, sector: int) -> None:
        before = bytearray(Path("r0").read_bytes())
        Path("log").touch()
        self.write(f",log-sector-size={sector}")
        for start, number, _, data in entries(Path("log")):
            before[start * sector : start * sector + len(data)] = data
            assert len(data) in (0, number * sector)
        assert before == Path("r0").read_bytes()

    def test_a_log_may_be_continued(self) -> None:
        Path("log").touch()
        self.write()
        first = list(entries(Path("log")))
        self.write(",log-append=on")
        assert list(entries(Path("log"))) == first * 2

    def test_the_same_log_as_by_the_real_tool(self) -> None:
        program = find_qemu_img()
        qemu_io = shutil.which(str(Path(program).with_name("qemu-io"))) if program else None
        if qemu_io is None:
            pytest.skip("qemu-io is not installed")
        Path("log").touch()
        commands = ("write -P 97 512 1k", "flush", "write -P 98 4k 512", "flush")
        parts = [part for command in commands for part in ("-c", command)]
        subprocess.run([qemu_io, "--image-opts", "-t", "writeback", *parts, self.NAME], check=True, capture_output=True)
        expected = [entry for entry in entries(Path("log")) if entry[1]]
        Path("log").write_bytes(b"")
        self.write()
        assert [entry for entry in entries(Path("log")) if entry[1]] == expected
