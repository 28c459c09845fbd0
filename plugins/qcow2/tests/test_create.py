"""Creation: the same options give what the real tool gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskwright

VARIANTS = [
    {},
    {"cluster_size": "512"},
    {"cluster_size": "2M"},
    {"compat": "0.10"},
    {"compat": "v3", "lazy_refcounts": "on"},
    {"extended_l2": "on"},
    {"compression_type": "zstd"},
    {"preallocation": "metadata"},
    {"preallocation": "metadata", "extended_l2": "on"},
    {"preallocation": "falloc"},
    {"preallocation": "full", "cluster_size": "4k"},
    {"data_file": "data.raw"},
    {"data_file": "data.raw", "data_file_raw": "on"},
    *({"refcount_bits": str(1 << order)} for order in range(7)),
]


def create(path: Path | str, size: int | str, options: dict[str, str]) -> None:
    diskwright.create(path, "qcow2", size, **options)


def facts(qemu_img: Callable[..., str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(qemu_img("info", "--output=json", name))
    return {key: found[key] for key in ("virtual-size", "format-specific", "cluster-size", "dirty-flag")}


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("size", [0, 66560, 20 << 20])
def test_like_the_real_tool(
    tmp_path: Path,
    qemu_img: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    size: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    create("ours.qcow2", size, options)
    given = ",".join(f"{name}={value}" for name, value in options.items())
    if "data_file" in options:
        Path("data.raw").rename("ours.raw")
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", given] if given else []), "theirs.qcow2", str(size))
    whole = size % 65536 == 0  # the real tool treats a last part of a cluster in several ways
    if "data_file" in options and whole:
        assert Path("ours.raw").stat().st_size == Path("data.raw").stat().st_size
    assert facts(qemu_img, "ours.qcow2") == facts(qemu_img, "theirs.qcow2")
    qemu_img("check", "-q", "ours.qcow2")
    qemu_img("compare", "-q", *(["-s"] if whole else []), "ours.qcow2", "theirs.qcow2")
    if options.get("preallocation") not in ("falloc", "full") and whole:
        assert Path("ours.qcow2").stat().st_size == Path("theirs.qcow2").stat().st_size


def test_backing_file(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    (tmp_path / "base.raw").write_bytes(b"base" * 65536)
    path = tmp_path / "top.qcow2"
    diskwright.create(path, "qcow2", backing_file="base.raw", backing_format="raw")
    described = json.loads(qemu_img("info", "--output=json", path))
    assert described["backing-filename"] == "base.raw"
    assert described["backing-filename-format"] == "raw"
    assert described["virtual-size"] == 4 * 65536
    qemu_img("compare", "-q", tmp_path / "base.raw", path)


def test_huge_images_are_made_at_once(tmp_path: Path, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "disk.qcow2"
    create(path, "64T", {})
    assert path.stat().st_blocks * 512 < 1 << 20
    qemu_img("check", "-q", path)
    create(path, "128G", {"cluster_size": "512"})
    qemu_img("check", "-q", path)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"cluster_size": "1000"}, "1M", "Cluster size must be a power of two between 512 and 2048k"),
        ({"cluster_size": "4M"}, "1M", "Cluster size must be a power of two between 512 and 2048k"),
        (
            {"extended_l2": "on", "cluster_size": "8k"},
            "1M",
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ),
        (
            {"extended_l2": "on", "compat": "v2"},
            "1M",
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        ({"preallocation": "foo"}, "1M", "Parameter 'preallocation' does not accept value 'foo'"),
        ({"compat": "0.9"}, "1M", "Parameter 'version' does not accept value '0.9'"),
        ({"compression_type": "lz4"}, "1M", "Parameter 'compression-type' does not accept value 'lz4'"),
        ({"refcount_bits": "3"}, "1M", "Refcount width must be a power of two and may not exceed 64 bits"),
        ({"refcount_bits": "128"}, "1M", "Refcount width must be a power of two and may not exceed 64 bits"),
        (
            {"refcount_bits": "8", "compat": "v2"},
            "1M",
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use version=v3 or greater)",
        ),
        (
            {"lazy_refcounts": "on", "compat": "v2"},
            "1M",
            "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        ({"data_file_raw": "on"}, "1M", "data-file-raw requires data-file"),
        ({"backing_fmt": "raw"}, "1M", "Backing format cannot be used without backing file"),
        (
            {"cluster_size": "512"},
            "129G",
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(tmp_path: Path, options: dict[str, str], size: str, message: str) -> None:
    path = tmp_path / "disk.qcow2"
    with pytest.raises(diskwright.ImageError) as failure:
        create(path, size, options)
    assert str(failure.value).endswith(message)
    assert not path.exists()


def test_options_are_in_the_order_of_the_real_tool() -> None:
    from diskwright_qcow2.options import CREATION_OPTIONS

    assert [option.name for option in CREATION_OPTIONS] == [
        "encryption",
        "encrypt.format",
        "encrypt.key-secret",
        "encrypt.cipher-alg",
        "encrypt.cipher-mode",
        "encrypt.ivgen-alg",
        "encrypt.ivgen-hash-alg",
        "encrypt.hash-alg",
        "encrypt.iter-time",
        "cluster_size",
        "extended_l2",
        "preallocation",
        "compression_type",
        "size",
        "compat",
        "backing_file",
        "backing_fmt",
        "data_file",
        "data_file_raw",
        "lazy_refcounts",
        "refcount_bits",
    ]


def test_a_data_file_may_be_named_with_a_prefix(tmp_path: Path, qemu_img: Any) -> None:
    """The image has its plain name, by which it is found."""
    path, data = tmp_path / "disk", tmp_path / "data:1"
    diskwright.create(path, "qcow2", 1 << 20, data_file=f"file:{data}")
    assert data.exists()
    with diskwright.open(path, writable=True) as image:
        image.write_at(0, b"x" * 4096)  # type: ignore[attr-defined]
    qemu_img("convert", "-O", "raw", path, tmp_path / "back")
    assert (tmp_path / "back").read_bytes()[:4096] == b"x" * 4096
