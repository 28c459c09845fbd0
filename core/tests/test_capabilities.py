"""``capabilities``: what is installed, for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diskwright import COMPATIBLE_VERSION, __version__
from diskwright import registry as registry_module
from diskwright.discovery import EntryPoint
from diskwright.parsers import COMMANDS, command_parser


def told(world: Any, *arguments: str) -> dict[str, Any]:
    code, out, err = world.run("capabilities", "--output", "json", *arguments)
    assert (code, err) == (0, "")
    facts: dict[str, Any] = json.loads(out)
    return facts


def named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    [item] = [item for item in items if item["name"] == name]
    return item


def test_keys(layer_world: Any) -> None:
    facts = told(layer_world)
    assert list(facts) == [
        *("version", "qemu-version", "formats", "protocols", "filters", "objects", "checksums", "commands")
    ]
    assert (facts["version"], facts["qemu-version"]) == (__version__, COMPATIBLE_VERSION)
    assert [command["name"] for command in facts["commands"]] == list(COMMANDS)
    assert "sha256" in facts["checksums"]
    assert "file" in named(facts["objects"], "secret")["options"]


def test_formats(layer_world: Any) -> None:
    formats = told(layer_world)["formats"]
    everything = {
        **dict.fromkeys(("read", "write", "create", "amend", "check", "resize", "measure", "rebase"), True),
        **dict.fromkeys(("snapshots", "bitmaps", "repair"), True),
    }
    layer = named(formats, "layer")
    assert layer == {
        "name": "layer",
        "aliases": [],
        **everything,
        "create-options": [
            {"name": "size", "type": "size", "help": "Size"},
            {"name": "grain", "type": "size", "help": "Grain"},
        ],
        "amend-options": [
            {"name": "label", "type": "string", "help": "Label"},
            {"name": "size", "type": "size", "help": "Size"},
        ],
        "runtime-options": [],
    }
    toy, checked = named(formats, "toy"), named(formats, "checked")
    assert [name for name, value in toy.items() if value is True] == ["read"]
    assert [name for name, value in checked.items() if value is True] == ["read", "check"]


def test_what_the_policy_forbids(layer_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diskwright.policy import Policy

    policy = Policy(formats=frozenset({"layer"}), writable_formats=frozenset())
    monkeypatch.setattr(layer_world.context.gate, "policy", policy)
    [layer] = told(layer_world)["formats"]
    assert [name for name, value in layer.items() if value is True] == ["read", "check", "measure"]


def test_aliases(layer_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that is registered under several names is one driver."""
    from diskwright.engine import capabilities

    points = [EntryPoint(name, "json:JSONDecoder") for name in ("bricks", "bricks2")]
    for module in (registry_module, capabilities):
        monkeypatch.setattr(module, "entry_points", lambda group: points)
    formats = told(layer_world)["formats"]
    assert named(formats, "bricks")["aliases"] == ["bricks2"]
    assert "bricks2" not in {format["name"] for format in formats}


def test_commands(layer_world: Any) -> None:
    check = named(told(layer_world)["commands"], "check")
    parser = command_parser("check", "qemu-img")
    assert [option["names"] for option in check["options"]] == [
        action.option_strings for action in parser.declared() if action.option_strings
    ]
    repair, output, quiet = (
        next(option for option in check["options"] if name in option["names"])
        for name in ("--repair", "--output", "--quiet")
    )
    assert repair["values"] == ["leaks", "all"]
    assert (output["value"], output["default"]) == ("FORMAT", "human")
    assert set(quiet) == {"names", "help"}
    assert check["exit-codes"]["63"] == "the format has no check, or no repair"
    assert check["operands"] == [{"help": "the image", "value": "FILENAME"}]
    assert check["examples"][0] == "qemu-img check disk.qcow2"


def test_for_people(layer_world: Any) -> None:
    code, out, err = layer_world.run("capabilities")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"diskwright {__version__}, with the options and messages of QEMU {COMPATIBLE_VERSION}"
    assert any(line.split() == ["checked", "read", "check"] for line in lines)
    assert any(line.split()[:1] == ["throttle-group"] for line in lines)


def test_no_operands(layer_world: Any) -> None:
    code, out, err = layer_world.run("capabilities", "disk")
    assert (code, out) == (1, "")
    assert err.startswith("qemu-img: Unexpected argument: disk\n")
