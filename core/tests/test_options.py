"""Option strings and the tables and lines made from declared options."""

from __future__ import annotations

import pytest

from diskwright.errors import InvalidOption
from diskwright.options import (
    Option,
    OptionType,
    asks_for_help,
    formatting_line,
    help_table,
    merge_declared,
    parse_options,
    split_option_string,
)

DECLARED = [
    Option("size", OptionType.SIZE, "Virtual disk size"),
    Option("lazy", OptionType.BOOL, "Be lazy", default=False),
    Option("bits", OptionType.NUMBER, "Width", default=16),
    Option("mode", OptionType.STRING, "How", choices=("off", "full")),
    Option("name", OptionType.STRING, "Any text"),
]


def test_doubled_commas_are_text() -> None:
    assert split_option_string("a=1,,2,b,c=") == [("a", "1,2"), ("b", None), ("c", "")]
    assert split_option_string("a=x,,,b=y") == [("a", "x,"), ("b", "y")]


@pytest.mark.parametrize("text", ["", ",", ",,", ",,a=1", ",a=1", "a=1,", "a=1,,,"])
def test_stray_commas_are_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="^Invalid option list: "):
        split_option_string(text)


def test_values_are_typed_and_the_last_one_wins() -> None:
    values = parse_options(DECLARED, ["size=1k,bits=0x10,lazy", "size=2k,id=me,mode=full"])
    assert values == {"size": 2048, "bits": 16, "lazy": True, "mode": "full"}
    assert parse_options(DECLARED, ["nolazy"]) == {"lazy": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo=1", "Invalid parameter 'foo'"),
        ("lazy=maybe", "Parameter 'lazy' expects 'on' or 'off'"),
        ("bits=x", "Parameter 'bits' expects a number"),
        ("bits=18446744073709551616", "Value '18446744073709551616' is too large for parameter 'bits'"),
        ("bits=-18446744073709551616", "Value '-18446744073709551616' is too large for parameter 'bits'"),
        ("bits=0x", "Parameter 'bits' expects a number"),
        ("size=five", "Parameter 'size' expects a non-negative number below 2^64"),
        ("size=-5k", "Parameter 'size' expects a non-negative number below 2^64"),
        ("size=-5", "Value '-5' is out of range for parameter 'size'"),
        ("size=16E", "Value '16E' is out of range for parameter 'size'"),
        ("mode=half", "Parameter 'mode' does not accept value 'half'"),
    ],
)
def test_refused_options(text: str, message: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_options(DECLARED, [text])
    assert str(caught.value) == message


def test_a_negative_number_counts_back_and_is_shown_as_it_was_given() -> None:
    assert parse_options(DECLARED, ["bits=-2"]) == {"bits": 2**64 - 2}
    assert formatting_line("x", "y", DECLARED, {"bits": 2**64 - 2}).endswith(" bits=-2")


def test_a_misspelt_option_gets_advice() -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_options(DECLARED, ["sizze=1"])
    assert caught.value.hint == "Did you mean 'size'?"


def test_help_is_asked_for_by_a_bare_key_only() -> None:
    assert asks_for_help("size=1,help")
    assert asks_for_help("?")
    assert not asks_for_help("name=help")


def test_table_and_line() -> None:
    assert help_table("Supported options:", DECLARED[:2]).splitlines() == [
        "Supported options:",
        "  lazy=<bool (on/off)>   - Be lazy",
        "  size=<size>            - Virtual disk size",
    ]
    line = formatting_line("a b", "fmt", DECLARED, {"size": 1024, "name": "x,y"})
    assert line == "Formatting 'a b', fmt=fmt size=1024 lazy=off bits=16 name=x,,y"


def test_the_first_declaration_counts() -> None:
    other = Option("size", OptionType.STRING, "Another")
    assert merge_declared(DECLARED, [other]) == DECLARED
