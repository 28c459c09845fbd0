"""Command lines are understood as C's ``getopt_long`` understands them."""

from __future__ import annotations

import pytest

from diskwright.arguments import Parser, UsageError


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="tool job")
    parser.add_argument("-f", "--format")
    parser.add_argument("-o", "--options", action="append", default=[])
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("-p", "--progress", nargs="?", const="text")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--mode", default="slow")
    parser.add_argument("--fast", action="store_const", dest="mode", const="fast")
    parser.add_argument("--kind", dest="kinds", action="append", type=str.upper)
    parser.add_argument("operands", nargs="*")
    return parser


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a -f raw b", {"format": "raw", "operands": ["a", "b"]}),
        ("-fraw", {"format": "raw"}),
        ("-f=raw", {"format": "=raw"}),
        ("--format=a=b", {"format": "a=b"}),
        ("--format -q", {"format": "-q", "quiet": False}),
        ("-f -- x", {"format": "--", "operands": ["x"]}),
        ("-qf raw", {"quiet": True, "format": "raw"}),
        ("-qfraw", {"quiet": True, "format": "raw"}),
        ("--opt a -o b", {"options": ["a", "b"]}),
        ("-p x", {"progress": "text", "operands": ["x"]}),
        ("--progress=json x", {"progress": "json", "operands": ["x"]}),
        ("--kind a --kind b", {"kinds": ["A", "B"]}),
        ("a -- -q --format", {"quiet": False, "operands": ["a", "-q", "--format"]}),
        ("-", {"operands": ["-"]}),
        ("--fast", {"mode": "fast"}),
        ("--mode x", {"mode": "x"}),
        ("", {"format": None, "mode": "slow", "options": [], "operands": []}),
    ],
)
def test_what_is_understood(parser: Parser, line: str, expected: dict[str, object]) -> None:
    values = vars(parser.parse(line.split()))
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--fomat=raw", "unrecognized option '--fomat=raw'"),
        ("-z", "invalid option -- 'z'"),
        ("-qz", "invalid option -- 'z'"),
        ("-f", "option requires an argument -- 'f'"),
        ("a --format", "option '--format' requires an argument"),
        ("--quiet=yes", "option '--quiet' doesn't allow an argument"),
        ("--fo", "option '--fo' is ambiguous; possibilities: '--format' '--force'"),
    ],
)
def test_what_is_refused(parser: Parser, line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parser.parse(line.split())
    assert str(caught.value) == message
    assert caught.value.teller == "tool job"
    assert caught.value.hint.splitlines()[-1] == "Try 'tool job --help' for more info"


def test_the_option_that_was_meant(parser: Parser) -> None:
    with pytest.raises(UsageError) as caught:
        parser.parse(["--fomat=raw"])
    assert caught.value.hint.splitlines()[0] == "Did you mean '--format'?"


def test_lists_are_not_shared_between_runs(parser: Parser) -> None:
    assert parser.parse(["-o", "a"]).options == ["a"]
    assert parser.parse([]).options == []


def test_what_comes_after_the_first_operand_can_be_left(parser: Parser) -> None:
    assert parser.parse(["-q", "x", "-f"], first_only=True).operands == ["x", "-f"]
