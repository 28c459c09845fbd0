"""What of an option tree is opened, and how large the disk is that it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskwright.testing.oracle import qemu_img


def test_a_description_does_not_open_the_data_file(tmp_path: Path, inside: Callable[..., Any]) -> None:
    """Not even the one that the user names: it holds nothing that is told."""
    image, data = tmp_path / "image.qcow2", tmp_path / "data.raw"
    inside("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", image, "1M", code=0)
    tree = f"driver=qcow2,file.filename={image},data-file.filename={tmp_path / 'nosuch'}"
    described = inside("info", "--output=json", "--image-opts", tree, code=0)
    assert [child["name"] for child in json.loads(described.out)["children"]] == ["file"]
    real = qemu_img("info", "--output=json", "--image-opts", tree).stdout
    if '"children"' in real:  # since 8.0
        assert described.out == real
    assert inside("map", "--image-opts", tree).code == 1


@pytest.mark.parametrize("driver", ["", "throttle", "preallocate", "raw"])
def test_a_file_of_an_odd_size_ends_in_zeros(driver: str, tmp_path: Path, inside: Callable[..., Any]) -> None:
    """Disks are whole sectors, also those that are a file as it is."""
    file = tmp_path / "odd"
    file.write_bytes(b"x" * 1000)
    group = ["--object", "throttle-group,id=g"]
    tree = f"driver=file,filename={file}"
    if driver:
        tree = f"driver={driver},file.driver=file,file.filename={file}"
    if driver == "throttle":
        tree += ",throttle-group=g"
    mapped = inside("map", *group, "--output=json", "--image-opts", tree, code=0).out
    assert [(row["start"], row["length"], row["zero"]) for row in json.loads(mapped)] == [
        (0, 1000, False),
        (1000, 24, True),
    ]
    real = qemu_img("map", *group, "--output=json", "--image-opts", tree).stdout
    if '"compressed"' not in real:  # before 8.2
        mapped = mapped.replace('"compressed": false, ', "")
    assert mapped == real


@pytest.mark.parametrize(
    ("tree", "is_file"),
    [
        ("driver=blkdebug,image.filename=image", True),
        ("driver=blkverify,test.driver=raw,test.file.filename=image,raw.filename=image", True),
        ("driver=blkverify,test.filename=image,raw.filename=image", False),
        ("driver=quorum,vote-threshold=1,children.0.filename=image,children.1.filename=image", False),
    ],
)
def test_what_filters_name_by_a_file_name_alone(
    tree: str, is_file: bool, tmp_path: Path, inside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside("create", "-q", "-f", "qcow2", "image", "1M", code=0)
    shown = inside("info", "-U", "--image-opts", tree, code=0 if is_file else 1)
    real = qemu_img("info", "-U", "--image-opts", tree, check=False)
    assert real.returncode == shown.code
    if is_file:
        assert f"virtual size: {Path('image').stat().st_size // 1024} KiB" in shown.out
    else:
        assert "Must specify either driver or file" in shown.err
        assert "Must specify either driver or file" in real.stderr
