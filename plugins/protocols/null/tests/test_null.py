"""Null devices through the command line, next to the real tool."""

import json
import subprocess
import sys
import time

import pytest

from diskwright.context import Context
from diskwright.errors import ImageError
from diskwright.extent import Kind
from diskwright.testing.oracle import qemu_img
from diskwright.trees import OptionString


def ours(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "diskwright", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "name",
    [
        ("null-co://",),
        ("null-aio://",),
        ("-f", "raw", "null-co://"),
        ("--image-opts", "driver=null-co"),
        ("--image-opts", "driver=null-co,size=64M"),
        ("--image-opts", "driver=null-co,size=64M,read-zeroes=on,latency-ns=0"),
        ("--image-opts", "driver=raw,file.driver=null-aio,file.size=1M,offset=512"),
        ('json:{"driver": "null-co", "size": 65536}',),
        ('json:{"driver": "null-co", "size": "64k", "read-zeroes": true}',),
    ],
)
def test_described_as_the_real_tool_does(name: tuple[str, ...]) -> None:
    expected = json.loads(qemu_img("info", "--output=json", *name).stdout)
    found = json.loads(ours("info", "--output=json", *name).stdout)
    if "children" not in expected:  # older than 8.0
        found.pop("children")
    assert found == expected


def test_takes_everything_and_keeps_nothing() -> None:
    with Context().open(OptionString("driver=null-co,size=1M"), writable=True) as disk:
        disk.write_at(4096, b"x" * 512)  # type: ignore[attr-defined]
        disk.write_zeroes(0, 4096, unmap=True)  # type: ignore[attr-defined]
        disk.discard(0, 4096)  # type: ignore[attr-defined]
        disk.flush()
        assert disk.read_at(4096, 512) == bytes(512)


@pytest.mark.parametrize(("option", "kind"), [("on", Kind.ZERO), ("off", Kind.DATA)])
def test_zeros_are_announced_where_that_is_asked_for(option: str, kind: Kind) -> None:
    with Context().open(OptionString(f"driver=null-co,read-zeroes={option}")) as disk:
        assert [extent.kind for extent in disk.extents()] == [kind]


def test_requests_take_the_time_that_they_are_to_take() -> None:
    with Context().open(OptionString("driver=null-co,latency-ns=50000000")) as disk:
        start = time.monotonic()
        disk.read_at(0, 512)
        assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("null-co:x", "The only allowed filename for this driver is 'null-co://'"),
        (OptionString("driver=null-co,size=x"), "Parameter 'size' expects a non-negative number below 2^64"),
        (OptionString("driver=null-co,foo=1"), "Block protocol 'null-co' doesn't support the option 'foo'"),
    ],
)
def test_refused(name: str, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        Context().open(name, None if isinstance(name, OptionString) else "raw")
    assert str(caught.value).endswith(message)
