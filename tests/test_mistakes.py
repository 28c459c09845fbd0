"""Faulty command lines: the real qemu-img and ours fail alike, in exit code and message, unless ours is better."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diskwright.testing.sidebyside import Ended, Pair, sampled

LINES = [line for line in Path(__file__).with_name("mistakes.txt").read_text().splitlines() if line[:1] != "#"]

BETTER = {
    "the signature is looked at before the sizes": ["info -f vdi a.raw"],
    "the option list is what is wrong": ["info --image-opts ,"],
    "the parameter is named": [
        "info --image-opts driver=qcow2,file.filename=a.qcow2,file.locking=perhaps",
        "info --image-opts driver=qcow2,file.filename=a.qcow2,file.aio=perhaps",
        "measure -O qcow2 -o preallocation=some --size 1M",
    ],
    "the image is named": [
        "info -U --image-opts driver=qcow2,file.filename=a.qcow2,force-share=off",
        "check -U --image-opts driver=qcow2,file.filename=a.qcow2,force-share=off",
        "compare -U --image-opts driver=raw,file.filename=a.raw,force-share=off driver=raw,file.filename=a.raw",
        "convert -U --image-opts driver=raw,file.filename=a.raw,force-share=off x",
        "map -U --image-opts driver=raw,file.filename=a.raw,force-share=off",
        "dd -O nofmt if=a.raw of=x",
    ],
    "info opens no backing file": ["info --image-opts driver=qcow2,file.filename=a.qcow2,backing=foo"],
    "only what drivers declare is an option": ["info --image-opts id=3,driver=raw,file.filename=a.raw"],
    "the real one is aborted": ["info --image-opts driver=null-co,size=-1"],
    "children come before votes": ["info --image-opts driver=quorum,vote-threshold=1"],
    "the place of the mistake is told": [
        "info json:",
        "info json:{",
        """info 'json:{"driver":"raw","file.filename":"a.raw"'""",
        """info 'json:{driver:"raw"}'""",
        """info 'json:{"driver":"raw",}'""",
    ],
    "what JSON calls a number may be a name": [
        """info 'json:{"driver":"qcow2","file":{"driver":"file","filename":5}}'""",
        """info 'json:{"driver":5}'""",
        """info 'json:{"driver":"qcow2","file":null}'""",
    ],
    "nothing of a password is shown": ["info --object secret,id=s0,data=a,foo=b a.raw", "info --object '{' a.raw"],
    "the system's words are enough": ["info --object secret,id=s0,file=nosuch a.raw"],
    "the options are called what they are": [
        "convert --target-image-opts -O raw -n a.raw driver=raw,file.filename=x",
    ],
    "a failure is a failure": ["convert -n --target-is-zero -B a.qcow2 a.raw c.qcow2"],
    "the version is what forbids it": ["convert --bitmaps -O qcow2 -o compat=0.10 bm.qcow2 x"],
    "the file is not overwritten while it is read": ["dd if=a.raw of=a.raw"],
    "what cannot be created is not measured": ["measure -O qcow2 -o extended_l2=on,compat=0.10 --size 1M"],
    "nothing has been written before it is told": ["rebase -b nosuch o.qcow2"],
    "sizes are told apart from signs": ["resize a.qcow2 8E", "resize a.qcow2 +8E"],
    "one warning is enough": ["snapshot -a x a.raw"],
    "the first of two mistakes": ["snapshot -a x bm.qcow2"],
    "no backing file is needed": ["snapshot -c x m.qcow2"],
    "bitmaps would be left in a version that has none": ["amend -o compat=0.10 bm.qcow2"],
}
"""Where ours differs, and why. Each of these lines must differ: what no longer does is to be taken out."""

REASONS = {line: reason for reason, lines in BETTER.items() for line in lines}


def told(ended: Ended) -> tuple[int, str]:
    """Exit code and messages; the nodes of QEMU have numbers where ours have names."""
    return ended.code, re.sub(r"#block\d+|(?<=persistent bitmaps to )[\w.]+|(?<=persistent in ')[\w.]+", "N", ended.err)


@pytest.mark.parametrize("line", sampled(LINES))
def test_as_the_real_one_says(line: str, pair: Pair) -> None:
    """Exit code and everything on stderr; and on stdout, if there was no success that depends on the machine."""
    theirs, mine = pair.run(line)
    assert "Traceback" not in mine.err
    if line in REASONS:
        assert told(mine) != told(theirs), f"no longer differs ({REASONS[line]})"
        assert mine.code in {0, theirs.code} or theirs.code <= 0, (mine, theirs)
        return
    assert told(mine) == told(theirs)
    if theirs.code:
        assert mine.out in {theirs.out, ""}  # the real create tells of what it then cannot do


def test_all_lines_are_there() -> None:
    assert set(REASONS) <= set(LINES)
    assert len(LINES) == len(set(LINES)) > 600
