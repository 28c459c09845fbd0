"""Manual pages of the program and of each command, made from the parsers by argparse-manpage.

When a wheel is built, they are made and put into it, so that they are installed as ``share/man/man1/*.1``; by itself,
``python manpages.py DIRECTORY`` writes them there, for distributors and ``make man``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from argparse_manpage.manpage import Manpage
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path(__file__).parent / "src"
PROGRAM = "diskwright"

if TYPE_CHECKING:
    from diskwright.arguments import Parser
    from diskwright.parsers import CommandParser

FILES = {
    "/etc/diskwright/config.toml": "what may be opened, for all users of the machine",
    "~/.config/diskwright/config.toml": "the same, for one user",
}
ENVIRONMENT = {
    "DISKWRIGHT_POLICY": "what may be opened and used, as the option --policy has it",
    "DISKWRIGHT_CONFIG": "the configuration file to read, in the place of those below",
    "DISKWRIGHT_TRACEBACK": "if set, errors show where in the program they come from",
}


def roff(text: str) -> str:
    """Text that roff takes for nothing else."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def definitions(terms: dict[str, str]) -> str:
    """A list of terms, each with its meaning."""
    return "\n".join(f".TP\n.B {roff(term)}\n{roff(text)}" for term, text in terms.items())


def page(parser: Parser, name: str, summary: str, sections: dict[str, str]) -> str:
    """A manual page.

    :param sections: what comes behind the options, in roff.
    """
    from diskwright import __version__

    parser.epilog = None  # said by sections of their own
    manual = Manpage(parser)
    manual.prog = name
    manual.source = f"diskwright {__version__}"
    manual.manual = "Virtual disk images"
    manual.description = summary
    for heading, content in sections.items():
        manual.add_section(heading, ">", content)
    header, _, body = str(manual).rstrip("\n").partition("\n")
    # It leaves this one out.
    body = body.replace(".SH OPTIONS\n", ".SH OPTIONS\n.TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nshow this help\n", 1)
    # Such values follow an equals sign, not a space.
    body = re.sub(r"(\\fB\\-\w\\fR) \\fI\\,\[[^]]*\]\\/\\fR", r"\1", body)
    body = re.sub(r"(\\fB\\-\\-\S+\\fR) \\fI\\,\[([^]]*)\]\\/\\fR", r"\1[=\\fI\2\\fR]", body)
    # What begins a line with a dot or a quote is a request, and an empty line is more than a paragraph.
    lines = (re.sub(r"^'", r"\\&'", line) if line else ".PP" for line in body.split("\n"))
    text = re.sub(r"\n(?:\.PP\n)+(?=\.(?:SH|SS|TP|PP)\b)", "\n", "\n".join(lines))
    date = header.replace(manual.date.replace("-", "\\-"), manual.date)  # nothing but a date may stand there
    return f"{date}\n{text}\n"


def command_page(name: str, summary: str, parser: CommandParser, others: list[str]) -> str:
    """The page of a command."""
    lines = "\n".join(map(roff, parser.examples))
    sections = {
        "exit status": definitions({str(code): text for code, text in parser.exit_codes.items()}),
        "examples": f".nf\n{lines}\n.fi",
        "see also": see_also([PROGRAM, *(f"{PROGRAM}-{other}" for other in others if other != name)]),
    }
    return page(parser, f"{PROGRAM}-{name}", summary, sections)


def see_also(pages: list[str]) -> str:
    """References to pages of section 1."""
    return ",\n".join(f".BR {roff(name)} (1)" for name in pages)


def pages() -> dict[str, str]:
    """All pages by file name."""
    from diskwright.parsers import COMMANDS, SUMMARY, command_parser, program_parser

    names = list(COMMANDS)
    sections = {
        "commands": "\n".join(
            f".TP\n.BR {roff(f'{PROGRAM}-{name}')} (1)\n{roff(text)}" for name, text in COMMANDS.items()
        ),
        "exit status": definitions({"0": "it is done", "1": "it failed; some commands have further codes"}),
        "environment": definitions(ENVIRONMENT),
        "files": definitions(FILES),
        "see also": see_also([f"{PROGRAM}-{name}" for name in names]),
    }
    parser = program_parser(PROGRAM)
    parser.description = f"{PROGRAM} does what qemu-img does, with the same options, output and exit codes."
    found = {f"{PROGRAM}.1": page(parser, PROGRAM, SUMMARY, sections)}
    for name, summary in COMMANDS.items():
        found[f"{PROGRAM}-{name}.1"] = command_page(name, summary, command_parser(name, PROGRAM), names)
    return found


def write(directory: Path) -> list[Path]:
    """Write all pages into a directory; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        path = directory / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


class ManualPages(BuildHookInterface[Any]):
    """Puts the pages into a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the pages, unless what is installed is a directory that somebody works in."""
        if self.target_name != "wheel" or version == "editable":
            return
        sys.path.insert(0, str(SOURCE))
        self._directory = TemporaryDirectory()
        for path in write(Path(self._directory.name)):
            build_data["shared_data"][str(path)] = f"share/man/man1/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is there."""
        if hasattr(self, "_directory"):
            self._directory.cleanup()


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE))
    write(Path(sys.argv[1]))
