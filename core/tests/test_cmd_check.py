"""``check``: what it prints and its exit codes; the checks themselves are the formats'."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diskwright.errors import InvalidImage, NodeIOError
from diskwright.extent import Kind
from diskwright.facts import CheckResult

CORRUPT = "Data may be corrupted, or further writes to the image may corrupt it.\n"
LEAKED = "This means waste of disk space, but no harm to data.\n"


def check(world: Any, result: CheckResult | Exception, *arguments: str) -> tuple[int, str, str]:
    world.add("x", (Kind.ABSENT, 512), check=result)
    found: tuple[int, str, str] = world.run("check", "-f", "checked", *arguments, "x")
    return found


@pytest.mark.parametrize(
    ("result", "code", "text"),
    [
        (CheckResult(), 0, "No errors were found on the image.\n"),
        (
            CheckResult(image_end=1900544, total_clusters=1024, allocated_clusters=16, fragmented_clusters=1),
            0,
            "No errors were found on the image.\n"
            "16/1024 = 1.56% allocated, 6.25% fragmented, 0.00% compressed clusters\nImage end offset: 1900544\n",
        ),
        (CheckResult(total_clusters=9), 0, "No errors were found on the image.\n"),
        (CheckResult(leaks=2), 3, "\n2 leaked clusters were found on the image.\n" + LEAKED),
        (CheckResult(corruptions=3), 2, "\n3 errors were found on the image.\n" + CORRUPT),
        (
            CheckResult(corruptions=3, leaks=1, total_clusters=32, allocated_clusters=2, image_end=458752),
            2,
            f"\n3 errors were found on the image.\n{CORRUPT}\n1 leaked clusters were found on the image.\n{LEAKED}"
            "2/32 = 6.25% allocated, 0.00% fragmented, 0.00% compressed clusters\nImage end offset: 458752\n",
        ),
    ],
)
def test_summary(world: Any, result: CheckResult, code: int, text: str) -> None:
    assert check(world, result) == (code, text, "")
    assert check(world, result, "-q") == (code, "", "")
    assert check(world, result, "-q", "--output=json") == (code, "", "")


def test_findings_go_to_stderr_as_they_are(world: Any) -> None:
    result = CheckResult()
    result.error("ERROR cluster 3 refcount=0 reference=1")
    result.leak("Leaked cluster 5 refcount=2 reference=1")
    code, out, err = check(world, result)
    assert code == 2
    assert err == "ERROR cluster 3 refcount=0 reference=1\nLeaked cluster 5 refcount=2 reference=1\n"
    assert out.startswith("\n1 errors were found on the image.\n")


def test_internal_errors_make_it_fail(world: Any) -> None:
    code, out, err = check(world, CheckResult(check_errors=2, corruptions=1))
    assert (code, err) == (1, "qemu-img: Check failed\n")
    assert out.endswith("\n2 internal errors have occurred during the check.\n")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NodeIOError("Could not read", OSError(5, "")), "Input/output error"),
        (OSError(28, ""), "No space left on device"),
        (InvalidImage("table is gone"), "table is gone"),
    ],
)
def test_a_check_that_cannot_be_done(world: Any, failure: Exception, reason: str) -> None:
    assert check(world, failure) == (1, "", f"qemu-img: Check failed: {reason}\n")


def test_json(world: Any) -> None:
    result = CheckResult(corruptions=1, leaks=2, total_clusters=32, allocated_clusters=2, image_end=2686976)
    code, out, _ = check(world, result, "--output", "json")
    assert code == 2
    assert out == (
        '{\n    "image-end-offset": 2686976,\n    "total-clusters": 32,\n    "corruptions": 1,\n'
        '    "check-errors": 0,\n    "leaks": 2,\n    "allocated-clusters": 2,\n    "filename": "x",\n'
        '    "format": "checked"\n}\n'
    )


def test_a_format_without_checks(world: Any) -> None:
    world.add("x", (Kind.ABSENT, 512))
    for arguments in ([], ["-q"], ["--output=json"]):
        code, out, err = world.run("check", "-f", "toy", *arguments, "x")
        assert (code, out, err) == (63, "", "qemu-img: This image format does not support checks\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expecting one image file name"),
        (["-r", "foo", "x"], "--repair (-r) expects 'leaks' or 'all' not 'foo'"),
        (["-T", "foo", "x"], "Invalid source cache option: foo"),
        (["--output=foo", "x"], "--output expects 'human' or 'json' not 'foo'"),
        (["missing"], "Could not open 'missing': Could not open 'missing': No such file or directory"),
    ],
)
def test_mistakes(world: Any, arguments: list[str], message: str) -> None:
    code, out, err = world.run("check", *arguments)
    assert (code, out, err.splitlines()[0]) == (1, "", f"qemu-img: {message}")


def test_no_repair_is_as_no_checks(world: Any) -> None:
    """This format's check does not take what is to be repaired."""
    assert check(world, CheckResult(), "-r", "all") == (63, "", "qemu-img: This image format does not support checks\n")


def test_a_repair_is_checked_again(layer_world: Any) -> None:
    layer = layer_world.layer("x", "1")
    layer.repairs = [
        CheckResult(["Repairing cluster 5"], leaks_fixed=2, corruptions_fixed=1),
        CheckResult(["Leak"], 0, 1),
    ]
    code, out, err = layer_world.run("check", "-f", "layer", "-r", "all", "x")
    assert (code, err) == (3, "Repairing cluster 5\nLeak\n")
    assert out == (
        "The following inconsistencies were found and repaired:\n\n    2 leaked clusters\n    1 corruptions\n\n"
        f"Double checking the fixed image now...\n\n1 leaked clusters were found on the image.\n{LEAKED}"
    )
    assert layer.log == ["open writable check", "check all", "flush", "open check", "check None"]


def test_a_repair_as_json(layer_world: Any) -> None:
    layer_world.layer("x", "1").repairs = [CheckResult(leaks_fixed=2), CheckResult()]
    code, out, _ = layer_world.run("check", "-f", "layer", "-r", "leaks", "--output", "json", "x")
    assert code == 0
    assert json.loads(out) == {"filename": "x", "format": "layer", "check-errors": 0, "leaks-fixed": 2}


def test_nothing_repaired_is_not_checked_again(layer_world: Any) -> None:
    layer = layer_world.layer("x", "1")
    layer.repairs = [CheckResult(corruptions=1)]
    assert layer_world.run("check", "-q", "-f", "layer", "-r", "leaks", "x") == (2, "", "")
    assert layer.log == ["open writable check", "check leaks", "flush"]
