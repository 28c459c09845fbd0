"""What file names mean."""

from __future__ import annotations

import pytest

from diskwright.filenames import FileName, backing_filename, parse_filename, protocol_prefix


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("a.img", None), ("nbd:x", "nbd"), ("./a:b", None), ("/x/a:b", None), ("a:b", "a"), (":x", ""), ("x/y:z", None)],
)
def test_a_prefix_ends_at_a_colon_before_any_slash(name: str, prefix: str | None) -> None:
    assert protocol_prefix(name) == prefix


def test_names_are_taken_apart() -> None:
    assert parse_filename("file:a:b") == FileName("file", "./a:b")
    assert parse_filename("file:a") == FileName("file", "a")
    assert parse_filename("file:/x/a:b") == FileName("file", "/x/a:b")
    assert parse_filename("nbd://host/x") == FileName("nbd", "nbd://host/x")
    assert parse_filename("/dev/null") == FileName("host_device", "/dev/null")
    assert parse_filename("no\0name") == FileName("file", "no\0name")


@pytest.mark.parametrize(
    ("overlay", "backing", "expected"),
    [
        ("o.qcow2", "b.raw", "b.raw"),
        ("dir/o.qcow2", "b.raw", "dir/b.raw"),
        ("dir/o.qcow2", "../b.raw", "dir/../b.raw"),
        ("dir/o.qcow2", "/abs/b.raw", "/abs/b.raw"),
        ("dir/o.qcow2", "nbd://h/x", "nbd://h/x"),
        ("nbd://h/dir/o", "b", "nbd://h/dir/b"),
        ("file:o", "b", "file:b"),
        ("/o", "b", "/b"),
    ],
)
def test_backing_names_are_relative_to_the_overlay(overlay: str, backing: str, expected: str) -> None:
    assert backing_filename(overlay, backing) == expected
