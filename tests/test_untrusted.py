"""``info --untrusted``: everything odd is found, nothing else is opened, and no image ends in a traceback."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright
from diskwright.engine.untrusted import examine
from diskwright.facts import Severity

MIB = 1 << 20


@pytest.fixture
def make(tmp_path: Path, inside: Callable[..., Any]) -> Callable[..., Path]:
    def create(*arguments: str, size: str = "1M", name: str = "image") -> Path:
        inside("create", "-q", "-u", *arguments, tmp_path / name, size, code=0)
        return tmp_path / name

    return create


def found(image: Path | str, format: str | None = None) -> dict[str, str]:
    """The findings: severity by id."""
    return {finding.id: str(finding.severity) for finding in diskwright.examine(image, format).findings}


@pytest.mark.parametrize("format", ["raw", "qcow2", "vdi"])
def test_nothing_to_find(format: str, make: Callable[..., Path], inside: Callable[..., Any]) -> None:
    result = inside("info", "--untrusted", make("-f", format), code=0)
    assert result.out.endswith("Findings: none\n")
    assert json.loads(inside("info", "--untrusted", "--output=json", make("-f", format), code=0).out)["findings"] == []


REFERENCES = [
    ("base.img", set()),
    ("/etc/passwd", {"absolute-reference"}),
    ("../../x", {"traversal-reference"}),
    ("nbd://host/x", {"protocol-reference"}),
    ('json:{"driver":"file"}', {"json-reference"}),
    ("a\x1b[2Jb", {"unprintable-name"}),
]


@pytest.mark.parametrize(("name", "ids"), REFERENCES)
def test_backing_files(name: str, ids: set[str], make: Callable[..., Path]) -> None:
    image = make("-f", "qcow2", "-b", name, "-F", "raw")
    assert found(image).keys() == ids | {"backing-reference"}
    assert found(image)["backing-reference"] == "danger"


def test_data_files_are_paths(make: Callable[..., Path], tmp_path: Path, inside: Callable[..., Any]) -> None:
    image = make("-f", "qcow2", "-o", f"data_file={tmp_path}/nbd:x")
    assert found(image).keys() == {"data-file-reference", "absolute-reference"}
    os.unlink(tmp_path / "nbd:x")
    assert found(image).keys() == {"data-file-reference", "absolute-reference"}


def test_nothing_but_the_file_is_opened(make: Callable[..., Path], tmp_path: Path) -> None:
    """Not even what exists and could be opened; names that mean something else are paths here."""
    backing = make("-f", "raw", name="base")
    image = make("-f", "qcow2", "-b", str(backing), "-F", "raw")
    context = diskwright.Context()
    log = tmp_path / "log"
    code = (
        "import sys, os\nsys.addaudithook(lambda e, a: e == 'open' and os.write(3, os.fsencode(str(a[0])) + b'\\n'))\n"
    )
    code += "from diskwright.cli import main\nsys.exit(main(['info', '--untrusted', 'image']))"
    command = f'exec 3>{log}; exec {sys.executable} -c "$CODE"'
    done = subprocess.run(["bash", "-c", command], env={**os.environ, "CODE": code}, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert "image" in log.read_text().split("\n")
    assert str(backing) not in log.read_text()
    with pytest.raises(diskwright.ImageError, match="No such file"):
        examine(context, f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{image}"}}}}')
    assert image.stat().st_size


def test_header_oddities(make: Callable[..., Path]) -> None:
    image = make("-f", "qcow2")
    whole = image.read_bytes()

    def changed(offset: int, data: bytes) -> dict[str, str]:
        image.write_bytes(whole[:offset] + data + whole[offset + len(data) :])
        return found(image)

    assert changed(72, struct.pack(">Q", 2))["corrupt"] == "danger"
    assert changed(72, struct.pack(">Q", 1))["dirty"] == "warning"
    assert changed(72, struct.pack(">Q", 1 << 40)) == {"unsupported-feature": "danger"}
    assert changed(80, struct.pack(">Q", 1 << 9)) == {"unknown-features": "warning"}
    assert changed(88, struct.pack(">Q", 1 << 9)) == {"unknown-features": "warning"}
    assert changed(112, struct.pack(">II8s8x", 0x12345678, 8, b"whatever")) == {"unknown-extension": "warning"}
    assert changed(4, b"\0\0\0\x09") == {"unsupported-feature": "danger"}
    assert changed(20, b"\0\0\0\x3f") == {"invalid-image": "danger"}
    image.write_bytes(whole + bytes(65536) + b"more")
    assert found(image) == {"trailing-data": "warning"}
    image.write_bytes(whole[:50])
    assert found(image) == {"invalid-image": "danger"}


def test_snapshots_bitmaps_encryption_and_size(make: Callable[..., Path], tmp_path: Path, inside: Any) -> None:
    image = make("-f", "qcow2")
    inside("snapshot", "-c", "a\tb", image, code=0)
    inside("bitmap", "--add", image, "b\n", code=0)
    assert found(image) == {"snapshots": "note", "bitmaps": "note", "unprintable-name": "warning"}
    assert found(make("-f", "qcow2", size="1P", name="huge")) == {"size-ratio": "warning"}
    (tmp_path / "key").write_text("x")
    secret = ("--object", f"secret,id=k,file={tmp_path / 'key'}")
    encrypted = make(
        *secret, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10", name="e"
    )
    assert found(encrypted) == {"encrypted": "note"}
    assert inside("info", "--untrusted", *secret, encrypted).code == 0
    volume = make(*secret, "-f", "luks", "-o", "key-secret=k,iter-time=10", name="luks")
    assert found(volume) == {"encrypted": "note"}
    with volume.open("r+b") as file:
        file.seek(208)
        file.write(struct.pack(">II", 0x0000DEAD, 0))
    assert found(volume).keys() == {"encrypted", "no-keyslot"}


def test_ambiguous_and_nested(make: Callable[..., Path], tmp_path: Path, inside: Callable[..., Any]) -> None:
    inner = make("-f", "qcow2", name="inner")
    assert found(inner, "raw") == {"ambiguous-format": "warning", "odd-size": "note"}
    inside("convert", "-f", "raw", "-O", "qcow2", inner, tmp_path / "outer", code=0)
    assert found(tmp_path / "outer") == {"nested-image": "warning"}
    trailer = tmp_path / "trailer"
    trailer.write_bytes(bytes(MIB) + b"conectix" + bytes(504))
    assert found(trailer, "raw") == {"ambiguous-format": "warning"}
    boot = tmp_path / "boot"
    boot.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1000))
    assert found(boot, "raw") == {"content": "note", "odd-size": "note"}
    vdi = make("-f", "vdi", name="vdi")
    with vdi.open("ab") as file:
        file.write(b"behind")
    assert found(vdi) == {"trailing-data": "warning"}


def test_corruption(make: Callable[..., Path], inside: Callable[..., Any]) -> None:
    image = make("-f", "qcow2")
    with image.open("r+b") as file:
        file.seek(48)
        (table,) = struct.unpack(">Q", file.read(8))
        file.seek(table)
        (block,) = struct.unpack(">Q", file.read(8))
        file.seek(block)
        file.write(bytes(2))
    result = inside("info", "--untrusted", image, code=3)
    assert "danger: the check finds 1 errors [corruption]" in result.out
    assert "ERROR cluster 0 refcount=0 reference=1" in result.out


def test_names_cannot_pass_for_findings(make: Callable[..., Path], inside: Callable[..., Any]) -> None:
    image = make("-f", "qcow2", "-b", "x\nFindings: none", "-F", "raw")
    result = inside("info", "--untrusted", image, code=3)
    assert "\nFindings: none" not in result.out


def test_exit_codes(make: Callable[..., Path], tmp_path: Path, inside: Callable[..., Any]) -> None:
    assert inside("info", "--untrusted", tmp_path / "nosuch").code == 1
    assert inside("info", "--untrusted", tmp_path).code == 1
    assert inside("info", "--untrusted", "--backing-chain", make("-f", "raw")).code == 1
    result = inside("info", "--untrusted", "--output=json", "-f", "qcow2", make("-f", "raw"), code=3)
    told = json.loads(result.out)
    assert not told["safe"]
    assert [finding["id"] for finding in told["findings"]] == ["invalid-image"]


def test_limits_end_it(make: Callable[..., Path], inside: Callable[..., Any]) -> None:
    """What takes too long, or too much metadata, is a finding."""
    image = make("-f", "qcow2", "-o", "cluster_size=512", size="1G")
    result = inside("info", "--untrusted", "--policy", "metadata=20k", "--output=json", image, code=3)
    assert "limit-exceeded" in [finding["id"] for finding in json.loads(result.out)["findings"]]
    result = inside("info", "--untrusted", "--policy", "time=0.000001", "--output=json", image)
    assert result.code in (1, 3)


def samples(folder: Path, inside: Callable[..., Any]) -> dict[str, bytes]:
    source = folder / "source"
    source.write_bytes(b"".join(b"%07d " % n for n in range(8192)) + bytes(65536))
    made = {}
    for name, options in {
        "qcow2": ("-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k"),
        "qcow2c": ("-f", "raw", "-c", "-O", "qcow2", "-o", "cluster_size=4k"),
        "vdi": ("-f", "raw", "-O", "vdi"),
    }.items():
        inside("convert", *options, source, folder / name, code=0)
    inside("snapshot", "-c", "one", folder / "qcow2", code=0)
    inside("bitmap", "--add", folder / "qcow2", "b", code=0)
    (folder / "key").write_text("x")
    secret = ("--object", f"secret,id=k,file={folder / 'key'}")
    inside("create", "-q", *secret, "-f", "luks", "-o", "key-secret=k,iter-time=10", folder / "luks", "64k", code=0)
    for name in ("qcow2", "qcow2c", "vdi", "luks"):
        made[name] = (folder / name).read_bytes()
    return made


def mutated(data: bytes, choice: random.Random) -> bytes:
    """Some bytes of the metadata changed, and perhaps the file cut."""
    changed = bytearray(data)
    for _ in range(choice.choice((1, 1, 2, 8))):
        span = choice.choice((128, 512, 4096, 65536))
        at = choice.randrange(min(span, len(changed) - 8))
        value = choice.choice(
            (b"\xff", b"\0", b"\x80", b"\x7f\xff\xff\xff", bytes(8), b"\xff" * 8, choice.randbytes(4))
        )
        changed[at : at + len(value)] = value
    if choice.random() < 0.1:
        del changed[choice.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_mutants(seed: int, tmp_path: Path, inside: Callable[..., Any]) -> None:
    """Hundreds of damaged images: each ends in findings, soon."""
    choice = random.Random(seed)
    image = tmp_path / "mutant"
    count = int(os.environ.get("DISKWRIGHT_MUTANTS", "120"))
    for name, data in samples(tmp_path, inside).items():
        for number in range(count):
            image.write_bytes(mutated(data, choice))
            began = time.monotonic()
            format = choice.choice((None, name.rstrip("c")))
            examined = diskwright.examine(image, format)
            assert time.monotonic() - began < 10, (name, seed, number)
            for finding in examined.findings:
                assert finding.message.isprintable()
                assert isinstance(finding.severity, Severity)
