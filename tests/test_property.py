"""Long random lives of qcow2 images, beside a model that is plain bytes.

Each step is a tuple of a name and numbers, so that a life that went wrong can be lived again: a failure prints it, and
``live(folder, configuration, steps)`` runs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import default_context
from diskwright.engine.checking import CheckRequest, check_file
from diskwright.engine.commit import CommitRequest, commit
from diskwright.engine.copy import no_progress
from diskwright.engine.rebase import RebaseRequest, rebase
from diskwright.engine.snapshots import find, listed, view
from diskwright.errors import ImageError
from diskwright.extent import Kind, tabulate
from diskwright.facts import Bitmap
from diskwright.node import Image

KIB, MIB = 1 << 10, 1 << 20
SECTOR = 512
FORMAT = "qcow2"
TOP, BASES, DATA = "top.qcow2", ("base0.qcow2", "base1.qcow2"), "top.data"

Step = tuple[Any, ...]
Cells = dict[int, bytes]


@dataclass(frozen=True)
class Configuration:
    """What image lives.

    :ivar options: creation options of the top layer.
    :ivar backing: whether it begins with a backing file.
    """

    options: dict[str, Any] = field(default_factory=dict)
    backing: bool = False

    @property
    def data_file(self) -> bool:
        """Whether guest data stands in a file of its own."""
        return "data_file" in self.options


CONFIGURATIONS = {
    "512": Configuration({"cluster_size": 512}),
    "512-backing-64bit": Configuration({"cluster_size": 512, "refcount_bits": 64}, backing=True),
    "4k-v2": Configuration({"cluster_size": 4096, "compat": "0.10"}),
    "4k-v2-backing": Configuration({"cluster_size": 4096, "compat": "0.10"}, backing=True),
    "4k-2bit": Configuration({"cluster_size": 4096, "refcount_bits": 2}),
    "16k-extended": Configuration({"cluster_size": 16384, "extended_l2": True}, backing=True),
    "64k-backing": Configuration({}, backing=True),
    "64k-extended-1bit": Configuration({"extended_l2": True, "refcount_bits": 1}),
    "1k-lazy": Configuration({"cluster_size": 1024, "lazy_refcounts": True}, backing=True),
    "2k-data-file": Configuration({"cluster_size": 2048, "data_file": DATA}, backing=True),
    "8k-raw-data-file": Configuration({"cluster_size": 8192, "data_file": DATA, "data_file_raw": True}),
}


@dataclass
class Kept:
    """A snapshot as the model knows it."""

    id: str
    content: bytes


@dataclass
class Dirty:
    """A bitmap as the model knows it: what was written while it was enabled, at least."""

    granularity: int
    enabled: bool = True
    written: list[tuple[int, int]] = field(default_factory=list)


def noise(seed: int, length: int) -> bytes:
    """Bytes of a kind that the seed chooses: random, repeated text, or zeros with something in between."""
    rng = random.Random(seed)
    kind = seed % 4
    if kind == 0:
        return (b"%08d" % (seed % 10**8) * (length // 8 + 1))[:length]
    if kind == 1:
        data = bytearray(length)
        data[length // 2 : length // 2 + 64] = rng.randbytes(64)
        return bytes(data[:length])
    return rng.randbytes(length)


class Life:
    """An image on disk and what it should be."""

    def __init__(self, folder: Path, configuration: Configuration, size: int) -> None:
        self.context = default_context()
        self.formats = self.context.formats
        self.folder, self.path = folder, folder / TOP
        self.configuration = configuration
        self.content = bytearray(size)
        self.bases: dict[str, bytearray] = {}
        self.base: str | None = None
        self.snapshots: list[Kept] = []
        self.bitmaps: dict[str, Dirty] = {}
        self.version = 2 if configuration.options.get("compat") == "0.10" else 3
        self.refcount_bits = configuration.options.get("refcount_bits", 16)
        self.refused: list[str] = []
        self._image: Image | None = None
        self._make()

    def _make(self) -> None:
        from diskwright import create

        options = dict(self.configuration.options)
        if self.configuration.data_file:
            options["data_file"] = str(self.folder / DATA)
        if not options.get("data_file_raw"):
            for number, name in enumerate(BASES):
                size = max(MIB, len(self.content) + (number * 2 - 1) * 3 * 65536)
                create(self.folder / name, FORMAT, size, cluster_size=4096 << number)
                self.bases[name] = bytearray(size)
                with self.open(self.folder / name) as image:
                    for step in range(4):
                        offset = (step * 7 + number) * 37 * KIB
                        self._store(image, self.bases[name], offset, noise(step * 2 + number, 70_001))
        if self.configuration.backing:
            self.base = BASES[0]
            options |= {"backing_file": BASES[0], "backing_format": FORMAT}
        create(self.path, FORMAT, len(self.content), **options)
        if self.base:
            self.content = bytearray(self.below(0, len(self.content)))

    def open(self, path: Path, *, writable: bool = True) -> Image:
        """Open a layer; nothing here needs to survive a power cut."""
        return self.context.open(str(path), FORMAT, writable=writable, cache="unsafe")

    @staticmethod
    def _store(image: Any, content: bytearray, offset: int, data: bytes) -> None:
        image.write_at(offset, data)
        content[offset : offset + len(data)] = data

    @property
    def image(self) -> Any:
        """The image, opened for writing; it stays open until something needs it closed."""
        if self._image is None:
            self._image = self.open(self.path)
        return self._image

    def close(self) -> None:
        """Close the image."""
        if self._image is not None:
            image, self._image = self._image, None
            image.close()

    def below(self, offset: int, length: int) -> bytes:
        """What the backing layer shows of a range."""
        found = self.bases[self.base][offset : offset + length] if self.base else b""
        return bytes(found).ljust(length, b"\0")

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook of the driver for the open image."""
        return self.formats.call(hook, FORMAT, image=self.image, **arguments)

    def attempt(self, name: str, allowed: bool, action: Callable[[], Any]) -> bool:
        """Do something that the image may refuse; then nothing has changed."""
        try:
            action()
        except ImageError:
            if not allowed:
                raise
            self.refused.append(name)
            return False
        return True

    def note(self, offset: int, length: int) -> None:
        """The guest writes to a range."""
        for bitmap in self.bitmaps.values():
            if bitmap.enabled:
                bitmap.written.append((offset, length))

    # The steps. Each is drawn by the function of its name in DRAWS.

    def write(self, offset: int, length: int, seed: int) -> None:
        """Write guest data."""
        self._store(self.image, self.content, offset, noise(seed, length))
        self.note(offset, length)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make a range read as zeros."""
        self.image.write_zeroes(offset, length, unmap=unmap)
        self.content[offset : offset + length] = bytes(length)
        self.note(offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Forget a range: each sector reads as before or as zeros; whole clusters read as zeros, where they can."""
        self.image.discard(offset, length)
        got = self.image.read_at(0, len(self.content))
        end = offset + length
        assert got[:offset] == self.content[:offset], "a discard changed what is in front of it"
        assert got[end:] == self.content[end:], "a discard changed what is behind it"
        position = offset
        while position < end:
            stop = min(end, position // SECTOR * SECTOR + SECTOR)
            part = got[position:stop]
            assert part in (self.content[position:stop], bytes(len(part))), f"a discard made up data at {position}"
            position = stop
        cluster = self.image.cluster_size
        first, last = -(-offset // cluster) * cluster, end // cluster * cluster
        if first < last and not (self.version == 2 and self.base):
            assert not any(got[first:last]), "a discarded cluster does not read as zeros"
        self.content[:] = got
        self.note(offset, length)

    def compress(self, number: int, seed: int) -> None:
        """Write a cluster compressed."""
        size = self.image.cluster_size
        offset = number * size
        data = noise(seed * 4, size)
        inside = min(size, len(self.content) - offset)
        blob = self.image.compress(memoryview(data[:inside].ljust(size, b"\0")))
        if blob is None:
            self.image.write_at(offset, data[:inside])
        else:
            self.image.write_compressed([(offset, blob)])
        self.content[offset : offset + inside] = data[:inside]
        self.note(offset, inside)

    def flush(self) -> None:
        """Write back."""
        self.image.flush()

    def reopen(self) -> None:
        """Close and open again."""
        self.close()

    def snapshot_create(self, name: int) -> None:
        """Keep the disk."""
        allowed = self.configuration.data_file or self.refcount_bits < 8
        if self.attempt("snapshot_create", allowed, lambda: self.call("snapshot_create", name=f"s{name}")):
            latest = listed(self.context, self.image)[-1]
            self.snapshots.append(Kept(latest.id, bytes(self.content)))

    def snapshot_apply(self, index: int) -> None:
        """Bring a snapshot back."""
        kept = self.snapshots[index]
        wanted = find(listed(self.context, self.image), id=kept.id)
        allowed = bool(self.bitmaps) or self.refcount_bits < 8
        if self.attempt("snapshot_apply", allowed, lambda: self.call("snapshot_apply", snapshot=wanted)):
            self.content = bytearray(kept.content)

    def snapshot_delete(self, index: int) -> None:
        """Remove a snapshot."""
        kept = self.snapshots.pop(index)
        self.call("snapshot_delete", snapshot=find(listed(self.context, self.image), id=kept.id))

    def resize(self, size: int, preallocation: str) -> None:
        """Grow or shrink."""
        allowed = bool(self.snapshots and self.version == 2) or bool(self.bitmaps) or preallocation != "off"

        def action() -> None:
            self.call("resize", size=size, preallocation=preallocation)

        if self.attempt("resize", allowed, action):
            present = len(self.content)
            self.content = self.content[:size] + bytearray(max(0, size - present))
            for bitmap in self.bitmaps.values():
                bitmap.written = [
                    (start, min(length, size - start)) for start, length in bitmap.written if start < size
                ]

    def _shown_from_below(self, act: Callable[[], None]) -> None:
        """Do what changes the layer below: snapshots show the new one where they have nothing themselves."""
        absent = []
        for kept in self.snapshots:
            shown = view(self.context, self.image, f"snapshot.id={kept.id}")
            with shown:
                extents = [extent for table in tabulate(shown.extents()) for extent in table]
            absent.append([(extent.offset, extent.end) for extent in extents if extent.kind is Kind.ABSENT])
        self.close()
        act()
        for kept, ranges in zip(self.snapshots, absent, strict=True):
            content = bytearray(kept.content)
            for start, end in ranges:
                content[start:end] = self.below(start, end - start)
            kept.content = bytes(content)

    def commit(self) -> None:
        """Write the top layer into the base."""

        def act() -> None:
            commit(self.context, CommitRequest(str(self.path), FORMAT, cache="unsafe"))
            base = self.bases[self.base or ""]
            base.extend(bytes(max(0, len(self.content) - len(base))))
            base[: len(self.content)] = self.content

        self._shown_from_below(act)

    def rebase(self, number: int) -> None:
        """Take another base, or none."""
        name = (*BASES, "")[number]

        def act() -> None:
            request = RebaseRequest(
                str(self.path), name, FORMAT, FORMAT if name else None, cache="unsafe", backing_cache="unsafe"
            )
            rebase(self.context, request)
            self.base = name or None

        self._shown_from_below(act)

    def amend(self, option: str, value: Any) -> None:
        """Change how the image is laid out, or be refused."""

        def action() -> None:
            self.call("amend", values={option: value}, force=False, progress=no_progress)

        if self.attempt("amend", True, action):
            self.version = {"0.10": 2, "1.1": 3}.get(value, self.version) if option == "compat" else self.version
            self.refcount_bits = value if option == "refcount_bits" else self.refcount_bits

    def bitmap_add(self, number: int, bits: int) -> None:
        """Begin to note what is written."""
        name = f"b{number}"
        bitmap = Bitmap(name, 1 << bits, enabled=True)
        allowed = self.version == 2 or name in self.bitmaps
        if self.attempt("bitmap_add", allowed, lambda: self.call("bitmap_add", bitmap=bitmap)):
            self.bitmaps[name] = Dirty(1 << bits)

    def bitmap_remove(self, name: str) -> None:
        """Forget a bitmap."""
        self.call("bitmap_remove", name=name)
        del self.bitmaps[name]

    def bitmap_enable(self, name: str, enabled: bool) -> None:
        """Let a bitmap note what is written, or not."""
        self.call("bitmap_enable", name=name, enabled=enabled)
        self.bitmaps[name].enabled = enabled

    def verify(self) -> None:
        """The image, opened anew, is what the model says, and its own check finds nothing."""
        if self._image is not None:
            assert self.image.read_at(0, len(self.content)) == self.content, self.difference(self.image)
        self.close()
        with self.open(self.path, writable=False) as image:
            assert image.size == len(self.content)
            assert image.read_at(0, image.size) == self.content, self.difference(image)
            found = listed(self.context, image)
            assert [snapshot.id for snapshot in found] == [kept.id for kept in self.snapshots]
            for kept in self.snapshots:
                with view(self.context, image, f"snapshot.id={kept.id}") as shown:
                    assert shown.size == len(kept.content)
                    assert shown.read_at(0, shown.size) == kept.content, f"snapshot {kept.id} has changed"
            self._verify_bitmaps(image)
        if self.configuration.options.get("data_file_raw"):
            stored = (self.folder / DATA).read_bytes()
            assert stored[: len(self.content)].ljust(len(self.content), b"\0") == self.content
        for name, content in self.bases.items():
            with self.open(self.folder / name, writable=False) as image:
                assert image.read_at(0, image.size) == content, f"{name} has changed"
        result = check_file(self.context, CheckRequest(str(self.path), FORMAT), lambda _: None).result
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0), result

    def difference(self, image: Image) -> str:
        """Where the image is not as the model says."""
        got = image.read_at(0, len(self.content))
        wrong = [i for i in range(0, len(got), SECTOR) if got[i : i + SECTOR] != self.content[i : i + SECTOR]]
        return f"{len(wrong)} sectors are wrong, from {wrong[0]:#x} to {wrong[-1]:#x}"

    def _verify_bitmaps(self, image: Image) -> None:
        if not self.formats.has("bitmap_list", FORMAT):
            return
        found = {bitmap.name: bitmap for bitmap in self.formats.call("bitmap_list", FORMAT, image=image)}
        assert set(found) == set(self.bitmaps)
        for name, bitmap in self.bitmaps.items():
            assert found[name] == Bitmap(name, bitmap.granularity, bitmap.enabled)
            size = -(-len(self.content) // bitmap.granularity)
            marks = bytearray(size)
            for start, length in self.formats.call("bitmap_ranges", FORMAT, image=image, name=name):
                for bit in range(start // bitmap.granularity, -(-(start + length) // bitmap.granularity)):
                    marks[bit] = 1
            for start, length in bitmap.written:
                first, last = start // bitmap.granularity, (start + length - 1) // bitmap.granularity
                assert length <= 0 or all(marks[first : last + 1]), f"{name} has missed {length} bytes at {start}"


def _range(life: Life, rng: random.Random, align: int = 1) -> tuple[int, int]:
    size = len(life.content)
    offset = rng.randrange(size) // align * align
    longest = rng.choice((1, 700, 5000, 70_000, 300_000))
    length = max(align, rng.randrange(1, longest + 1) // align * align)
    return offset, min(length, size - offset)


def _draw_resize(life: Life, rng: random.Random) -> Step:
    mode = rng.choice(("off", "off", "off", "metadata", "falloc", "full"))
    size = rng.randrange(MIB // SECTOR, 4 * MIB // SECTOR) * SECTOR
    return ("resize", size, mode if size > len(life.content) else "off")


def _draw_amend(life: Life, rng: random.Random) -> Step:
    option = rng.choice(("refcount_bits", "refcount_bits", "compat", "lazy_refcounts"))
    values = {"refcount_bits": (1, 2, 4, 8, 16, 32, 64), "compat": ("0.10", "1.1"), "lazy_refcounts": (True, False)}
    return ("amend", option, rng.choice(values[option]))


def _draw(name: str, life: Life, rng: random.Random) -> Step:
    """A step of that name, from the present state."""
    clusters = -(-len(life.content) // life.image.cluster_size)
    draws: dict[str, Callable[[], Step]] = {
        "write": lambda: ("write", *_range(life, rng, rng.choice((1, 512, 4096, 65536))), rng.randrange(1 << 20)),
        "zero": lambda: ("zero", *_range(life, rng, rng.choice((1, 512, 4096))), rng.random() < 0.5),
        "discard": lambda: ("discard", *_range(life, rng, rng.choice((1, 512, 65536)))),
        "compress": lambda: ("compress", rng.randrange(clusters), rng.randrange(1 << 20)),
        "snapshot_create": lambda: ("snapshot_create", rng.randrange(3)),
        "snapshot_apply": lambda: ("snapshot_apply", rng.randrange(len(life.snapshots))),
        "snapshot_delete": lambda: ("snapshot_delete", rng.randrange(len(life.snapshots))),
        "resize": lambda: _draw_resize(life, rng),
        "rebase": lambda: ("rebase", rng.randrange(3)),
        "amend": lambda: _draw_amend(life, rng),
        "bitmap_add": lambda: ("bitmap_add", rng.randrange(3), rng.choice((9, 12, 16))),
        "bitmap_remove": lambda: ("bitmap_remove", rng.choice(sorted(life.bitmaps))),
        "bitmap_enable": lambda: ("bitmap_enable", rng.choice(sorted(life.bitmaps)), rng.random() < 0.5),
    }
    return draws[name]() if name in draws else (name,)


def _weights(life: Life) -> dict[str, int]:
    """How likely each step is now; what the driver or the image cannot do is left out."""
    has = {name for name in dir(life) if life.formats.has(name, FORMAT)}
    compressing = not life.configuration.data_file
    weights = {"write": 30, "zero": 10, "discard": 10, "flush": 4, "reopen": 4, "compress": 10 * compressing}
    room = len(life.snapshots) < 4
    weights |= {"snapshot_create": 6 * room, "snapshot_apply": 4 * bool(life.snapshots)}
    weights |= {"snapshot_delete": 4 * bool(life.snapshots), "resize": 8, "amend": 4}
    few = len(life.bitmaps) < 2
    weights |= {"bitmap_add": few, "bitmap_remove": 4 * bool(life.bitmaps), "bitmap_enable": 3 * bool(life.bitmaps)}
    hooked = {name for name in weights if name.startswith(("snapshot", "resize", "amend", "bitmap"))}
    weights = {name: weight for name, weight in weights.items() if name in has or name not in hooked}
    if life.base and life.formats.has("make_empty", FORMAT) and life.formats.has("resize", FORMAT):
        weights["commit"] = 4
    if life.bases and life.formats.has("set_backing", FORMAT):
        weights["rebase"] = 4
    return weights


def random_steps(life: Life, rng: random.Random, count: int) -> Iterator[Step]:
    """Steps, each drawn when the ones before have been taken."""
    for _ in range(count):
        weights = _weights(life)
        name = rng.choices(list(weights), list(weights.values()))[0]
        yield _draw(name, life, rng)


def live(
    folder: Path,
    configuration: Configuration,
    steps: Callable[[Life], Iterator[Step]],
    verify_with: Callable[[Life], None] = lambda _: None,
) -> Life:
    """Live a life, looking at the image again and again; a failure tells all steps."""
    life = Life(folder, configuration, 2 * MIB + 1536)
    taken: list[Step] = []
    try:
        for number, step in enumerate(steps(life), 1):
            taken.append(step)
            getattr(life, step[0])(*step[1:])
            if number % 4 == 0:
                life.verify()
            if number % 20 == 0:
                verify_with(life)
        life.verify()
        verify_with(life)
    except Exception as error:
        life._image = None
        pytest.fail(f"{type(error).__name__}: {error}\n{configuration}\nafter the steps {taken}")
    return life


@pytest.fixture
def oracle(qemu_img: Callable[..., Any]) -> Callable[[Life], None]:
    """The real qemu-img agrees: the image is clean and has that content."""

    def agree(life: Life) -> None:
        life.close()
        result = qemu_img("check", "-f", FORMAT, life.path, code=None)
        assert result.code == 0, result
        raw = life.folder / "oracle.raw"
        qemu_img("convert", "-f", FORMAT, "-O", "raw", life.path, raw)
        assert raw.read_bytes() == life.content, "the real qemu-img reads something else"
        raw.unlink()

    return agree


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_random_life(name: str, seed: int, tmp_path: Path, oracle: Callable[[Life], None]) -> None:
    """Whatever is done to an image, it is what it should be."""
    rng = random.Random(f"{name} {seed}")
    live(tmp_path, CONFIGURATIONS[name], lambda life: random_steps(life, rng, 100), oracle)


FORMER_FAILURES = {
    "rebase-of-what-had-no-backing-file": ("4k-2bit", [("write", 1179648, 131072, 456166), ("rebase", 1)]),
    "rebase-of-v2": ("4k-v2-backing", [("rebase", 2), ("zero", 263279, 99758, True), ("rebase", 1)]),
    "commit-into-larger-clusters": (
        "512",
        [("compress", 2302, 71381), ("rebase", 1), ("write", 1169920, 4608, 535956), ("commit",)],
    ),
    "bitmap-across-amend": (
        "512",
        [("bitmap_add", 1, 16), ("write", 1769472, 65536, 199909), ("amend", "refcount_bits", 1)],
    ),
    "bitmap-across-resize": (
        "1k-lazy",
        [("bitmap_add", 2, 9), ("write", 1088512, 3072, 207582), ("resize", 2370048, "falloc")],
    ),
    "bitmap-across-rebase": ("4k-2bit", [("bitmap_add", 1, 9), ("rebase", 0)]),
}
"""Short lives that once went wrong: configuration and steps."""


@pytest.mark.parametrize("name", FORMER_FAILURES)
def test_former_failure(name: str, tmp_path: Path, oracle: Callable[[Life], None]) -> None:
    """What went wrong once goes right."""
    configuration, steps = FORMER_FAILURES[name]
    live(tmp_path, CONFIGURATIONS[configuration], lambda _: iter(steps), oracle)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_random_long_life(name: str, seed: int, tmp_path: Path, oracle: Callable[[Life], None]) -> None:
    """The same, for long."""
    rng = random.Random(f"{name} {seed}")
    live(tmp_path, CONFIGURATIONS[name], lambda life: random_steps(life, rng, 400), oracle)
