"""Text from strangers on streams of all kinds."""

from __future__ import annotations

import io
from typing import Any

import pytest

from diskwright.render.printer import Printer, escape_text


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def written(kind: type[io.TextIOWrapper], action: Any, encoding: str = "utf-8") -> bytes:
    raw = io.BytesIO()
    printer = Printer(kind(raw, encoding=encoding))
    action(printer)
    printer.flush()
    return raw.getvalue()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain é 😀", "plain é 😀"),
        ("\x1b[2Jgone\r\n", r"\x1b[2Jgone\x0d\x0a"),
        ("a\udcffb", r"a\xffb"),
        ("\ud800", r"\ud800"),
        ("\x85\x7f", r"\x85\x7f"),
        ("invoice\u202egpj.exe", r"invoice\u202egpj.exe"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_a_terminal_gets_escapes(text: str, escaped: str) -> None:
    assert escape_text(text) == escaped
    assert written(Terminal, lambda printer: printer.line(text)) == escaped.encode() + b"\n"


def test_a_file_gets_the_bytes_of_the_name() -> None:
    assert written(io.TextIOWrapper, lambda printer: printer.line("a\udcff\x1b\nb")) == b"a\xff\x1b\nb\n"


@pytest.mark.parametrize("text", ["\ud800", "é\udcff😀"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_no_text_fails_in_any_encoding(text: str, encoding: str) -> None:
    for kind in (Terminal, io.TextIOWrapper):
        assert written(kind, lambda printer: printer.line(text), encoding).endswith(b"\n")


def test_lines_of_our_own_stay_lines() -> None:
    assert written(Terminal, lambda printer: printer.lines("one\ntwo\x1b")) == b"one\ntwo\\x1b\n"


def test_what_was_printed_before_comes_first() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw)
    stream.write("before ")
    Printer(stream).line("after")
    assert raw.getvalue() == b"before after\n"


def test_a_stream_without_bytes_and_no_stream_at_all() -> None:
    text = io.StringIO()
    Printer(text).line("é")
    assert text.getvalue() == "é\n"
    nothing = Printer(None)
    nothing.line("x")
    nothing.flush()
    assert not nothing.terminal
