"""Sizes as users write them."""

from __future__ import annotations

import pytest

from diskwright.errors import InvalidOption
from diskwright.sizes import OutOfRange, human_size, parse_cli_number, parse_cli_size, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("512", 512),
        (" 512", 512),
        ("0x200", 512),
        ("010", 10),
        ("64k", 65536),
        ("64K", 65536),
        ("1.5k", 1536),
        ("1.k", 1024),
        (".5M", 524288),
        ("1b", 1),
        ("2T", 2 << 40),
        ("1e", 1 << 60),
        ("15E", 15 << 60),
        ("0.0005k", 1),
        ("1024.0", 1024),
        ("1024.00b", 1024),
        ("1024.", 1024),
        (".0", 0),
    ],
)
def test_parse_size(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1x",
        "1Z",
        "10MB",
        "1.5",
        "1.5b",
        "1024.01",
        "1k.0",
        "0x10k",
        "1e3",
        "-1",
        "1 ",
        ".",
        ".k",
        "16E",
        "9" * 5000,
    ],
)
def test_refused_sizes(text: str) -> None:
    with pytest.raises(InvalidOption):
        parse_size(text)


def test_command_line_sizes_fit_63_bits() -> None:
    assert parse_cli_size("7E", "image size") == 7 << 60
    with pytest.raises(
        InvalidOption, match=r"^Invalid image size specified\. Must be between 0 and 9223372036854775807\.$"
    ):
        parse_cli_size("8E", "image size")
    for text in ("16E", "-5"):
        with pytest.raises(InvalidOption, match="Must be between 0"):
            parse_cli_size(text, "image size")
    with pytest.raises(InvalidOption, match=r"^Invalid step size specified: '1x'\.$"):
        parse_cli_size("1x", "step size")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (200704, "196 KiB"),
        (1048576, "1 MiB"),
        (2 << 40, "2 TiB"),
        (2187 << 30, "2.14 TiB"),
        (2**63, "8 EiB"),
    ],
)
def test_human_size(size: int, expected: str) -> None:
    assert human_size(size) == expected


@pytest.mark.parametrize("text", ["-1", "16E", "99999999999999999999"])
def test_numbers_out_of_range_are_told_from_what_is_no_number(text: str) -> None:
    with pytest.raises(OutOfRange):
        parse_size(text)


def test_a_negative_size_with_a_suffix_is_no_size() -> None:
    with pytest.raises(InvalidOption, match=r"^Invalid image size specified: '-1k'\.$"):
        parse_cli_size("-1k", "image size")


def test_bounds() -> None:
    assert parse_cli_size("2k", "bs", 1, 2048) == 2048
    for text in ("0", "2049"):
        with pytest.raises(InvalidOption, match=r"^Invalid bs specified\. Must be between 1 and 2048\.$"):
            parse_cli_size(text, "bs", 1, 2048)


@pytest.mark.parametrize(("text", "expected"), [("10", 10), ("0x10", 16), ("010", 8), ("0", 0), (" 7", 7)])
def test_counts(text: str, expected: int) -> None:
    assert parse_cli_number(text, "depth", 0, 100) == expected


@pytest.mark.parametrize("text", ["", "1k", "x", "09", "1 ", "9" * 5000])
def test_refused_counts(text: str) -> None:
    with pytest.raises(InvalidOption, match="^Invalid depth specified: "):
        parse_cli_number(text, "depth", 0, 100)
    with pytest.raises(InvalidOption, match="Must be between 1 and 16"):
        parse_cli_number("-1", "depth", 1, 16)
