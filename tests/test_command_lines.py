"""Random command lines that make sense: both programs print the same and leave images with the same content."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from diskwright.testing.sidebyside import Pair, real

QCOW2 = ("a.qcow2", "b.qcow2", "o.qcow2", "c.qcow2", "s.qcow2", "bm.qcow2", "v2.qcow2")
RAW = ("a.raw", "short.raw")
OTHERS = ("d.vdi", "empty", "leak.qcow2")
SIZES = ("512k", "1M", "1536k", "3M", "1000", "1049088", "64k")
LINES_PER_SEED = 25
NOTHING_THERE = "cannot skip to specified offset"

Chooser = random.Random


def maybe(rng: Chooser, *words: str) -> list[str]:
    """Some of these option strings, each of which may have blanks in it."""
    chosen = [word for word in words if rng.random() < 0.3]
    rng.shuffle(chosen)
    return [part for word in chosen for part in word.split()]


def creation_options(rng: Chooser, compat: tuple[str, ...] = ("0.10", "1.1", "v3")) -> list[str]:
    """Of a qcow2 image.

    :param compat: versions as the command may name them.
    """
    options = {
        "cluster_size": rng.choice(("512", "4k", "64k", "2M")),
        "compat": rng.choice(compat),
        "lazy_refcounts": rng.choice(("on", "off")),
        "refcount_bits": rng.choice(("1", "8", "16", "64")),
        "extended_l2": rng.choice(("on", "off")),
        "compression_type": rng.choice(("zlib", "zstd")),
        "preallocation": rng.choice(("off", "metadata", "falloc", "full")),
    }
    chosen = [f"{name}={value}" for name, value in options.items() if rng.random() < 0.25]
    return ["-o", ",".join(chosen)] if chosen else []


def any_image(rng: Chooser) -> str:
    return rng.choice(QCOW2 + RAW + OTHERS)


def create(rng: Chooser) -> list[str]:
    backing = maybe(rng, "-b a.qcow2 -F qcow2", "-u")
    return ["create", "-f", "qcow2", *creation_options(rng), *backing, "x", rng.choice(SIZES)]


def convert(rng: Chooser) -> list[str]:
    format = rng.choice(("raw", "qcow2", "vdi", "qcow2"))
    options = creation_options(rng) if format == "qcow2" else []
    more = maybe(rng, "-c", f"-S {rng.choice(('0', '4k', '64k', '512'))}", f"-m {rng.randint(1, 16)}", "-W", "-p", "-U")
    more += maybe(rng, "-t none", "-T writethrough", "-B a.qcow2 -F qcow2", "-C", "--salvage", "-r 1G", "-q")
    return ["convert", *more, "-O", format, *options, *(any_image(rng) for _ in range(rng.choice((1, 1, 2)))), "x"]


def convert_part(rng: Chooser) -> list[str]:
    return rng.choice(
        (
            ["convert", "-l", rng.choice(("s1", "snapshot.id=2", "2")), "-O", "qcow2", "s.qcow2", "x"],
            ["convert", "--bitmaps", *maybe(rng, "--skip-broken-bitmaps"), "-O", "qcow2", "bm.qcow2", "x"],
            ["convert", "-n", *maybe(rng, "--target-is-zero", "-S 0"), "-O", "qcow2", rng.choice(RAW), "v2.qcow2"],
        )
    )


def describe(rng: Chooser) -> list[str]:
    command = rng.choice(("info", "map", "check", "info"))
    options = maybe(rng, "--output=json", "-U")
    if command == "map":
        options += maybe(rng, f"-s {rng.choice(SIZES)}", f"-l {rng.choice(SIZES)}")
    elif command == "info":
        options += maybe(rng, "--backing-chain")
    else:
        options += maybe(rng, "-q", "-T none")
    return [command, *options, any_image(rng)]


def compare(rng: Chooser) -> list[str]:
    return ["compare", *maybe(rng, "-s", "-p", "-q", "-U", "-T none"), any_image(rng), any_image(rng)]


def measure(rng: Chooser) -> list[str]:
    format = rng.choice(("raw", "qcow2"))
    options = creation_options(rng, ("1.1",)) if format == "qcow2" else []
    what = ["--size", rng.choice(SIZES)] if rng.random() < 0.4 else [any_image(rng)]
    return ["measure", *maybe(rng, "--output=json"), "-O", format, *options, *what]


def resize(rng: Chooser) -> list[str]:
    sign = rng.choice(("", "+", ""))
    mode = f"--preallocation={rng.choice(('off', 'metadata', 'falloc', 'full'))}"
    return ["resize", *maybe(rng, "--shrink", mode, "-q"), rng.choice(QCOW2), sign + rng.choice(SIZES)]


def snapshot(rng: Chooser) -> list[str]:
    action = rng.choice((["-l"], ["-a", "s1"], ["-a", "2"], ["-d", "s1"], ["-d", "2"], []))
    return ["snapshot", *([] if action else maybe(rng, "-q", "-U")), *action, "s.qcow2"]


def bitmap(rng: Chooser) -> list[str]:
    actions = maybe(rng, "--add", "--clear", "--enable", "--disable", "--merge b1", "--remove", "--merge b0")
    return ["bitmap", *(actions or ["--clear"]), *maybe(rng, "-g 4k"), "bm.qcow2", rng.choice(("b0", "b1", "b2"))]


def rebase(rng: Chooser) -> list[str]:
    onto = rng.choice(("a.qcow2", "c.qcow2", ""))
    format = ["-F", "qcow2"] if onto else []
    options = maybe(rng, "-u", "-c", "-p", "-q", "-t none")
    return ["rebase", *options, "-b", onto, *format, rng.choice(("b.qcow2", "o.qcow2"))]


def commit(rng: Chooser) -> list[str]:
    options = maybe(rng, "-d", "-p", "-q", "-t none", "-r 1G", "-b a.qcow2")
    return ["commit", *options, rng.choice(("b.qcow2", "o.qcow2"))]


def amend(rng: Chooser) -> list[str]:
    changes = ("compat=0.10", "compat=1.1", "lazy_refcounts=on", "refcount_bits=8", "size=2M", "size=512k")
    return ["amend", *maybe(rng, "-q", "-p"), "-o", rng.choice(changes), rng.choice(("a.qcow2", "c.qcow2", "v2.qcow2"))]


def dd(rng: Chooser) -> list[str]:
    operands = maybe(rng, f"bs={rng.choice(('512', '64k', '1000', '1M'))}", f"count={rng.randint(0, 9)}")
    operands += maybe(rng, f"skip={rng.randint(0, 5)}")
    return ["dd", "-O", rng.choice(("raw", "qcow2", "vdi")), f"if={any_image(rng)}", "of=x", *operands]


COMMANDS: tuple[Callable[[Chooser], list[str]], ...] = (
    create, convert, convert, convert_part, describe, describe, compare, measure,
    resize, snapshot, bitmap, rebase, commit, amend, dd,
)  # fmt: skip


def told(text: str) -> str:
    """What is printed, without what depends on the file system and on progress steps."""
    text = re.sub(r'(disk size: .*|"actual-size": \d+)', "S", text)
    text = re.sub(r"\s*\(\d+\.\d\d/100%\)\r?", "", text)
    return re.sub(r"#block\d+", "N", text).strip()


def left_alike(pair: Pair) -> str:
    """What is different in the images that both have left; nothing if all is well."""
    theirs, mine = pair.folders
    names = [{path.name for path in folder.iterdir()} for folder in pair.folders]
    if names[1] - names[0]:
        return f"only ours has {names[1] - names[0]}"
    for name in sorted(names[0] & names[1]):
        if pair.changed(name):
            seen = real(["compare", str(theirs / name), str(mine / name)], theirs)
            if seen.code:
                return f"{name}: {seen}"
            checks = [real(["check", str(folder / name)], theirs).code for folder in pair.folders]
            if checks[1] not in {0, 63, checks[0]}:
                return f"{name}: check ends with {checks}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_lines(seed: int, pair: Pair) -> None:
    """Exit code, both outputs and content."""
    rng = random.Random(seed)
    found = []
    for _ in range(LINES_PER_SEED):
        line = rng.choice(COMMANDS)(rng)
        theirs, mine = pair.run(line)
        alike = (theirs.code, told(theirs.err)) == (mine.code, told(mine.err))
        if NOTHING_THERE in theirs.err:  # which the real one does not count as a failure
            alike = mine.code == 1 and told(theirs.err) == told(mine.err)
        if theirs.code == 0:
            alike = alike and told(theirs.out) == told(mine.out)
        difference = "" if theirs.code else left_alike(pair)
        if not alike or difference:
            found.append(f"{' '.join(line)}\n  {theirs}\n  {mine}\n  {difference}")
    assert not found, "\n".join(found)


def test_content_is_told_apart(pair: Pair, tmp_path: Path) -> None:
    """What the other test stands on: a difference in the content is seen."""
    pair.run("resize -q a.qcow2 2M")
    assert left_alike(pair) == ""
    real("bench -q -w -c 1 --pattern 3 a.qcow2", pair.folders[1])
    assert "a.qcow2" in left_alike(pair)
