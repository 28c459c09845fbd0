"""The one way to text streams: any text can be written, and text from strangers cannot play with a terminal."""

from __future__ import annotations

from typing import BinaryIO, TextIO


def escape_text(text: str) -> str:
    """Text as a terminal may show it: what is not printable (controls, surrogates, direction marks) as escapes.

    A byte that is no UTF-8, and therefore a low surrogate in Python's file names, is shown as ``\\xNN``.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Printer:
    """Writes text to a stream: escaped if that is a terminal, otherwise as exactly the bytes that names were made of.

    :param stream: ``sys.stdout`` or the like; ``None`` (the descriptor was closed) swallows everything.
    :ivar terminal: whether a person is looking.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._bytes: BinaryIO | None = getattr(stream, "buffer", None)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self.terminal = stream is not None and stream.isatty()
        if stream is not None and self._bytes is not None:
            stream.flush()  # from here on the text layer is passed by

    def can_write(self, text: str) -> bool:
        """Whether the stream's encoding has all characters of a text."""
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            return False
        return True

    def safe(self, text: str) -> str:
        """The text as it may be put into :meth:`write`: escaped if this is a terminal, newlines included."""
        return escape_text(text) if self.terminal else text

    def line(self, text: str) -> None:
        """Write one line; a newline inside (of a file name) is escaped on a terminal."""
        self.write(self.safe(text) + "\n")

    def lines(self, text: str) -> None:
        """Write several lines of our own making, as :meth:`line` does each."""
        for line in text.split("\n"):
            self.line(line)

    def write(self, text: str) -> None:
        """Write text verbatim; what comes from outside has passed :meth:`safe`.

        :raises OSError: the stream cannot be written (a closed pipe, a full disk).
        """
        if self._stream is None:
            return
        if self._bytes is None:
            self._stream.write(text)
            return
        try:
            data = text.encode(self._encoding, "surrogateescape")
        except UnicodeEncodeError:
            data = text.encode(self._encoding, "backslashreplace")
        self._bytes.write(data)
        if self.terminal:
            self._bytes.flush()

    def flush(self) -> None:
        """Hand everything written so far to the system.

        :raises OSError: as for :meth:`write`.
        """
        if self._stream is not None:
            (self._bytes or self._stream).flush()
