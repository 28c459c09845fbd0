"""What a command must not take for granted: that bytes need not be read, that a file is always the same disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, inside: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("data.raw").write_bytes(bytes(range(256)) * 4096)
    return tmp_path


def test_offloading_does_not_go_around_a_filter_that_watches_reads(folder: Path, inside: Run) -> None:
    Path("rules").write_text('[inject-error]\nevent = "read_aio"\nerrno = "5"\n')
    failing = "driver=raw,file.driver=blkdebug,file.config=rules,file.image.driver=file,file.image.filename=data.raw"
    for offload in ([], ["-C"]):
        failed = inside("convert", *offload, "--image-opts", "-O", "raw", failing, "out.raw", code=1)
        assert "error while reading at byte 0: Input/output error" in failed.err
    inside("convert", "-C", "-O", "raw", "data.raw", "copy.raw", code=0)
    assert Path("copy.raw").read_bytes() == Path("data.raw").read_bytes()


def test_a_rebase_to_the_same_file_as_another_format_keeps_the_content(folder: Path, inside: Run) -> None:
    inside("convert", "-O", "qcow2", "data.raw", "base.qcow2", code=0)
    inside("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", code=0)
    inside("rebase", "-b", "base.qcow2", "-F", "raw", "top.qcow2", code=0)
    inside("compare", "-q", "-F", "raw", "top.qcow2", "data.raw", code=0)


@pytest.mark.parametrize("options", [["-B", "data.raw", "-F", "raw"], ["-o", "backing_file=data.raw,backing_fmt=raw"]])
def test_concatenated_disks_have_no_backing_file(folder: Path, inside: Run, options: list[str]) -> None:
    for name in ("a", "b"):
        inside("create", "-q", "-f", "qcow2", "-b", "data.raw", "-F", "raw", name, code=0)
    failed = inside("convert", "-O", "qcow2", *options, "a", "b", "out.qcow2", code=1)
    assert "makes no sense when concatenating multiple input images" in failed.err
    assert not Path("out.qcow2").exists()
