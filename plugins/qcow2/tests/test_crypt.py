"""Encrypted images against the real tools, both ways: what one writes, the other reads."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskwright.cli import main
from diskwright.context import Context
from diskwright.engine.convert import ConvertRequest, convert
from diskwright.engine.creation import CreateRequest, create
from diskwright.engine.snapshots import view
from diskwright.extent import ExtentTable, Flag, Kind
from diskwright.node import Image, WritableImage
from diskwright_qcow2.image import Qcow2Image

pytest.importorskip("diskwright_luks", reason="the package diskwright-luks is not installed")

SIZE = (3 << 20) + 512
PASSPHRASE = "open sesame"
SECRET = ("--object", f"secret,id=s0,data={PASSPHRASE}")
CASES = [
    pytest.param(format, options, id=f"{format}-{options or 'default'}")
    for format in ("luks", "aes")
    for options in ("", "cluster_size=512", "cluster_size=2M", "extended_l2=on,cluster_size=16k", "compat=v2")
]


@pytest.fixture
def context() -> Context:
    """A context that knows the secret."""
    context = Context()
    context.objects.add(f"secret,id=s0,data={PASSPHRASE}")
    return context


@pytest.fixture(scope="session")
def write_by_qemu() -> Callable[..., None]:
    """Run commands of the real qemu-io on an encrypted image."""
    chosen = os.environ.get("DISKWRIGHT_QEMU_IMG")
    program = shutil.which(str(Path(chosen).with_name("qemu-io")) if chosen else "qemu-io")
    if program is None:
        pytest.skip("qemu-io is not installed (Debian: qemu-utils)")

    def run(path: Path, *commands: str) -> None:
        parts = [part for command in commands for part in ("-c", command)]
        done = subprocess.run(
            [program, *SECRET, *parts, "--image-opts", name_of(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done
        assert "failed" not in done.stdout + done.stderr, done

    return run


def create_by_qemu(qemu_img: Callable[..., str], options: str, *args: str | Path) -> None:
    """Create an image by the real tool, which now and then fails to measure how fast the processor is."""
    for attempt in range(10):
        try:
            qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o", options, *args)
        except AssertionError as error:
            if "accurate CPU usage" not in str(error) or attempt == 9:
                raise
        else:
            return


def name_of(path: Path) -> str:
    """The image by its options, with its secret."""
    return f"driver=qcow2,encrypt.key-secret=s0,file.filename={path}"


def crypt_options(format: str, more: str = "") -> str:
    """Creation options; the passphrase takes little time."""
    quick = ",encrypt.iter-time=1" if format == "luks" else ""
    return f"encrypt.format={format},encrypt.key-secret=s0{quick}{',' * bool(more)}{more}"


def opened(context: Context, path: Path, *, writable: bool = False) -> Image:
    """Open an image with its secret."""
    return context.open(str(path), "qcow2", writable=writable, options={"encrypt.key-secret": "s0"})


def make(context: Context, path: Path, options: str, size: int = SIZE, backing: Path | None = None) -> None:
    """Create an image by our own means."""
    declared = context.formats.call("creation_options", "qcow2")
    by_name = {option.name: option for option in declared}
    pairs = [part.split("=", 1) for part in options.split(",")]
    values = {name: by_name[name].parse(value) for name, value in pairs}
    request = CreateRequest(
        str(path), "qcow2", size, values, str(backing) if backing else None, "raw" if backing else None
    )
    create(context, request)


def convert_raw(context: Context, source: Path, path: Path, options: str) -> None:
    """Convert a raw disk into a qcow2 image by our own means."""
    convert(context, ConvertRequest([str(source)], str(path), source_format="raw", format="qcow2", options=[options]))


def content_by_qemu(qemu_img: Callable[..., str], path: Path, *more: str) -> bytes:
    """All guest bytes as the real tool reads them."""
    raw = path.with_suffix(".raw")
    qemu_img("convert", *SECRET, *more, "--image-opts", name_of(path), "-O", "raw", raw)
    return raw.read_bytes()


def check_by_qemu(qemu_img: Callable[..., str], path: Path) -> None:
    """The real check must find nothing."""
    assert "No errors were found" in qemu_img("check", *SECRET, "--image-opts", name_of(path))


def change(image: Image, model: bytearray, rng: random.Random, count: int = 25) -> None:
    """Write at random places, of any alignment; make zeros."""
    assert isinstance(image, Qcow2Image)
    for _ in range(count):
        unit = rng.choice((1, 512, 4096))
        start = rng.randrange(len(model)) // unit * unit
        length = min(len(model) - start, rng.choice((1, 500, 512, 4096, 70_000, 300_000)))
        if rng.random() < 0.25:
            image.write_zeroes(start, length, unmap=rng.random() < 0.5)
            model[start : start + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            image.write_at(start, data)
            model[start : start + length] = data


@pytest.mark.parametrize(("format", "options"), CASES)
def test_reads_what_qemu_wrote(
    format: str,
    options: str,
    tmp_path: Path,
    context: Context,
    qemu_img: Callable[..., str],
    write_by_qemu: Callable[..., None],
) -> None:
    base, path = tmp_path / "base", tmp_path / "x.qcow2"
    base.write_bytes(random.Random(1).randbytes(SIZE))
    create_by_qemu(qemu_img, crypt_options(format, options), "-b", base, "-F", "raw", path)
    write_by_qemu(path, "write -P 1 0 64k", "write -P 2 700k 1M", "write -P 3 1000k 512")
    qemu_img("snapshot", *SECRET, "-c", "before", "--image-opts", name_of(path))
    write_by_qemu(path, "write -P 4 720k 100k", "write -z 1300k 200k", "write -P 5 2500k 10k")
    with opened(context, path) as image:
        present = content_by_qemu(qemu_img, path)
        assert image.read_at(0, SIZE) == present
        rng = random.Random(2)
        for _ in range(60):
            start = rng.randrange(SIZE)
            length = min(SIZE - start, rng.choice((1, 511, 513, 5000, 100_000)))
            assert image.read_at(start, length) == present[start : start + length]
        former = content_by_qemu(qemu_img, path, "-l", "before")
        assert former != present
        assert view(context, image, "before").read_at(0, SIZE) == former


@pytest.mark.parametrize(("format", "options"), CASES)
def test_qemu_reads_what_was_written(
    format: str, options: str, tmp_path: Path, context: Context, qemu_img: Callable[..., str]
) -> None:
    base, path = tmp_path / "base", tmp_path / "x.qcow2"
    rng = random.Random(3)
    model = bytearray(rng.randbytes(SIZE))
    base.write_bytes(model)
    make(context, path, crypt_options(format, options), SIZE, base)
    with opened(context, path, writable=True) as image:
        change(image, model, rng)
        assert image.read_at(0, SIZE) == model
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == model
    # Clusters that a snapshot keeps are copied, and keep what they are.
    qemu_img("snapshot", *SECRET, "-c", "kept", "--image-opts", name_of(path))
    kept = bytes(model)
    with opened(context, path, writable=True) as image:
        change(image, model, rng)
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == model
    assert content_by_qemu(qemu_img, path, "-l", "kept") == kept


@pytest.mark.parametrize("format", ["luks", "aes"])
def test_writes_into_images_of_qemu(
    format: str, tmp_path: Path, context: Context, qemu_img: Callable[..., str], write_by_qemu: Callable[..., None]
) -> None:
    path = tmp_path / "x.qcow2"
    create_by_qemu(qemu_img, crypt_options(format), path, str(SIZE))
    write_by_qemu(path, "write -P 1 100k 1M")
    model = bytearray(SIZE)
    model[100 << 10 : 1124 << 10] = b"\1" * (1 << 20)
    with opened(context, path, writable=True) as image:
        change(image, model, random.Random(4))
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == model


@pytest.mark.parametrize("format", ["luks", "aes"])
def test_convert(
    format: str,
    tmp_path: Path,
    context: Context,
    qemu_img: Callable[..., str],
    pattern: Callable[[int, int], bytes],
) -> None:
    source, path, back = tmp_path / "source", tmp_path / "x.qcow2", tmp_path / "back"
    disk = pattern(8 << 20, 5)
    source.write_bytes(disk)
    convert_raw(context, source, path, crypt_options(format))
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == disk
    # No run of the disk's bytes stands in the file as it is.
    stored = path.read_bytes()
    start = next(i for i in range(0, len(disk), 512) if len(set(disk[i : i + 512])) > 20)
    assert disk[start : start + 32] not in stored
    with opened(context, path) as image, back.open("wb") as file:
        file.write(image.read_at(0, image.size))
    assert back.read_bytes() == disk


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("format", ["luks", "aes"])
def test_preallocated(format: str, mode: str, tmp_path: Path, context: Context, qemu_img: Callable[..., str]) -> None:
    path = tmp_path / "x.qcow2"
    make(context, path, crypt_options(format, f"preallocation={mode}"))
    check_by_qemu(qemu_img, path)
    before = content_by_qemu(qemu_img, path)
    with opened(context, path, writable=True) as image:
        assert not image.new_reads_zero()
        assert image.read_at(0, SIZE) == before
        image.write_at(1000, b"here")
    assert content_by_qemu(qemu_img, path) == before[:1000] + b"here" + before[1004:]
    # Zeros are written, for they are not there.
    source = tmp_path / "source"
    source.write_bytes(bytes(SIZE))
    convert_raw(context, source, path, crypt_options(format, f"preallocation={mode}"))
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == bytes(SIZE)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("format", ["luks", "aes"])
def test_data_file(format: str, raw: bool, tmp_path: Path, context: Context, qemu_img: Callable[..., str]) -> None:
    path, data = tmp_path / "x.qcow2", tmp_path / "x.data"
    make(context, path, crypt_options(format, f"data_file={data}{',data_file_raw=on' * raw}"))
    rng = random.Random(6)
    with opened(context, path, writable=True) as image:
        model = bytearray(image.read_at(0, SIZE))
        change(image, model, rng)
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == model
    with opened(context, path) as image:
        assert image.read_at(0, SIZE) == model


@pytest.mark.parametrize("preallocation", ["off", "metadata", "full"])
@pytest.mark.parametrize("compat", ["v2", "v3"])
def test_resize(
    compat: str, preallocation: str, tmp_path: Path, context: Context, qemu_img: Callable[..., str]
) -> None:
    path = tmp_path / "x.qcow2"
    make(context, path, crypt_options("luks", f"compat={compat}"))
    with opened(context, path, writable=True) as image:
        image.write_at(0, b"x" * SIZE)
        context.formats.call("resize", "qcow2", image=image, size=2 * SIZE, preallocation=preallocation)
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == b"x" * SIZE + bytes(SIZE)
    with opened(context, path, writable=True) as image:
        context.formats.call("resize", "qcow2", image=image, size=1 << 20, preallocation="off")
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == b"x" * (1 << 20)


def test_make_empty_keeps_the_key(tmp_path: Path, context: Context, qemu_img: Callable[..., str]) -> None:
    base, path = tmp_path / "base", tmp_path / "x.qcow2"
    base.write_bytes(b"b" * SIZE)
    make(context, path, crypt_options("luks"), SIZE, base)
    with opened(context, path, writable=True) as image:
        image.write_at(0, b"x" * SIZE)
        context.formats.call("make_empty", "qcow2", image=image)
    check_by_qemu(qemu_img, path)
    assert content_by_qemu(qemu_img, path) == b"b" * SIZE


def test_map_shows_no_places(tmp_path: Path, context: Context) -> None:
    path = tmp_path / "x.qcow2"
    make(context, path, crypt_options("luks"))
    with opened(context, path, writable=True) as image:
        assert isinstance(image, WritableImage)
        image.write_at(3 << 16, b"x" * 65536)
        image.write_at(1 << 16, b"x" * (2 << 16))
        image.flush()
        extents = [
            extent for item in image.extents() for extent in (item if isinstance(item, ExtentTable) else (item,))
        ]
    assert [(e.offset, e.length, e.kind) for e in extents] == [
        (0, 1 << 16, Kind.ABSENT),
        (1 << 16, 3 << 16, Kind.ENCODED),
        (4 << 16, SIZE - (4 << 16), Kind.ABSENT),
    ]
    assert extents[1].flags == Flag.ENCRYPTED
    assert all(extent.node_offset is None for extent in extents)


def test_an_overlay_is_made_without_the_secret_of_its_backing_file(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    assert main(["create", "-q", *SECRET, "-f", "qcow2", "-o", crypt_options("luks"), str(base), "1M"]) == 0
    assert main(["create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(top)]) == 0
    with Context().open(str(top), "qcow2", backing=False) as image:
        assert image.size == 1 << 20
