"""The page for authors of plugins says what is so: every hook is there, and its example works."""

import inspect
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from diskwright.context import Context
from diskwright.hookspecs import FilterSpecs, FormatSpecs, ProtocolSpecs
from diskwright.testing import DriverConformance
from diskwright.testing.base import patchwork

PAGE = Path(__file__).parents[2] / "docs" / "plugin-authors.md"
if not PAGE.exists():
    pytest.skip("the documentation is not part of this installation", allow_module_level=True)
TEXT = PAGE.read_text()
FORMATS, _REST = TEXT.split("## Hooks of a protocol")
PROTOCOLS, FILTERS = _REST.split("## Hooks of a filter")
EXAMPLES = dict(re.findall(r"```python\n# src/diskwright_plain/(\w+)\.py\n(.*?)```", TEXT, re.DOTALL))


DESCRIBED = re.compile(r"^((?:`\w+\([\w, ]*\)`(?:, )?)+)\n: ", re.MULTILINE)


def described(text: str) -> list[str]:
    """The hooks that have a paragraph, with their arguments."""
    return [call for heading in DESCRIBED.findall(text) for call in re.findall("`(.*?)`", heading)]


def declared(specs: type) -> list[str]:
    """The hooks of the contract, in the same way of writing."""
    functions = inspect.getmembers(specs, inspect.isfunction)
    return [
        f"{name}({', '.join(list(inspect.signature(function).parameters)[1:])})"
        for name, function in functions
        if not name.startswith("_")
    ]


@pytest.mark.parametrize(
    ("specs", "text"), [(FormatSpecs, FORMATS), (ProtocolSpecs, PROTOCOLS), (FilterSpecs, FILTERS)]
)
def test_the_page_has_each_hook_with_its_arguments(specs: type, text: str) -> None:
    """No more, no less, and none twice."""
    assert sorted(described(text)) == sorted(declared(specs))


@contextmanager
def installed(examples: dict[str, str], directory: Path) -> Iterator[Context]:
    """The modules of the example as a driver, in this process and those that it starts."""
    package = directory / "diskwright_plain"
    package.mkdir()
    for name, text in ({"__init__": ""} | examples).items():
        (package / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        patch.setenv("PYTHONPATH", str(directory))
        try:
            context = Context()
            context.formats.register("plain", import_module("diskwright_plain.plugin").PlainDriver())
            yield context
        finally:
            for name in [name for name in sys.modules if name.startswith("diskwright_plain")]:
                del sys.modules[name]


class TestExample(DriverConformance):
    """The smallest plugin passes the kit."""

    name, entry_module = "plain", "diskwright_plain.plugin"
    oracle = None

    def sample(self) -> bytes:
        content = patchwork(70 * 1024)
        return struct.pack("<8sQ496x", b"PLAINIMG", len(content)) + content

    @pytest.fixture(autouse=True)
    def _with_context(self, tmp_path: Path) -> Iterator[None]:
        with installed(EXAMPLES, tmp_path) as self.context:
            yield

    def test_reads_the_disk(self) -> None:
        assert self.open_node(self.sample_node()).read_at(0, 70 * 1024) == self.sample()[512:]


DEFECTS = [
    ("image", 'reader.error("Image not in plain format", 0)', "{}[header.signature]", "test_flipped_bytes"),
    ("image", '"Image not in plain format"', '"Image not\\nin plain format"', "test_flipped_bytes"),
    (
        "image",
        'reader.structure(HEADER, 0, "header")',
        "HEADER.parse(source.read_at(0, min(16, source.size)))",
        "test_truncated_file",
    ),
    ("image", "self._size: int = header.size", "self._size: int = header.size + 1", "test_size_is_whole_sectors"),
    ("image", "DATA_OFFSET + offset)", "DATA_OFFSET)", "test_pieces_agree_with_the_whole"),
    ("image", "Extent(offset, length,", "Extent(offset, max(1, length // 2),", "test_map_covers_each_range"),
    ("image", "Extent(offset, length,", "Extent(offset, length + 1,", "test_map_covers_each_range"),
    ("image", "Kind.DATA", "Kind.ZERO", "test_reads_the_disk"),
    ("image", "self.file = source", "source.write_at(8, bytes(1))", "test_reading_does_not_write"),
    ("plugin", "score=100", "score=0", "test_probe_picks_this_driver"),
    ("plugin", "length: int)", "length: int = 0)", "test_hook_signatures"),
    ("plugin", "@hookimpl\n    def probe", "def probe", "test_required_hooks"),
    ("plugin", "import Iterable", "import Iterable\nimport numpy", "test_entry_module_is_cheap"),
]


@pytest.mark.parametrize(("module", "old", "new", "test"), DEFECTS)
def test_the_kit_notices(module: str, old: str, new: str, test: str, tmp_path: Path) -> None:
    """A driver with a defect fails the test that is about it."""
    assert old in EXAMPLES[module]
    broken = EXAMPLES | {module: EXAMPLES[module].replace(old, new)}
    kit = TestExample()
    with installed(broken, tmp_path) as kit.context:
        method = getattr(kit, test)
        arguments = [tmp_path] if "tmp_path" in inspect.signature(method).parameters else []
        try:
            method(*arguments)
        except Exception:  # what it is depends on the defect; a skip is no Exception
            return
    pytest.fail(f"{test} passed")
