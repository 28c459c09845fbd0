"""Finding, loading and calling drivers, with distributions that exist on the import path only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from diskwright import discovery
from diskwright.errors import ImageError, UnknownFormat, UnsupportedOperation
from diskwright.hookspecs import ProbeHit, hookimpl
from diskwright.registry import Registry


class Probing:
    """A driver that knows one word."""

    def __init__(self, name: str, word: bytes, score: int = 100) -> None:
        self.name, self.word, self.score = name, word, score

    @hookimpl
    def probe(self, head: bytes, filename: str) -> ProbeHit | None:
        return ProbeHit(self.name, self.score) if head.startswith(self.word) else None


@pytest.fixture
def registry() -> Registry:
    """A registry that finds nothing installed."""
    return Registry("diskwright.formats.of.this.test")


@pytest.fixture
def formats(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The same, with the hooks of formats."""
    monkeypatch.setattr("diskwright.hookspecs.FORMAT_GROUP", registry.group)
    return registry


def install(directory: Path, name: str, entry_point: str, code: str) -> None:
    """Make a distribution with one entry point."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[diskwright.formats]\n{entry_point}\n")
    (directory / f"{name}_plugin.py").write_text(code)


def test_the_surest_driver_wins(formats: Registry) -> None:
    formats.register("any", Probing("any", b"", 1))
    formats.register("one", Probing("one", b"AB"))
    formats.register("two", Probing("two", b"XY"))
    assert formats.probe(b"ABCD", "x") == "one"
    assert formats.probe(b"????", "x") == "any"


def test_two_equally_sure_drivers_are_an_error(formats: Registry) -> None:
    formats.register("one", Probing("one", b"AB"))
    formats.register("two", Probing("two", b"A"))
    with pytest.raises(ImageError, match="'x' could be one or two: name its format"):
        formats.probe(b"ABCD", "x")


def test_a_format_without_driver_does_not_pass_as_raw(formats: Registry) -> None:
    formats.register("raw", Probing("raw", b"", 1))
    head = bytes(0x40) + b"\x7f\x10\xda\xbe" + bytes(100)
    with pytest.raises(UnknownFormat, match="^'x' is in vdi format$") as caught:
        formats.probe(head, "x")
    assert caught.value.hint == "The package diskwright-vdi provides it: pip install diskwright-vdi"
    formats.register("vdi", Probing("vdi", bytes(0x40) + b"\x7f\x10\xda\xbe"))
    assert formats.probe(head, "x") == "vdi"


def test_nobody_knows_it(formats: Registry) -> None:
    with pytest.raises(UnknownFormat):
        formats.probe(b"ABCD", "x")


def test_a_missing_hook_is_an_unsupported_operation(formats: Registry) -> None:
    formats.register("one", Probing("one", b"AB"))
    assert formats.has("probe", "one")
    assert not formats.has("check", "one")
    with pytest.raises(UnsupportedOperation):
        formats.call("check", "one", image=None)


def test_only_the_named_driver_is_called(formats: Registry) -> None:
    formats.register("one", Probing("one", b"A"))
    formats.register("two", Probing("two", b"A"))
    assert formats.call("probe", "two", head=b"A", filename="x") == [ProbeHit("two", 100)]


def test_a_misspelt_hook_is_noticed(formats: Registry) -> None:
    class Wrong:
        @hookimpl
        def prob(self, head: bytes) -> None: ...

    with pytest.raises(ImageError, match="Driver 'wrong' does not fit"):
        formats.register("wrong", Wrong())


def test_an_unknown_name_says_what_to_install() -> None:
    with pytest.raises(UnknownFormat, match="^Unknown driver 'vmdk'$") as caught:
        Registry("diskwright.nothing").load("vmdk")
    assert caught.value.hint == "The package diskwright-vmdk provides it: pip install diskwright-vmdk"


def test_broken_and_doubled_plugins_leave_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "class Driver:\n    pass\n"
    install(tmp_path / "a", "good", "good = good_plugin:Driver", good)
    install(tmp_path / "a", "broken", "broken = broken_plugin:Driver", "raise RuntimeError('no luck')\n")
    install(tmp_path / "a", "twin_a", "twin = twin_a_plugin:Driver", good)
    install(tmp_path / "b", "twin_b", "twin = twin_b_plugin:Driver", good)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b"), *sys.path])
    monkeypatch.setattr("stevedore.ExtensionManager.ENTRY_POINT_CACHE", {})
    monkeypatch.setattr("stevedore._cache._c._internal", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = Registry("diskwright.formats")
    assert "good" in registry.names()
    assert "broken" not in registry.names()
    with pytest.raises(ImageError, match="Driver 'broken' cannot be loaded: no luck"):
        registry.load("broken")
    with pytest.raises(ImageError, match="Several installed packages provide the driver 'twin'"):
        registry.load("twin")


def test_what_was_found_is_remembered_until_something_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[str] = []

    def scan(group: str) -> list[discovery.EntryPoint]:
        scans.append(group)
        return [discovery.EntryPoint("one", "a.b:C"), discovery.EntryPoint("two", "d:E")]

    monkeypatch.setattr(discovery, "_scan", scan)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])
    every = len(discovery.GROUPS)
    first = discovery.entry_points("diskwright.formats")
    assert len(scans) == every
    assert discovery.entry_points("diskwright.formats") == first == scan("")
    assert len(scans) == every + 1
    (site / "new-1.0.dist-info").mkdir()
    discovery.entry_points("diskwright.formats")
    assert len(scans) == 2 * every + 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert discovery.entry_points("diskwright.protocols") == first


def test_what_is_remembered_of_former_states_does_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_scan", lambda group: [discovery.EntryPoint("one", "a.b:C")])
    monkeypatch.setattr(discovery, "CACHED_STATES", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "diskwright"
    folder.mkdir()
    (folder / "other").touch()
    for number in range(6):
        monkeypatch.setattr(sys, "path", [f"/site{number}"])
        discovery.entry_points("diskwright.formats")
        for kept in folder.iterdir():  # as if a while had passed
            status = kept.stat()
            os.utime(kept, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
    assert len(list(folder.iterdir())) == 4
    monkeypatch.setattr(discovery, "_scan", None)
    discovery.entry_points("diskwright.formats")


def test_further_names_of_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that packages declare, and some that are known without them; messages keep the name that was given."""
    found = {
        "diskwright.formats": [discovery.EntryPoint("toy", "diskwright.errors:ImageError")],
        "diskwright.formats.aliases": [discovery.EntryPoint("plaything", "toy"), discovery.EntryPoint("toy", "other")],
    }
    monkeypatch.setattr("diskwright.registry.entry_points", lambda group: found.get(group, []))
    registry = Registry("diskwright.formats")
    assert registry.proper_name("plaything") == registry.proper_name("toy") == "toy"
    assert registry.knows("plaything")
    assert registry.proper_name("vhd") == "vpc"
    assert registry.proper_name("ploop") == "parallels"
    with pytest.raises(UnknownFormat, match="Unknown driver 'vhd'") as caught:
        registry.load("vhd")
    assert "pip install diskwright-vpc" in caught.value.hint
    driver = Probing("toy", b"toy")
    registry.register("toy", driver)
    assert registry.load("plaything") is driver
    assert registry.has("probe", "plaything")
    assert registry.call("probe", "plaything", head=b"toy", filename="") == [ProbeHit("toy", 100)]
