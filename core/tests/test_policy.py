"""Policies: how they are written, how they narrow each other, and what they keep from being opened."""

import sys
from pathlib import Path
from typing import Any

import pytest

from diskwright.context import Context
from diskwright.errors import InvalidOption, RefusedByPolicy
from diskwright.policy import UNTRUSTED, Policy, ambient_policy, parse_policy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Policy()),
        ("implicit=off", Policy(implicit=False)),
        ("backing=off", Policy(roles=frozenset({"data-file", "extent"}))),
        ("backing=off,data-file=on,extent=no", Policy(roles=frozenset({"data-file"}))),
        ("protocols=file:nbd", Policy(protocols=frozenset({"file", "nbd"}))),
        ("protocols=", Policy(protocols=frozenset())),
        ("formats=raw", Policy(formats=frozenset({"raw"}))),
        ("writable-formats=raw:qcow2", Policy(writable_formats=frozenset({"raw", "qcow2"}))),
        ("memory=512M,metadata=1k,time=0.5", Policy(memory=512 << 20, metadata=1024, time=0.5)),
        ("directories=/usr/../etc", Policy(directories=frozenset({"/etc"}))),
        ("untrusted", UNTRUSTED),
        ("untrusted,time=3", UNTRUSTED.narrowed(Policy(time=3.0))),
        ("untrusted=off", Policy()),
    ],
)
def test_syntax(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text", ["foo=1", "implicit=maybe", "memory=much", "time=0", "time=inf", "time=x", "roles=backing"]
)
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidOption):
        parse_policy(text)


def test_each_can_only_narrow() -> None:
    one = parse_policy("protocols=file:nbd,memory=1M,directories=/srv:/tmp/a,backing=off")
    other = parse_policy("protocols=nbd:http,memory=2M,time=5,directories=/srv/images:/tmp,data-file=off")
    both = parse_policy("protocols=nbd,memory=1M,time=5,directories=/srv/images:/tmp/a,backing=off,data-file=off")
    assert one.narrowed(other) == other.narrowed(one) == both
    assert one.narrowed(Policy()) == Policy().narrowed(one) == one


def test_configuration_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[policy]\nformats = ["raw", "qcow2"]\nbacking = false\nmemory = "1G"\ntime = 5\n[other]\nx = 1\n')
    monkeypatch.setenv("DISKWRIGHT_CONFIG", str(path))
    monkeypatch.setenv("DISKWRIGHT_POLICY", "formats=qcow2:vdi,memory=2G")
    expected = parse_policy("formats=qcow2,backing=off,memory=1G,time=5")
    assert ambient_policy() == expected
    assert Context(Policy(time=1.0)).gate.policy == expected.narrowed(Policy(time=1.0))


@pytest.mark.parametrize("content", ["[policy", "policy = 3", "[policy]\nfoo = 1", "[policy]\nformats = [1]", None])
def test_a_configuration_that_cannot_be_read_stops_everything(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("DISKWRIGHT_CONFIG", str(path))
    with pytest.raises(InvalidOption, match="^Could not read the configuration"):
        Context()


class TestOnTheCommandLine:
    """What is forbidden is one line on stderr."""

    @pytest.fixture
    def chain(self, layer_world: Any) -> Any:
        layer_world.layer("base", "12")
        layer_world.layer("top", "-3", "base")
        return layer_world

    @pytest.mark.parametrize(
        ("policy", "message"),
        [
            ("backing=off", "The policy forbids to open the backing file 'base' that the image names"),
            ("implicit=off", "The policy forbids to open the backing file 'base' that the image names"),
            ("protocols=nbd", "The policy forbids the protocol 'file'"),
            ("formats=raw", "The policy forbids the format 'layer'"),
            ("directories=/nowhere", "The policy forbids to open 'top': it is in none of the allowed directories"),
        ],
    )
    def test_refused(self, chain: Any, policy: str, message: str) -> None:
        chain.context.gate.policy = parse_policy(policy)
        code, out, err = chain.run("map", "-f", "layer", "top")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.endswith(f"{message}\n")

    def test_writing(self, chain: Any) -> None:
        chain.context.gate.policy = parse_policy("writable-formats=raw")
        code, _, err = chain.run("resize", "-f", "layer", "base", "1M")
        assert (code, "forbids to write to images of the format 'layer'" in err) == (1, True)
        assert chain.run("map", "-f", "layer", "base")[0] == 0

    def test_links_do_not_lead_out(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "out.img").touch()
        (tmp_path / "in" / "link.img").symlink_to("../out.img")
        policy = parse_policy(f"directories={tmp_path / 'in'}")
        policy.require_name("file", str(tmp_path / "in" / "x.img"))
        for name in ("link.img", "../out.img"):
            with pytest.raises(RefusedByPolicy):
                policy.require_name("file", str(tmp_path / "in" / name))


class TestLimits:
    """Of the machine; each in a process of its own, as limits cannot be taken back."""

    def run(self, code: str) -> str:
        import subprocess

        program = f"import diskwright.limits as l\nfrom diskwright.policy import Policy\n{code}"
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout

    def test_time(self) -> None:
        code = (
            "import time\nl.apply(Policy(time=0.1))\ntry:\n    time.sleep(20)\nexcept l.TimeIsOver as e:\n    print(e)"
        )
        assert self.run(code) == "The time limit of 0.1 s is over\n"

    def test_memory(self) -> None:
        code = "l.apply(Policy(memory=1 << 30))\ntry:\n    bytearray(1 << 31)\nexcept MemoryError:\n    print('no')"
        assert self.run(code) == "no\n"
